"""Settings of the off-policy learners' memory and critics.

Letters: Q critics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pitune.ranges import Finite, NonNegativeInt, PositiveFloat, PositiveInt, Range
from pitune.rl.actor_critic.q_ensemble import Pessimism
from pitune.rl.config import MinibatchConfig, ReturnConfig, TimeLimit
from pitune.rl.datasets.config import DataConfig
from pitune.rl.value_distribution import DistributionConfig


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(ReturnConfig, MinibatchConfig):
    """Replay memory, critics, and the number of gradient steps per decision.

    Example:
        >>> OffPolicyConfig(updates_per_decision=0.5).time_limit
        'bootstrap'
    """

    capacity: PositiveInt = 200_000
    """Greatest number of decisions in the replay memory. When it is full, the oldest are
    overwritten."""
    memory_gib: PositiveFloat = 4.0
    """Greatest size of the replay memory and the demonstrations in it, which bounds the capacity
    [GiB]."""
    memory_folder: Path | None = None
    """Folder of a replay memory in files, or None for the memory of the policy's device. Saving a
    checkpoint copies all rows through main memory."""
    minibatch_size: PositiveInt = 256
    """Decisions per gradient step."""
    warmup_decisions: NonNegativeInt = 2000
    """Decisions of the pretrained policy before the first gradient step, in whole rollouts."""
    warmup_rounds: NonNegativeInt = 500
    """Rounds of gradient steps at the end of the warm-up."""
    updates_per_decision: PositiveFloat = 0.25
    """Update-to-data ratio: rounds of gradient steps per decision, counted after the warm-up."""
    num_critics: PositiveInt = 2
    """Q."""
    critic_subset: NonNegativeInt = 0
    """Number of random critics in a target (REDQ). 0 takes all."""
    pessimism: Pessimism = "min"
    """Reduction over these critics."""
    hidden: tuple[PositiveInt, ...] = (256, 256)
    """Widths of the critics' hidden layers."""
    critic_distribution: DistributionConfig = field(default_factory=DistributionConfig)
    """Bins of critics that predict a distribution of values. By default they predict a number."""
    critic_learning_rate: PositiveFloat = 3e-4
    """Adam's step size for the critics [-]."""
    target_update_rate: Annotated[float, Range(low=0, low_open=True, high=1)] = 0.005
    """Share by which the target critics move towards the critics per gradient step [-]."""
    reward_scale: Finite = 1.0
    """Factor of each step's reward [-]."""
    reward_offset: Finite = 0.0
    """Offset of each step's scaled reward [reward]. -1 makes a sparse reward a cost of time."""
    time_limit: TimeLimit = "bootstrap"
    """Whether the time limit ends the task, or values continue past it."""
    demonstrations: Path = Path("demonstrations.safetensors")
    """File from `pitune.experiments.pretrain`, or a LeRobot dataset: its folder, or its name on
    the hub. It is loaded only if another setting needs it."""
    data: DataConfig = field(default_factory=DataConfig)
    """Features of a LeRobot dataset."""
    offline_share: Annotated[float, Range(low=0, high=1, high_open=True)] = 0.0
    """Share of each minibatch from the demonstrations (RLPD: 0.5) [-]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offline_share and self.time_limit == "terminal":
            raise ValueError(
                "time_limit='terminal' needs the used time of every decision, which demonstrations "
                "do not record; pass offline_share=0 or time_limit='bootstrap'"
            )
        if not 0 <= self.critic_subset <= self.num_critics:
            raise ValueError(
                f"critic_subset={self.critic_subset} must be between 0 (all) and "
                f"num_critics={self.num_critics}"
            )
