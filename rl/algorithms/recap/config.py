"""Settings of RECAP."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pitune.policies import FlowSDEConfig, LikelihoodConfig
from pitune.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from pitune.rl.algorithm import AlgorithmConfig
from pitune.rl.algorithms.bc import BCConfig
from pitune.rl.datasets.config import DataConfig
from pitune.rl.value_distribution import DistributionConfig

Indicator = Literal["advantage", "inverted", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class RecapConfig(AlgorithmConfig):
    """Clone all data under an indicator of its advantage, and act with the positive one.

    Raises:
        ValueError: a setting of cloning does not apply.

    Example:
        >>> RecapConfig(positive_share=0.3).value.num_bins
        201
    """

    demonstrations: Path = Path("demonstrations.safetensors")
    """File of recorded episodes, good and bad ones, or a LeRobot dataset: its folder, or its name
    on the hub."""
    data: DataConfig = field(default_factory=lambda: DataConfig(episodes="all"))
    """Features of a LeRobot dataset."""
    rollouts: bool = True
    """Whether the policy's own episodes are learned from too. Otherwise nothing is collected."""
    capacity: PositiveInt = 50_000
    """Greatest number of own decisions that are kept. The oldest episodes are dropped."""
    likelihood: LikelihoodConfig = field(default_factory=FlowSDEConfig)
    """Exploration noise of the rollouts."""
    positive_share: Annotated[float, Range(low=0, low_open=True, high=1, high_open=True)] = 0.4
    """Share of each task's decisions with a positive indicator, those of the greatest advantages
    [-]. The paper has about 0.3 in pre-training and 0.4 in fine-tuning."""
    advantage_steps: PositiveInt | None = 50
    """Control steps of the advantage before the value of a later observation takes over. None is
    the rest of the episode."""
    failure_cost: NonNegativeFloat = 1.0
    """Cost of a failed end, beside the cost of its steps [longest episodes]."""
    indicator: Indicator = "advantage"
    """Indicator of the data. "inverted" and "shuffled" are controls that must not learn."""
    guidance_scale: Annotated[float, Range(low=-1)] | None = None
    """Scale of the guidance towards the positive indicator, see `sampler.guidance.scale`. The
    policy's own by default."""
    value: DistributionConfig = field(
        default_factory=lambda: DistributionConfig(form="nearest", num_bins=201, low=-1.0, high=0.0)
    )
    """Bins of the value, whose returns lie in [-1, 0]."""
    value_learning_rate: PositiveFloat = 1e-3
    """Adam's step size for the value [-]."""
    value_steps: NonNegativeInt = 200
    """Gradient steps of the value per update."""
    value_minibatch_size: PositiveInt = 256
    """Decisions per gradient step of the value."""
    cloning: BCConfig = field(
        default_factory=lambda: BCConfig(
            learning_rate=3e-4, decay_steps=0, final_fraction=1.0, condition_dropout=0.3
        )
    )
    """Step size, minibatch and gradient steps per update, and the share of dropped indicators. Its
    demonstrations are not used, and weights are not averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cloning.ema_decay:
            raise ValueError(
                f"cloning.ema_decay={self.cloning.ema_decay} does not apply to recap, which "
                "deploys the weights that it trains; leave it out"
            )
        if self.cloning.status.weight:
            raise ValueError(
                f"cloning.status.weight={self.cloning.status.weight} does not apply to recap, "
                "whose decisions have no labels of the status; leave it out, or clone a "
                "demonstrations.safetensors (pitune pretrain, bc)"
            )
        if not self.value.used or self.value.low > -1 or self.value.high < 0:
            raise ValueError(
                f"value={self.value} must have bins from at most -1 to at least 0, where the "
                'returns of recap lie; set value.form="nearest", value.low=-1 and value.high=0'
            )

    @property
    def policy_minibatch(self) -> int:
        return self.cloning.policy_minibatch

    def with_demonstrations(self, file: Path) -> RecapConfig:
        return replace(self, demonstrations=file)
