"""RECAP's tables of recorded episodes, of demonstrations and of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune import envs, rl
from pitune.rl.algorithms.recap.episodes import join, newest, of_demonstrations, of_rollout
from pitune.rl.experience.attempts import collect_attempts

YES, NO = True, False


def rollout_of(
    done: list[list[bool]], success: list[list[bool]], invalid: list[list[bool]] | None = None
) -> TensorDict:
    """Return a rollout (E, T) of two steps a decision, whose states are 10 * environment + time."""
    flags = torch.tensor(done)[..., None], torch.tensor(success)[..., None]
    num_envs, num_chunks = flags[0].shape[:2]
    number = 10 * torch.arange(num_envs)[:, None] + torch.arange(num_chunks)
    state = number[..., None].expand(-1, -1, 4).float()
    broken = torch.zeros_like(flags[0]) if invalid is None else torch.tensor(invalid)[..., None]
    ends = {"done": flags[0], "success": flags[1], "invalid": broken}
    return TensorDict(
        {
            "model_input": {"state": state, "robot_state": state},
            "chain": torch.zeros(num_envs, num_chunks, 3, 2, 2),
            "task_id": torch.arange(num_envs)[:, None].expand(-1, num_chunks),
            "next": {**ends, "duration": torch.full_like(number, 2)[..., None]},
        },
        batch_size=[num_envs, num_chunks],
    )


def test_the_decisions_of_whole_episodes_are_kept_with_their_facts(tiny_policy: Callable) -> None:
    rollout = rollout_of(
        done=[[NO, YES, NO, NO], [YES, NO, NO, YES]],  # the last two of the first go on
        success=[[NO, YES, NO, NO], [NO, NO, NO, YES]],
    )
    rows = of_rollout(rollout, tiny_policy(), first_episode=7)
    assert rows["model_input", "state"][:, 0].tolist() == [0, 1, 10, 11, 12, 13]
    assert rows["time"].tolist() == [0, 2, 0, 0, 2, 4]
    assert rows["length"].tolist() == [4, 4, 2, 6, 6, 6]
    assert rows["episode"].tolist() == [7, 7, 8, 9, 9, 9]
    assert rows["solved"].tolist() == [YES, YES, NO, YES, YES, YES]
    assert rows["task"].tolist() == [0, 0, 1, 1, 1, 1]
    assert not rows["forced"].any()
    assert rows["action"].shape == (6, 2, 2)


def test_episodes_of_a_broken_simulator_are_left_out(tiny_policy: Callable) -> None:
    rollout = rollout_of(
        done=[[NO, NO, YES], [YES, NO, YES]],
        success=[[NO, NO, YES], [YES, NO, NO]],
        invalid=[[NO, YES, NO], [NO, NO, YES]],
    )
    rows = of_rollout(rollout, tiny_policy())
    assert rows["model_input", "state"][:, 0].tolist() == [10]


def test_the_target_of_a_decision_is_its_sampled_chunk(tiny_policy: Callable) -> None:
    policy, rollout = tiny_policy(), rollout_of([[YES]], [[YES]])
    rollout["chain"][..., -1, :, :] = 0.5
    found = of_rollout(rollout, policy)["action"]
    by_hand = policy.preprocessor.unnormalize_action(torch.full((1, 2, 2), 0.5), torch.zeros(1, 4))
    assert torch.allclose(found, by_hand)


def table() -> rl.Demonstrations:
    """Return a success of two steps and a failure of three, with a correction at its end."""
    return rl.Demonstrations(
        obs={"state": torch.zeros(5, 4)},
        action=torch.arange(10.0).reshape(5, 2),
        episode=torch.tensor([0, 0, 3, 3, 3]),
        terminated=torch.tensor([NO, YES, NO, NO, NO]),
        intervention=torch.tensor([NO, NO, NO, NO, YES]),
    )


def test_demonstrated_steps_have_their_facts() -> None:
    rows = of_demonstrations(table(), torch.tensor([0, 0, 1, 1, 1]), 2)
    assert rows["time"].tolist() == [0, 1, 0, 1, 2]
    assert rows["length"].tolist() == [2, 2, 3, 3, 3]
    assert rows["solved"].tolist() == [YES, YES, NO, NO, NO]
    assert rows["task"].tolist() == [0, 0, 1, 1, 1]
    assert rows["forced"].tolist() == [NO, NO, NO, NO, YES]


def test_the_recorded_success_counts_more_than_the_end(tmp_path: Path) -> None:
    recorded = replace(table(), success=torch.tensor([NO, NO, YES, YES, YES]))
    assert recorded.solved().tolist() == [NO, NO, YES, YES, YES]
    recorded.save(tmp_path / "file.safetensors")
    again = rl.Demonstrations.load(tmp_path / "file.safetensors")
    assert again.solved().tolist() == recorded.solved().tolist()
    assert again.intervention is not None
    assert again.intervention.tolist() == [NO, NO, NO, NO, YES]
    assert replace(table(), terminated=None).solved().all()
    assert recorded.chosen(recorded.solved()).action.tolist() == table().action[2:].tolist()


def test_joined_tables_keep_their_episodes_apart(tiny_policy: Callable) -> None:
    own = of_rollout(rollout_of([[NO, YES], [YES, YES]], [[NO, YES], [NO, NO]]), tiny_policy())
    both = join(own, own)
    assert both["episode"].tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    marked = own.copy().set("action_is_pad", torch.ones(4, 2, dtype=torch.bool))
    padding: Tensor = join(marked, own)["action_is_pad"]
    assert padding.all(1).tolist() == [YES] * 4 + [NO] * 4
    assert len(join(own, TensorDict({}, [0]))) == 4


@pytest.mark.parametrize(
    ("capacity", "kept"), [(10, [0, 0, 1, 2, 3, 3]), (5, [1, 2, 3, 3]), (2, [3, 3]), (1, [3, 3])]
)
def test_the_oldest_whole_episodes_are_dropped(capacity: int, kept: list[int]) -> None:
    rows = TensorDict({"episode": torch.tensor([0, 0, 1, 2, 3, 3])}, [6])
    assert newest(rows, capacity)["episode"].tolist() == kept


def test_attempts_err_in_a_share_of_their_segments() -> None:
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=20, num_workers=0))
    tables = {e: collect_attempts(env, 40, 0, error_share=e, segment=3) for e in (0.0, 0.7, 1.0)}
    rates = {e: float(t.solved().float().mean()) for e, t in tables.items()}
    assert rates[0.0] == 1.0
    assert rates[0.0] > rates[0.7] > rates[1.0]
    assert tables[0.7].num_episodes == 40
    action = tables[1.0].action
    assert torch.equal(action[0], action[1])  # an error lasts for its segment
    again = collect_attempts(env, 40, 0, error_share=0.7, segment=3)
    assert torch.equal(again.action, tables[0.7].action)
    env.spec = replace(env.spec, success_signal=False)
    with pytest.raises(ValueError, match="mock/Reach reports no success, which the episodes are"):
        collect_attempts(env, 1, 0, error_share=0.5)
