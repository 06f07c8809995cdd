"""Updates of an algorithm on ranks, and of one process on the union of their rows.

Random draws are the same: a rank draws for the rows of all ranks and keeps its own. Minibatches
hold all rows in their order. What differs is the order of sums.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies.flow import path
from pitune.rl import Algorithm, ranks
from pitune.rl.actor_critic.td import OffPolicy
from pitune.rl.algorithms.dgn_noise import DifferenceModel
from pitune.rl.datasets.demonstrations import RandomChunks
from pitune.rl.drift import drifted
from pitune.rl.experience.sub_dict import sub_dict

NUM_RANKS = 2
"""The union is that of so many ranks, whether they are processes or not."""


def mine(rows: Tensor) -> Tensor:
    """Return this rank's part of rows that were drawn for all ranks."""
    return rows.chunk(ranks.world())[ranks.rank()]


def _sized(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(*shape: Any, **options: Any) -> Tensor:
        sizes = tuple(shape[0]) if not isinstance(shape[0], int) else shape
        return mine(draw((ranks.world() * sizes[0], *sizes[1:]), **options))

    return drawn


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: draw(x.shape)


def same_draws(all_of_them: bool) -> None:
    """Replace the random draws of this process, which ends after the test.

    Args:
        all_of_them: Whether indices into a local table are all of its rows instead.
    """
    _draw_times_for_all(torch.rand)
    randn, rand = _sized(torch.randn), _sized(torch.rand)
    randint: Callable[..., Tensor] = torch.randint

    def index(*args: Any, **options: Any) -> Tensor:
        *limits, size = args
        if all_of_them:
            return torch.arange(limits[-1])
        return mine(randint(*limits, (ranks.world() * size[0], *size[1:]), **options))

    def in_order(*num: Any, **_: Any) -> Tensor:
        return torch.arange(*num)

    torch.randn, torch.rand, torch.randint = randn, rand, index
    torch.randn_like, torch.rand_like = _like(randn), _like(rand)
    torch.randperm = in_order
    masks = DifferenceModel.dropout_masks
    DifferenceModel.dropout_masks = lambda self, num_rows: [  # type: ignore[method-assign]
        mine(mask) for mask in masks(self, ranks.world() * num_rows)
    ]
    OffPolicy._sample_rows = _all_rows  # type: ignore[method-assign]
    draw = RandomChunks.draw

    def chunks(self: RandomChunks, size: int) -> TensorDictBase:
        # those of filtered_bc differ between ranks, and demonstrations do not
        return draw(self, size) if len(self) > 150 else self.chunks

    RandomChunks.draw = chunks  # type: ignore[method-assign]


def _draw_times_for_all(rand: Callable[..., Tensor]) -> None:
    """Replace the draws of flow times in all modules that have their function.

    They are powers of random numbers. Of 16 numbers they differ from those of 32 in the last bit,
    and the shortest period of the flow time's embedding multiplies the difference by 1,571.
    """
    draw = path.sample_flow_time

    def drawn(num: int, device: torch.device | None = None) -> Tensor:
        replaced, torch.rand = torch.rand, rand
        times = draw(ranks.world() * num, device)
        torch.rand = replaced
        return mine(times)

    for name, module in list(sys.modules.items()):
        if name.startswith("pitune.") and vars(module).get(draw.__name__) is draw:
            vars(module)[draw.__name__] = drawn


def _all_rows(self: OffPolicy) -> TensorDictBase:
    """Return the rows of all ranks in the order of the ranks, or those of this one."""
    num = self.config.minibatch_size // NUM_RANKS
    num_offline = round(self.config.offline_share * num)
    parts = []
    rows, demos = self.replay.all(), self.demonstrations
    for rank in range(NUM_RANKS) if ranks.world() == 1 else [ranks.rank()]:
        here = rank if ranks.world() == 1 else 0
        parts.append(rows[here * (num - num_offline) : (here + 1) * (num - num_offline)])
        if demos is not None:
            parts.append(demos.all()[rank * num_offline : (rank + 1) * num_offline])
    joined: TensorDictBase = TensorDict.cat(parts)
    return joined


def half_of(rollout: TensorDictBase) -> TensorDictBase:
    """Return this rank's environments of a rollout (E, T)."""
    num = len(rollout) // ranks.world()
    return sub_dict(rollout, slice(ranks.rank() * num, (ranks.rank() + 1) * num))


def alike(rollout: TensorDictBase) -> TensorDictBase:
    """Return a rollout (E, T) whose halves have the same ends, and the same successes.

    Every other episode succeeds, and rewards differ.
    """
    rollout = rollout.clone()
    if rollout.batch_size.numel() == 0:
        return rollout
    after, half = sub_dict(rollout, "next"), len(rollout) // NUM_RANKS
    names = ("done", "terminated", "truncated", "duration", "live", "elapsed")
    for name in names:
        after[name][half:] = after[name][:half]
    done = after["done"].squeeze(-1)
    number = done.long().cumsum(1) - done.long() + torch.arange(half).repeat(NUM_RANKS)[:, None]
    after["success"] = (done & (number % 2 == 0))[..., None]
    spread = 0.3 * torch.arange(len(done)).sqrt()[:, None, None]  # no two scores are equal
    after["reward_steps"] = after["reward_steps"] + spread
    return rollout


def updates(algorithm: Algorithm[Any], rollouts: list[TensorDictBase]) -> dict[str, Any]:
    """Return parameters after some updates, the gradients of each first step, and the metrics."""
    gradients: dict[str, list[Tensor]] = {}
    for name, optimizer in algorithm.optimizers.items():
        before_step(optimizer, name, gradients)
    metrics = []
    for number, rollout in enumerate(rollouts):
        torch.manual_seed(number)
        metrics.append(algorithm.update(half_of(rollout)))
    state = {f"policy.{k}": v for k, v in algorithm.actor.policy.state_dict().items()}
    for name, network in algorithm.networks.items():
        state |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    names = drifted(state)
    parameters = {key: value.detach().clone() for key, value in state.items()}
    return {
        "parameters": parameters,
        "gradients": gradients,
        "metrics": metrics,
        "drifted": names,
    }


def before_step(
    optimizer: torch.optim.Optimizer, name: str, gradients: dict[str, list[Tensor]]
) -> None:
    """Keep the gradients of the first step of an optimizer."""

    def keep(*_: Any) -> None:
        if name not in gradients:
            groups = optimizer.param_groups
            grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            gradients[name] = [grad.clone() for grad in grads]

    optimizer.register_step_pre_hook(keep)
