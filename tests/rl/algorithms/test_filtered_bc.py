"""`filtered_bc`: which decisions are cloned, and what is learned from them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict

from pitune import rl
from pitune.rl import FilteredBC, FilteredBCConfig

YES, NO = True, False


def rollout_of(done: list[list[bool]], success: list[list[bool]]) -> TensorDict:
    """Return a rollout (E, T) whose states number its decisions 10 * environment + time."""
    flags = torch.tensor(done)[..., None], torch.tensor(success)[..., None]
    num_envs, num_chunks = flags[0].shape[:2]
    number = 10 * torch.arange(num_envs)[:, None] + torch.arange(num_chunks)
    chain = torch.zeros(num_envs, num_chunks, 3, 2, 2)
    chain[..., -1, :, :] = number[..., None, None] / 10
    chain[..., -1, 1, 1] = -1.0
    state = number[..., None].expand(-1, -1, 4).float()
    return TensorDict(
        {
            "model_input": {"state": state, "robot_state": state},
            "chain": chain,
            "next": {"done": flags[0], "success": flags[1]},
        },
        batch_size=[num_envs, num_chunks],
    )


def test_exactly_the_decisions_that_led_to_success_are_cloned(tiny_policy: Callable) -> None:
    rollout = rollout_of(
        done=[
            [NO, NO, YES, NO, NO],  # success at 2, then an episode that goes on
            [NO, YES, NO, NO, YES],  # failure at 1, then success at 4
            [YES, YES, YES, NO, YES],  # one-decision episodes
            [NO, NO, NO, NO, NO],  # nothing ends
        ],
        success=[
            [NO, NO, YES, NO, NO],
            [NO, NO, NO, NO, YES],
            [YES, NO, YES, NO, NO],
            [NO, NO, NO, NO, NO],
        ],
    )
    algorithm = FilteredBC(FilteredBCConfig(), tiny_policy())
    chosen = algorithm.successes(rollout)
    assert chosen["model_input", "state"][:, 0].tolist() == [0, 1, 2, 12, 13, 14, 20, 22]


def test_the_target_is_the_sampled_chunk_in_robot_units(tiny_policy: Callable) -> None:
    policy = tiny_policy(executed=1)
    algorithm = FilteredBC(FilteredBCConfig(), policy)
    chosen = algorithm.successes(rollout_of([[NO, YES]], [[NO, YES]]))
    scale, offset = policy.preprocessor.action_scale, policy.preprocessor.action_offset
    normalized = torch.tensor([[[0.0, 0.0], [0.0, -1.0]], [[0.1, 0.1], [0.1, -1.0]]])
    assert torch.allclose(chosen["action"], normalized * scale + offset)
    assert chosen["action"].shape == (2, 2, 2)  # all H actions, though one is executed


def test_success_that_does_not_end_its_episode_is_not_yet_one(tiny_policy: Callable) -> None:
    algorithm = FilteredBC(FilteredBCConfig(), tiny_policy())
    chosen = algorithm.successes(rollout_of([[NO, NO, YES]], [[YES, NO, NO]]))
    assert len(chosen) == 0


def test_without_success_nothing_is_learned(tiny_policy: Callable) -> None:
    policy = tiny_policy()
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    algorithm = FilteredBC(FilteredBCConfig(), policy)
    metrics = algorithm.update(rollout_of([[NO, YES]], [[NO, NO]]))
    assert metrics == {"cloned_chunks": 0.0}
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())
    assert algorithm.num_updates == 1


def test_success_is_cloned(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    config = FilteredBCConfig(
        cloning=rl.BCConfig(learning_rate=3e-3, gradient_steps=10, minibatch_size=16)
    )
    algorithm = FilteredBC(config, tiny_policy())
    rollout = rollout_of([[NO, YES]] * 8, [[NO, YES]] * 8)
    losses = [algorithm.update(rollout)["flow_loss"] for _ in range(4)]
    assert losses[-1] < 0.8 * losses[0]


def test_averaged_weights_are_refused_and_none_are_kept(tiny_policy: Callable) -> None:
    with pytest.raises(ValueError, match=r"cloning\.ema_decay=0\.9 does not apply to filtered_bc"):
        FilteredBCConfig(cloning=rl.BCConfig(ema_decay=0.9))
    assert FilteredBC(FilteredBCConfig(), tiny_policy()).step.ema is None
