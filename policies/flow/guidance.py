"""Classifier-free guidance: a velocity that is pushed away from the one without the condition.

With v the velocity under the condition, u the one with the condition dropped and s the scale:

    v <- v + s * (v - u)

0 is the condition alone, -1 drops it, and s + 1 is the weight of the papers. Adaptive projected
guidance (APG) splits the difference v - u into a part along the prediction and the rest, and keeps
only a share of the first, which mostly enlarges the actions. The prediction is the clean chunk
x - t * v, or the velocity itself. It may also average the difference over the flow steps and bound
its size.

Guidance is part of the velocity and so of each transition's mean: the ratio of a likelihood is 1
before the first update. The average over flow steps is the exception, because a step's mean then
depends on the earlier ones. It is for deployed policies alone.

Letters: N rows, M scored flow steps, H action horizon, A model action dim.
Sources: Ho & Salimans 2022; Sadat et al. 2024 (APG).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from pitune.policies.flow.path import FlowOutput, VelocityField, predicted_action
from pitune.ranges import NonNegativeFloat, PositiveFloat, Range, Settings

Indicator = Literal["positive", "negative", "dropped"]
LEAST_TIME = 1e-3
"""Flow times below this count as this in the size of a clean difference."""


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig(Settings):
    """Conditions that a policy acts with, and guidance towards them.

    Raises:
        ValueError: a setting of APG is given without it.

    Example:
        >>> GuidanceConfig(scale=0.5).form
        'cfg'
    """

    scale: Annotated[float, Range(low=-1)] = 0.0
    """s [-]: 0 acts with the condition alone, above 0 with more weight on it, -1 without it."""
    form: Literal["cfg", "apg"] = "cfg"
    """Classifier-free guidance, or adaptive projected guidance."""
    advantage: Indicator = "positive"
    """Advantage that a policy with an advantage token acts with."""
    parallel: NonNegativeFloat = 0.0
    """Share of the part along the prediction that is kept (APG). 1 is classifier-free guidance."""
    apg_space: Literal["clean", "flow"] = "clean"
    """Prediction that the parts are relative to (APG): the clean chunk, or the velocity."""
    momentum: Annotated[float, Range(low=-1, high=1, low_open=True, high_open=True)] = 0.0
    """Weight of the earlier flow steps' differences in a running sum (APG) [-]. The paper's is
    negative. Only for deployed policies."""
    norm_limit: PositiveFloat | None = None
    """Greatest norm of a row's difference in the space of `apg_space` (APG) [normalized action], or
    None for no bound."""
    gradient: Literal["both", "conditional"] = "both"
    """Whether a gradient flows through both velocities, or not through the dropped condition's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = GuidanceConfig.__dataclass_fields__
        names = ("parallel", "apg_space", "momentum", "norm_limit")
        given = [name for name in names if getattr(self, name) != plain[name].default]
        if self.form == "cfg" and given:
            raise ValueError(
                f"{', '.join(given)} belong to form='apg', but form='cfg'; set form='apg', or "
                "leave them out"
            )


def parts_of(difference: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts (N, M, H, A) of a difference along a reference and orthogonal to it.

    The projection is of each row's whole chunk, in float64. The parts add up to the difference.

    Args:
        difference: (N, M, H, A).
        reference: (N, M, H, A). Where it is 0 there is no part along it.
    """
    # (N, M, H, A) -> (N, M, H * A)
    flat, along = (value.double().flatten(-2) for value in (difference, reference))
    size = along.square().sum(-1, keepdim=True)  # (N, M, 1)
    share = (flat * along).sum(-1, keepdim=True) / size.clamp(min=torch.finfo(size.dtype).tiny)
    parallel = (share * along).unflatten(-1, difference.shape[-2:])
    return parallel.to(difference), (difference.double() - parallel).to(difference)


class GuidedField:
    """The velocity field of guidance. One with momentum is for a single pass from noise to action.

    Args:
        conditional: Field under the condition.
        dropped: Field with the condition dropped.
        config: Scale and form.

    Example:
        >>> toward = lambda x, flow_time: FlowOutput(x)
        >>> away = lambda x, flow_time: FlowOutput(torch.zeros_like(x))
        >>> field = GuidedField(toward, away, GuidanceConfig(scale=1.0))
        >>> field(torch.ones(1, 1, 1, 1), torch.ones(1, 1)).velocity.item()
        2.0
    """

    def __init__(
        self, conditional: VelocityField, dropped: VelocityField, config: GuidanceConfig
    ) -> None:
        self.conditional, self.dropped, self.config = conditional, dropped, config
        self._running: Tensor | None = None

    def __call__(self, x: Tensor, flow_time: Tensor) -> FlowOutput:
        """Return the guided velocity (N, M, H, A), and the conditional field's features."""
        output = self.conditional(x, flow_time)
        # dropped condition, with a gradient only where the settings ask for it
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.gradient == "both"):
            other = self.dropped(x, flow_time).velocity
        velocity = output.velocity
        difference = velocity - other
        if self.config.form == "apg":
            difference = self._projected(difference, velocity, x, flow_time)
        return output._replace(velocity=velocity + self.config.scale * difference)

    def _projected(self, difference: Tensor, velocity: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """Return APG's difference of velocities (N, M, H, A)."""
        config = self.config
        t = time[..., None, None] if time.ndim == 2 else time[..., None]  # (N, M, 1 or H, 1)
        is_clean = config.apg_space == "clean"
        reference = predicted_action(x, velocity, t) if is_clean else velocity

        # sum over the flow steps and bound of the size, in units of the space
        unit = t.clamp(min=LEAST_TIME) if is_clean else torch.ones_like(t)
        difference = difference * unit
        if config.momentum:
            if self._running is not None:
                difference = difference + config.momentum * self._running
            self._running = difference
        if config.norm_limit is not None:
            # (N, M, H, A) -> (N, M, 1, 1)
            norm = difference.flatten(-2).norm(dim=-1)[..., None, None]
            difference = difference * (config.norm_limit / norm.clamp(min=1e-12)).clamp(max=1)

        # the part across in full, of the other one a share, both as velocities again
        along, across = parts_of(difference, reference)
        return (across + config.parallel * along) / unit
