"""The size of a replay memory, planned before anything is played.

A decision of a small policy takes some hundred bytes, and the memory has the capacity that is asked
for. Encoded pictures and prompts of π0 take 30 MB, its pictures 1 MB, and the memory's budget
decides. The plan depends on settings and sizes alone, never on the machine.
"""

from __future__ import annotations

import shutil
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase

from pitune.policies import FlowPolicy
from pitune.policies.finetuning.memory import GIB, available_bytes, example_input, readable
from pitune.policies.network.context import pack
from pitune.rl import ranks
from pitune.rl.actor_critic.learner_config import ActorCriticConfig
from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig

LEAST_ENCODED = 10_000
"""Decisions that a memory with encoded observations must hold. A smaller one has pictures."""


class MemoryPlan(NamedTuple):
    """Rows of a memory.

    Example:
        >>> MemoryPlan(capacity=100, row_bytes=2**20, encoded=False).encoded
        False
    """

    capacity: int
    """Greatest number of decisions."""
    row_bytes: int
    """Size of a decision [bytes]."""
    encoded: bool
    """Whether rows hold encoded observations."""
    notes: tuple[str, ...] = ()
    """A note if the memory differs from the settings."""


def plan_memory(
    config: OffPolicyConfig,
    device: torch.device,
    *,
    plain: int,
    encoded: int | None = None,
    num_demonstrations: int = 0,
) -> MemoryPlan:
    """Return the rows of a memory that fits its budget.

    Args:
        config: Settings of the memory.
        device: Of the memory.
        plain: Size of a decision with observations [bytes].
        encoded: Size of a decision with encoded observations [bytes], or None if they are not to be
            stored.
        num_demonstrations: Demonstrated decisions that are stored too.

    Raises:
        ValueError: too few decisions fit, or they do not fit the machine.
    """
    least = ranks.share(max(config.warmup_decisions, config.minibatch_size))
    wanted_capacity = ranks.share(config.capacity)
    choices = [(plain, False, least)]
    if encoded is not None:
        choices.insert(0, (encoded, True, max(least, LEAST_ENCODED)))
    for row_bytes, is_encoded, wanted in choices:
        fitting = wanted_capacity
        if config.memory_folder is None:
            fitting = int(config.memory_gib * GIB) // row_bytes - num_demonstrations
        capacity = min(wanted_capacity, fitting)
        if capacity >= min(wanted_capacity, wanted):
            plan = MemoryPlan(capacity, row_bytes, is_encoded)
            if capacity < wanted_capacity or is_encoded != (encoded is not None):
                plan = plan._replace(notes=(_note(plan, config),))
            _check_machine(plan, config, device, num_demonstrations)
            return plan
    needed = readable((least + num_demonstrations) * plain)
    raise ValueError(
        f"off_policy.memory_gib={config.memory_gib:g} holds {max(0, fitting):,} decisions of "
        f"{readable(plain)} beside {num_demonstrations:,} demonstrated ones, but "
        f"warmup_decisions={config.warmup_decisions} and minibatch_size={config.minibatch_size} "
        f"need {needed}; raise off_policy.memory_gib, or lower off_policy.warmup_decisions"
    )


def _note(plan: MemoryPlan, config: OffPolicyConfig) -> str:
    """Return the number of decisions that fit, and their content."""
    content = "encoded observations" if plan.encoded else "not encoded"
    return (
        f"replay memory: {plan.capacity:,} of capacity={config.capacity:,} decisions ({content}, "
        f"{readable(plan.row_bytes)} each) fit off_policy.memory_gib={config.memory_gib:g}"
    )


def _check_machine(
    plan: MemoryPlan, config: OffPolicyConfig, device: torch.device, num_demonstrations: int
) -> None:
    """Raise ValueError if the planned rows do not fit the device, or the disk of their folder."""
    needed = (plan.capacity + num_demonstrations) * plan.row_bytes
    if config.memory_folder is None:
        place, free = f"the device {str(device)!r}", available_bytes(device)
        option = "lower off_policy.memory_gib, or pass off_policy.memory_folder"
    else:
        folder = config.memory_folder.absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        place, free = f"the disk of {folder}", shutil.disk_usage(existing).free
        option = "lower off_policy.capacity"
    if needed > free:
        raise ValueError(
            f"the replay memory of {plan.capacity:,} decisions needs {readable(needed)}, but "
            f"{readable(free)} are free on {place}; {option}"
        )


def row_bytes(observation: TensorDictBase, decision_dim: int, num_steps: int) -> int:
    """Return the size of a transition of two observations [bytes].

    Args:
        observation: Stored entries of one observation (1).
        decision_dim: Numbers of the stored decision.
        num_steps: Executed steps, each with a reward and a flag.
    """
    stored = sum(value.nbytes for value in observation.flatten_keys(".").values())
    flags_and_times = 32
    return 2 * stored + 4 * decision_dim + 5 * num_steps + flags_and_times


@torch.no_grad()
def learner_plan(
    policy: FlowPolicy, config: ActorCriticConfig, chunk_dim: int, num_demonstrations: int
) -> MemoryPlan:
    """Return the size of the memory of an actor-critic, from the size of one observation.

    Args:
        policy: The trained policy.
        config: Settings of the learner.
        chunk_dim: Numbers of an executed chunk.
        num_demonstrations: Demonstrated decisions that are stored too.
    """
    inputs, num_steps = example_input(policy), policy.sampler.execution_horizon
    plain = TensorDict({"model_input": inputs.tensordict()}, [1])
    encoded = None
    if config.keep_prefix and policy.prefix_is_frozen:
        small = inputs.tensordict().exclude("images", "tokens", "token_mask")
        prefix = pack(policy.encode_prefix(inputs))
        rows = TensorDict({"model_input": small, "prefix": prefix}, [1])
        encoded = row_bytes(rows, chunk_dim, num_steps)
    return plan_memory(
        config.off_policy,
        policy.device,
        plain=row_bytes(plain, chunk_dim, num_steps),
        encoded=encoded,
        num_demonstrations=num_demonstrations,
    )
