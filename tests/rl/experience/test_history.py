"""Histories: the decisions of the same episode before each one, and the memory that they write."""

from __future__ import annotations

import pytest
import torch
from memory_policies import memory_module, memory_policy, recall
from tensordict import TensorDict, TensorDictBase

from pitune import rl
from pitune.policies import LikelihoodActor
from pitune.policies.preprocessing.model_input import ModelInput
from pitune.policies.recurrence import HISTORY, IN_EPISODE, with_recalled_memory
from pitune.rl.experience.history import ChunksWithHistory, decisions_before, with_history
from pitune.rl.experience.sub_dict import sub_dict


@pytest.fixture(scope="module")
def played() -> tuple[rl.Algorithm, TensorDictBase]:
    """An algorithm with its second rollout, which begins in the midst of episodes."""
    torch.manual_seed(0)
    algorithm = rl.make(rl.PPOConfig(), memory_policy())
    rollouts = rl.Rollouts(recall(), algorithm, 10, seed=0)
    rollouts.collect()
    return algorithm, rollouts.collect()


def test_a_history_ends_where_the_episode_and_the_rollout_begin(
    played: tuple[rl.Algorithm, TensorDictBase],
) -> None:
    algorithm, rollout = played
    history = sub_dict(with_history(rollout, algorithm.actor.policy, 4), HISTORY)
    done = rollout["next", "done"].squeeze(-1)
    assert done.any()
    for env in range(4):
        for t in range(10):
            expected = [
                t - back >= 0 and not bool(done[env, t - back : t].any()) for back in (3, 2, 1)
            ]
            assert history[IN_EPISODE][env, t].tolist() == expected
            for j, back in enumerate((3, 2, 1)):
                if expected[j]:
                    found = history["model_input", "state"][env, t, j]
                    assert torch.equal(found, rollout["model_input", "state"][env, t - back])


def test_the_memory_that_a_history_writes_is_the_one_that_was_read(
    played: tuple[rl.Algorithm, TensorDictBase],
) -> None:
    algorithm, rollout = played
    policy = algorithm.actor.policy
    rows = with_history(rollout, policy, 4).reshape(-1)
    stored = rows["model_input", "memory"]
    with torch.no_grad():
        recalled = with_recalled_memory(policy, rows)["model_input", "memory"]
    assert float((recalled - stored).abs().max()) < 1e-6
    assert float(stored.abs().max()) > 0.1
    # the control: another writing recalls another memory where there is a history
    with torch.no_grad():
        memory_module(policy).write_slots.add_(1.0)
        other = with_recalled_memory(policy, rows)["model_input", "memory"]
        memory_module(policy).write_slots.sub_(1.0)
    moved = (other - stored).abs().amax((1, 2)) > 1e-4
    assert torch.equal(moved, rows[HISTORY, IN_EPISODE].any(1))


@pytest.mark.parametrize(("decisions", "reached"), [(1, False), (2, True), (4, True)])
def test_a_gradient_reaches_the_writing_through_a_history(
    played: tuple[rl.Algorithm, TensorDictBase], decisions: int, reached: bool
) -> None:
    algorithm, rollout = played
    actor = algorithm.actor
    assert isinstance(actor, LikelihoodActor)
    rows = with_history(rollout, actor.policy, decisions).reshape(-1)
    log_prob = actor.get_dist(rows).log_prob(rows["chain"])
    assert torch.allclose(log_prob, rows["action_log_prob"], atol=1e-3)
    writing = memory_module(actor.policy).candidate.weight
    (grad,) = torch.autograd.grad(log_prob.sum(), [writing], allow_unused=True)
    assert (grad is not None and bool(grad.any())) == reached


def test_only_the_last_decisions_have_a_gradient() -> None:
    policy = memory_policy()
    rows = TensorDict(
        {
            "model_input": {"state": torch.randn(3, 5), "robot_state": torch.randn(3, 5)},
            HISTORY: TensorDict(
                {
                    "model_input": {
                        "state": torch.randn(3, 4, 5),
                        "robot_state": torch.randn(3, 4, 5),
                    },
                    IN_EPISODE: torch.tensor([[False] * 4, [False, True, True, True], [True] * 4]),
                },
                [3, 4],
            ),
        },
        [3],
    )
    for num, expected in ((0, 0), (1, 1), (3, 3), (None, 4)):
        state = rows[HISTORY, "model_input", "state"].clone().requires_grad_()
        given = rows.clone()
        given[HISTORY, "model_input", "state"] = state
        memory = ModelInput.of(with_recalled_memory(policy, given, num)).memory
        assert memory is not None
        assert not memory[0].any()  # no decision before it
        if not expected:
            assert not memory.requires_grad
            continue
        (grad,) = torch.autograd.grad(memory.square().sum(), [state])
        reached = grad.abs().amax(-1) > 0  # (3, 4)
        assert reached[2].tolist() == [False] * (4 - expected) + [True] * expected
        assert not reached[0].any()


def test_the_decisions_before_a_demonstrated_step_begin_with_the_first_one() -> None:
    episode = torch.tensor([0] * 6 + [1] * 3)
    steps, there = decisions_before(episode, 2, None)
    found = [s[t].tolist() for s, t in zip(steps, there, strict=True)]
    assert found == [[], [0], [0], [0, 1], [0, 2], [0, 1, 3], [], [6], [6]]
    steps, there = decisions_before(episode, 2, 1)
    found = [s[t].tolist() for s, t in zip(steps, there, strict=True)]
    assert found == [[], [0], [0], [1], [2], [3], [], [6], [6]]


def test_drawn_chunks_have_the_memory_that_the_deployed_policy_would_have() -> None:
    """At steps that are decisions, the recalled memory is the one of acting in order."""
    policy = memory_policy()
    table = rl.collect_demonstrations(recall(), 3, seed=0).preprocess(policy)
    torch.manual_seed(0)
    rows = ChunksWithHistory(table.chunks(2), table, policy).draw(64)
    observed = table.obs["model_input"]
    assert isinstance(observed, TensorDictBase)
    state = observed["state"]
    with torch.no_grad():
        recalled = ModelInput.of(with_recalled_memory(policy, rows)).memory
        assert recalled is not None
        compared = 0
        for first in (table.episode == torch.arange(3)[:, None]).long().argmax(1).tolist():
            memory = policy.empty_memory(1)
            assert memory is not None
            length = int((table.episode == table.episode[first]).sum())
            for step in range(first, first + length, policy.sampler.execution_horizon):
                same = (rows["model_input", "state"] == state[step]).all(1)
                same &= (rows["action"] == table.chunks(2)["action"][step]).flatten(1).all(1)
                if step == first and same.any():
                    found = recalled[same][0]
                    assert torch.allclose(found, memory[0], atol=1e-6)
                    compared += 1
                if step >= first + 10 and same.any():  # states that occur once in an episode
                    assert (recalled[same] - memory).abs().amax((1, 2)).min() < 1e-5
                    compared += 1
                inputs = ModelInput.of(
                    TensorDict({"model_input": table.obs["model_input"][step : step + 1]}, [1])
                )
                inputs = type(inputs)(**{**vars(inputs), "memory": memory})
                memory = policy.encode(inputs).written
                assert memory is not None
    assert compared >= 3
