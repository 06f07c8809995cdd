"""Likelihoods of the finished chunk, with deterministic flow steps.

Letters: N rows, H action horizon, A model action dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitune.policies.flow.path import TimeGrid, sample_flow_time
from pitune.policies.likelihood.config import DrawTimes, ExactFlowConfig, FlowMatchingConfig
from pitune.policies.likelihood.distributions import ExactFlow, LossRatio
from pitune.policies.likelihood.registry import Draws, Likelihood, register_likelihood
from pitune.policies.network.context import Context
from pitune.policies.policy import FlowPolicy
from pitune.policies.under_delay import remainder_of


@register_likelihood("flow_matching", FlowMatchingConfig)
class FlowMatchingLikelihood(Likelihood[FlowMatchingConfig]):
    """FPO: minus the flow-matching loss, at noise and flow times that are drawn when acting.

    The draws are `draw_noise` (N, draws, H, A) and `draw_time` (N, draws).

    Example:
        >>> likelihood = FlowMatchingLikelihood(FlowMatchingConfig(), policy)  # doctest: +SKIP
        >>> likelihood.draw_keys  # doctest: +SKIP
        ['draw_noise', 'draw_time']
    """

    @property
    def draw_keys(self) -> list[str]:
        return ["draw_noise", "draw_time"]

    def draw(self, policy: FlowPolicy, num: int) -> dict[str, Tensor]:
        shape = (num, self.config.num_draws)
        noise = torch.randn(*shape, *policy.chunk_shape, device=policy.device)
        time = draw_flow_times(shape, self.config.draw_times, policy.grid)
        return {"draw_noise": noise, "draw_time": time.to(policy.device)}

    def distribution(
        self, policy: FlowPolicy, context: Context, num: int, draws: Draws
    ) -> LossRatio:
        noise, time = draws.get("draw_noise", None), draws.get("draw_time", None)
        if noise is None or time is None:
            raise ValueError(
                "the flow_matching likelihood scores at the draws that were made when acting; the "
                "input has no draw_noise and draw_time, pass the entries that the actor wrote"
            )
        mask = policy.executed_mask(context)
        field = policy.field(context)
        return LossRatio(field, policy.grid, self.config, noise.to(mask), time.to(mask), mask)

    def terminal_std(self, policy: FlowPolicy, context: Context, chain: Tensor) -> float:
        return self.config.action_noise


@register_likelihood("ode", ExactFlowConfig)
class ExactFlowLikelihood(Likelihood[ExactFlowConfig]):
    """The exact density of the deployed flow by change of variables, without a gradient.

    Example:
        >>> likelihood = ExactFlowLikelihood(ExactFlowConfig(), policy)  # doctest: +SKIP
    """

    def __init__(self, config: ExactFlowConfig, policy: FlowPolicy) -> None:
        if policy.network.config.options.prediction.output == "action":
            raise ValueError(
                "the exact density needs the velocity at flow time 0, and a network with "
                "options.prediction.output='action' has none there; take another likelihood"
            )
        super().__init__(config, policy)

    def distribution(
        self, policy: FlowPolicy, context: Context, num: int, draws: Draws
    ) -> ExactFlow:
        shape, sampler = (num, *policy.chunk_shape), policy.sampler
        remainder, given = remainder_of(context), None
        if remainder is not None and sampler.delay.seam == "real_time":
            if sampler.real_time is not None and sampler.real_time.method == "guided":
                raise ValueError(
                    "real_time.method='guided' has no exact density, because its correction is "
                    "detached; take method='trained', or another likelihood"
                )
            given = remainder.is_frozen(shape[1])
        field = policy.field(context)
        return ExactFlow(field, policy.grid, self.config, shape, policy.device, given)


def draw_flow_times(shape: tuple[int, int], law: DrawTimes, grid: TimeGrid) -> Tensor:
    """Return flow times (N, draws) of a flow-matching loss.

    Sources: openpi for its training distribution, FPO for the sampler's grid, FPO++ for uniform
    flow times.
    """
    num = math.prod(shape)
    if law == "training":
        return sample_flow_time(num).reshape(shape)
    if law == "grid":
        return grid.times()[torch.randint(grid.flow_steps, shape)]
    return 0.005 + 0.99 * torch.rand(shape)
