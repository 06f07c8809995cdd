"""Settings that all kinds of algorithms share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pitune.ranges import (
    DiscountFactor,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Range,
    Settings,
)

TimeLimit = Literal["terminal", "bootstrap"]


@dataclass(frozen=True, kw_only=True)
class ReturnConfig(Settings):
    """Weight of future rewards.

    Example:
        >>> ReturnConfig(discount=0.9).time_limit
        'terminal'
    """

    discount: DiscountFactor = 0.99
    """Discount per environment step, not per chunk [-]."""
    time_limit: TimeLimit = "terminal"
    """Whether the time limit ends the task, or values continue past it."""


@dataclass(frozen=True, kw_only=True)
class PrefixConfig(Settings):
    """Memory for encoded observations.

    Example:
        >>> PrefixConfig(prefix_gib=8.0).prefix_host_gib
        32.0
    """

    prefix_gib: NonNegativeFloat = 4.0
    """Memory for the encoded pictures and prompts of a rollout [GiB]. With a frozen VLM each
    observation is then encoded once instead of in every gradient step. 0 disables it."""
    prefix_host_gib: NonNegativeFloat = 32.0
    """Memory of the host for those of a rollout that needs more than `prefix_gib` [GiB]. They are
    copied to the device in each gradient step. 0 encodes again instead."""


@dataclass(frozen=True, kw_only=True)
class MemoryGradientConfig(Settings):
    """Gradient of a policy's memory.

    Example:
        >>> MemoryGradientConfig(memory_decisions=8).memory_decisions
        8
    """

    memory_decisions: PositiveInt = 4
    """Decisions of an episode that a gradient flows through, with the present one, for a policy
    with a memory (options.memory). The memory that the first of them read is a number. 1 does not
    train the writing."""


@dataclass(frozen=True, kw_only=True)
class CloningDrawsConfig(MemoryGradientConfig):
    """Random draws of a minibatch of chunks, and the decisions before them that write a memory.

    Example:
        >>> CloningDrawsConfig(immiscible_noise=True).draws_per_chunk
        1
    """

    draws_per_chunk: PositiveInt = 1
    """Draws of noise and flow time for each chunk of a minibatch. They share the encoding of the
    observation, which takes most of the time where there are pictures."""
    immiscible_noise: bool = False
    """Whether the noise of a minibatch is assigned to its chunks so that the squared distances are
    least. The noise then depends on the chunk, and through it on the observation: a bias that grows
    with the minibatch."""
    picture_shift: NonNegativeInt = 0
    """Greatest random shift of a picture [pixels], a fresh one in each gradient step. 0 is none."""
    condition_dropout: Annotated[float, Range(low=0, high=1, high_open=True)] = 0.0
    """Share of each kind of condition (`options.conditioning`) that is dropped [-]."""
    memory_burn_in: PositiveInt | None = None
    """Greatest number of decisions before a chunk that write its memory, for a policy with one. By
    default they are all from the episode's beginning on, of which each costs an encoding."""


@dataclass(frozen=True, kw_only=True)
class MinibatchConfig(Settings):
    """Rows of one gradient step.

    Example:
        >>> MinibatchConfig(minibatch_size=64, num_parts=4).num_parts
        4
    """

    minibatch_size: PositiveInt = 512
    """Chunk decisions per gradient step."""
    num_parts: PositiveInt = 1
    """Number of parts of a minibatch. More parts need less memory and give the same gradient, up to
    rounding."""

    @property
    def part_size(self) -> int:
        """Decisions of one part of a minibatch."""
        return -(-self.minibatch_size // self.num_parts)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_parts > self.minibatch_size:
            raise ValueError(
                f"num_parts={self.num_parts} must be at most minibatch_size={self.minibatch_size}; "
                "a part holds at least one row"
            )
