"""`success`: which values count, where they are found, and the two definitions of an episode's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pitune import envs
from pitune.envs import CheckedEnv, ChunkEnv, EpisodeSeeds
from pitune.envs.mock.reach import Reach, Script
from pitune.envs.success import (
    EpisodeSuccess,
    find_success,
    parse_success,
    read_success,
    read_successes,
)

# One flag

FLAGS = [
    (True, True),
    (False, False),
    (np.True_, True),
    (np.False_, False),
    (1, True),
    (0, False),
    (1.0, True),
    (0.0, False),
    (np.int64(1), True),
    (np.float32(0.0), False),
    (np.array(True), True),
    (np.array(0), False),
    (np.array(1.0), True),
    (torch.tensor(True), True),
    (torch.tensor(0.0), False),
]
NO_FLAGS = [
    [False],
    (True,),
    [],
    {"task": False},
    {},
    "False",
    "",
    b"1",
    None,
    float("nan"),
    np.float32("nan"),
    float("inf"),
    -1,
    2,
    0.3,
    np.array(0.3),
    np.array([True]),
    np.array([True, True]),
    np.array("True"),
    np.array(None, dtype=object),
    torch.tensor([True]),
    torch.tensor(-1),
    1j,
    object(),
]


@pytest.mark.parametrize(("value", "expected"), FLAGS, ids=repr)
def test_one_boolean_is_a_flag(value: Any, expected: bool) -> None:
    flag = parse_success(value, "success", "gym/X-v0")
    assert isinstance(flag, bool)
    assert flag is expected


@pytest.mark.parametrize("value", NO_FLAGS, ids=repr)
def test_anything_else_is_refused_with_its_key_value_and_type(value: Any) -> None:
    with pytest.raises(
        ValueError, match="is not a success flag; valid are True and False"
    ) as found:
        parse_success(value, "is_success", "gym/X-v0")
    message = str(found.value)
    assert message.startswith(f"gym/X-v0: info['is_success']={value!r}"[:60])
    assert f"of type {type(value).__name__} " in message


@pytest.mark.parametrize(
    ("info", "key"),
    [
        ({"success": 1}, "success"),
        ({"is_success": 1}, "is_success"),
        ({"success": 1, "is_success": 0}, "success"),
        ({"final_info": {"success": 1}}, "final_info.success"),
        ({"episode": {"success_once": 1}}, "episode.success_once"),
        ({"episode": {"success": 1, "success_once": 0}}, "episode.success"),
        ({"final_info": {"episode": {"success_once": 1}}}, "final_info.episode.success_once"),
        ({"success": 1, "episode": {"success_once": 0}}, "success"),
    ],
)
def test_success_is_found_under_its_usual_names(info: dict, key: str) -> None:
    assert find_success(info) == (key, 1)
    assert read_success(info, "gym/X-v0") is True


@pytest.mark.parametrize(
    "info", [{}, None, [], {"is_succ": True}, {"episode": {"r": 1.0}}, {"final_info": None}]
)
def test_an_info_without_success_has_none(info: Any) -> None:
    assert read_success(info, "gym/X-v0") is None
    assert read_successes(info, 2, "gym/X-v0") is None


# Flags of a vector environment

YES_NO = np.array([True, False])


@pytest.mark.parametrize(
    "info",
    [
        {"success": YES_NO},
        {"success": [True, False]},
        {"success": torch.tensor([True, False])},
        {"success": np.array([1.0, 0.0])},
        {"is_success": np.array([1, 0])},
        {"success": np.array([True, False], dtype=object)},
        # the second did not report, whatever stands there
        {"success": np.array([1.0, np.nan]), "_success": YES_NO},
        {"success": np.array([True, None], dtype=object), "_success": YES_NO},
        # the final info of the first, and the start that followed
        {"success": np.array([0, 0]), "final_info": {"success": YES_NO}, "_final_info": YES_NO},
        {"final_info": {"success": YES_NO, "_success": YES_NO}, "_final_info": YES_NO},
        {"final_info": np.array([{"success": True}, None], dtype=object)},
        {"final_info": [{"episode": {"success_once": True}}, {}]},
        {"episode": {"success_once": YES_NO}},
        {
            "final_info": {"episode": {"success_once": np.array([1, 1])}, "_episode": YES_NO},
            "_final_info": YES_NO,
        },
        {"success": np.array([1, 1]), "final_info": {"success": [9, 0]}, "_final_info": ~YES_NO},
    ],
    ids=repr,
)
def test_flags_of_a_vector_environment(info: dict) -> None:
    assert read_successes(info, 2, "gym/X-v0").tolist() == [True, False]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([0.3, 0.0]), r"info\['success\[0\]'\]=.*0.3.* is not a success flag"),
        (np.array([0.0, np.nan]), r"info\['success\[1\]'\]=.*nan"),
        (np.array([[True], [False]]), r"success\[0\].* of type ndarray is not"),
        (np.array(["True", "False"]), r"success\[0\].* of type str_ is not"),
        ([[True], [False]], r"success\[0\]"),
        (True, r"of type bool and shape \(\) must hold one success flag for each of the 2"),
        (np.array([True]), r"shape \(1,\) must hold one"),
        (np.array([True] * 3), r"shape \(3,\) must hold one"),
        ({"task": YES_NO}, r"of type dict and shape \(\) must hold one"),
        (None, r"of type NoneType and shape \(\)"),
    ],
    ids=repr,
)
def test_other_values_of_a_vector_environment_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_successes({"success": value}, 2, "gym/X-v0")


# The success of an episode


class Goal(Script):
    """Solved at the given steps of each environment. Success ends no episode."""

    def __init__(self, *solved: set[int], length: int = 6, breaks_at: int = 99) -> None:
        num = len(solved)
        super().__init__(num, lengths=(length,) * num, ends=("time",) * num)
        self.solved, self.breaks_at = solved, breaks_at

    def step(self, action: Tensor, active: Tensor) -> Any:
        result = super().step(action, active)
        now = [int(t) in steps for t, steps in zip(self.state[:, 2], self.solved, strict=True)]
        result.info["success"] = torch.tensor(now) & active
        broken = (self.state[:, 2] == self.breaks_at) & active
        result.info["invalid"] = broken
        return result._replace(truncated=result.truncated | broken)


def ends_of(chunk_env: ChunkEnv, horizon: int) -> dict[str, list[bool]]:
    """Return the flags at the end of the first episode of every environment."""
    td = chunk_env.reset()
    found: dict[str, list[bool]] = {}
    num = chunk_env.batch_size[0]
    ended: list[dict[str, bool]] = [{} for _ in range(num)]
    while not all(ended):
        action = torch.zeros(num, horizon, 1)
        td, following = chunk_env.step_and_maybe_reset(td.set("action", action))
        for i in td["next", "done"].flatten().nonzero().flatten().tolist():
            names = ("success", "success_once", "success_at_end")
            ended[i] = ended[i] or {key: bool(td["next", key][i]) for key in names}
        td = following
    for row in ended:
        for key, value in row.items():
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("rule", ["once", "at_end"])
def test_both_definitions_are_recorded_whatever_the_chunks(
    horizon: int, rule: envs.SuccessRule
) -> None:
    env = CheckedEnv(Goal({3}, {1, 6}, {6}, set(), {2, 3, 4, 5}), success=rule)
    flags = ends_of(ChunkEnv(env, horizon, EpisodeSeeds(5, 0, "train")), horizon)
    assert flags["success_once"] == [True, True, True, False, True]
    assert flags["success_at_end"] == [False, True, True, False, False]
    assert flags["success"] == flags[f"success_{rule}"]


def test_the_next_episode_begins_without_success() -> None:
    env = CheckedEnv(Goal({1}, {1}, length=2))
    env.env.solved = ({1}, {1})  # type: ignore[attr-defined]
    chunk_env = ChunkEnv(env, 1, EpisodeSeeds(2, 0, "train"))
    rollout = chunk_env.rollout(4, break_when_any_done=False)
    assert rollout["success"].squeeze(-1).tolist() == [[False, True] * 2] * 2
    assert rollout["next", "success"].squeeze(-1).tolist() == [[True, True] * 2] * 2
    assert rollout["next", "success_at_end"].squeeze(-1).tolist() == [[True, False] * 2] * 2


def test_an_environment_that_ends_at_success_has_one_definition() -> None:
    env = CheckedEnv(Reach(8))
    chunk_env = ChunkEnv(env, 3, EpisodeSeeds(8, 0, "train"))
    expert, generator = env.expert(), torch.Generator().manual_seed(0)
    td, num = chunk_env.reset(), 0
    for _ in range(30):
        noise = 0.5 * torch.randn(8, 3, 2, generator=generator)
        action = expert.act()[:, None] + noise
        td, following = chunk_env.step_and_maybe_reset(td.set("action", action))
        after = td["next"]
        assert torch.equal(after["success"], after["terminated"])
        assert torch.equal(after["success"], after["success_at_end"])
        num += int(after["success"].sum())
        td = following
    assert num > 8


def test_without_a_report_nothing_is_recorded() -> None:
    env = CheckedEnv(Reach(2))
    object.__setattr__(env.spec, "success_signal", False)
    keys = ChunkEnv(env, 1, EpisodeSeeds(2, 0, "train")).rollout(2)["next"].keys()
    assert not {"success", "success_once", "success_at_end"} & set(keys)


@pytest.mark.parametrize("rule", ["last", "", "ONCE", None])
def test_an_unknown_definition_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match=f"success={rule!r} must be 'once'"):
        CheckedEnv(Reach(2), success=rule)
    with pytest.raises(ValueError, match=f"success={rule!r} is unknown; valid: 'once', 'at_end'"):
        envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2, success=rule))


def test_the_setting_reaches_the_environment() -> None:
    config = envs.EnvConfig(id="mock/Reach", num_envs=2, success="at_end")
    assert envs.make(config).spec.success_rule == "at_end"
    assert envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2)).spec.success_rule == "once"


def test_a_step_of_an_ended_episode_is_no_part_of_its_success() -> None:
    success = EpisodeSuccess(3, torch.device("cpu"))
    success.add(torch.tensor([False, True, True]), torch.tensor([True, True, False]))
    assert success.flags("once")["success"].tolist() == [False, True, False]
    success.add(torch.tensor([True, False, False]), torch.tensor([False, False, True]))
    assert success.flags("once")["success"].tolist() == [False, True, False]
    assert success.flags("at_end")["success"].tolist() == [False, True, False]
    success.start(torch.tensor([1]))
    assert not success.once.any()
    assert not success.at_end.any()
