"""Names and lists of suites, and the layouts of their members."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from gymnasium.spaces import Box

from pitune import envs
from pitune.envs.mock.reach import Reach
from pitune.envs.registry import _ADAPTERS, register
from pitune.envs.suite.aligned import AlignedEnv, columns_of, common_layout
from pitune.envs.suite.env import SuiteEnv
from pitune.envs.suite.layout import check_same_spaces
from pitune.envs.suite.members import check_members, members_of

SUITES = {"MT2": ("reach-v3", "push-v3")}


def test_a_name_or_a_list_in_brackets_is_a_suite() -> None:
    assert members_of("metaworld/MT2", SUITES) == ("reach-v3", "push-v3")
    assert members_of("metaworld/[push-v3, metaworld/reach-v3]", SUITES) == ("push-v3", "reach-v3")
    assert members_of("metaworld/reach-v3", SUITES) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("[a,b", r"id='x/[a,b' begins a list of tasks without its end; write x/[TASK,TASK], in q"),
        ("[a,,b]", r"id='x/[a,,b]' has an empty task; write x/[TASK,TASK]"),
        ("[]", r"id='x/[]' has an empty task"),
        ("[a,b,a]", r"id='x/[a,b,a]' lists ['a'] twice; list every task once"),
    ],
)
def test_a_list_with_a_mistake_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        members_of(f"x/{name}", {})


def test_an_unknown_member_is_refused_with_the_nearest_names() -> None:
    message = r"task='PikCube' of id='mujoco/\[PikCube\]' is no task of mujoco/; did you mean \['Pi"
    with pytest.raises(ValueError, match=message):
        envs.make(envs.config_for("mujoco/[PikCube]", num_envs=1))
    with pytest.raises(ValueError, match=r"is no task of x/; valid: \['aa', 'bb'\]"):
        check_members("x/[zz]", ("zz",), ("bb", "aa"))


def test_a_name_that_is_nearly_that_of_a_suite_is_refused_with_it() -> None:
    message = r"unknown suite id='mujoco/Tabltop'; did you mean mujoco/Tabletop\?"
    with pytest.raises(ValueError, match=message):
        envs.make(envs.config_for("mujoco/Tabltop", num_envs=1))


def test_members_with_other_layouts_are_refused_with_both() -> None:
    message = (
        r"mock/\[Reach,Script\]: its tasks must share one layout, but mock/Reach has "
        r"\{'state': \(4,\), .* and mock/Script has \{'state': \(3,\), .*; leave one of them out"
    )
    with pytest.raises(ValueError, match=message):
        envs.make(envs.config_for("mock/[Reach,Script]", num_envs=2))
    with pytest.raises(ValueError, match=r"a has \{'image/top': \(8, 8, 3\), 'image/front'"):
        check_same_spaces(
            "x/[a,b]",
            ("a", {"image/top": Box(0, 255, (8, 8, 3))}),
            ("b", {"image/front": Box(0, 255, (8, 8, 3))}),
        )


def test_cameras_are_a_part_of_the_layout() -> None:
    one, other = Reach(2, cameras=("top",)), Reach(2, cameras=("side",))
    with pytest.raises(ValueError, match=r"\{'image/top': \(3, 16, 16\), 'image/side': None\}"):
        SuiteEnv("mock/[Reach,Reach]", [one, other])


def test_a_member_with_several_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="mock/Reach has 2 tasks and num_starts=None; a member of"):
        SuiteEnv("x", [Reach(2, num_tasks=2)])
    fixed = Reach(2)
    fixed.spec = replace(fixed.spec, num_starts=50)
    with pytest.raises(ValueError, match="mock/Reach has 1 tasks and num_starts=50; a member of a"):
        SuiteEnv("x", [fixed])


# Aligned states


def test_parts_of_one_name_share_their_places() -> None:
    layouts = {"lift": {"arm": 2, "cube": 3}, "stack": {"arm": 2, "cube": 3, "base": 1, "goal": 2}}
    common = common_layout("x", layouts)
    assert common == layouts["stack"]
    assert columns_of(layouts["lift"], common) == [0, 1, 2, 3, 4]
    assert columns_of({"goal": 2, "arm": 2}, common) == [6, 7, 0, 1]


def test_a_part_of_two_sizes_is_refused_with_both_layouts() -> None:
    message = (
        r"x/\[a,b\]: its tasks must share one state layout, but 'arm' has 7 entries in a and 9 in "
        r"b \(a: \{'arm': 7\}, b: \{'arm': 9\}\); leave one of them out"
    )
    with pytest.raises(ValueError, match=message):
        common_layout("x/[a,b]", {"a": {"arm": 7}, "b": {"arm": 9}})


def test_the_places_of_a_missing_part_are_zero() -> None:
    layout, common = {"point": 2, "goal": 2}, {"goal": 2, "box": 3, "point": 2}
    env, bare = AlignedEnv(Reach(2), layout, common), Reach(2)
    seeds, active = torch.tensor([3, 4]), torch.tensor([True, False])
    assert env.spec.state_dim == 7
    state, own = env.reset(seeds)["state"], bare.reset(seeds)["state"]
    action = torch.ones(2, 2)
    for _ in range(2):
        assert torch.equal(state[:, 5:], own[:, :2])
        assert torch.equal(state[:, :2], own[:, 2:])
        assert not state[:, 2:5].any()
        state, own = env.step(action, active).obs["state"], bare.step(action, active).obs["state"]
    assert torch.equal(env.render(), bare.render())
    assert torch.equal(env.expert().act(), bare.expert().act())
    env.close()


def test_a_missing_cube_of_the_tabletop_has_places_too() -> None:
    suite = envs.make(envs.config_for("mujoco/Tabletop", num_envs=3, num_workers=0))
    state = suite.reset(torch.tensor([0, 1, 2]))["state"]
    assert state.shape == (3, 29)
    second_cube = [*range(14, 20), *range(23, 26)]
    assert not state[:2, second_cube].any()
    assert state[2, second_cube].any()
    suite.close()


# Suites of adapters from outside


def test_an_adapter_from_outside_has_suites_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pitune.envs.registry._ADAPTERS", dict(_ADAPTERS))
    register(
        "plane",
        lambda name, config: Reach(config.num_envs),
        tasks=lambda: ("one", "two"),
        suites=lambda: {"both": ("one", "two")},
    )
    env = envs.make(envs.EnvConfig(id="plane/both", num_envs=4))
    assert env.reset(torch.arange(4))["task_id"].tolist() == [0, 1, 0, 1]
    assert envs.known_suites("plane") == {"both": ("one", "two")}
