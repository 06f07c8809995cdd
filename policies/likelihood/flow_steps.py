"""Likelihoods whose flow steps are Gaussians: Flow-SDE, Flow-Noise and a Gaussian velocity.

Letters: N rows, M scored flow steps, K flow steps, H action horizon, A model action dim.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from pitune.policies.flow.kernels import FlowNoise, FlowSDE, Kernel
from pitune.policies.likelihood.config import (
    FlowNoiseConfig,
    FlowSDEConfig,
    FlowStepConfig,
    VelocityGaussianConfig,
)
from pitune.policies.likelihood.distributions import FlowChain
from pitune.policies.likelihood.heads import NoiseNetwork, VelocityHead
from pitune.policies.likelihood.registry import Draws, Likelihood, register_likelihood
from pitune.policies.network.context import Context
from pitune.policies.policy import FlowPolicy
from pitune.policies.under_delay import remainder_of

StepConfigType = TypeVar("StepConfigType", bound=FlowStepConfig)


class FlowStepLikelihood(Likelihood[StepConfigType]):
    """Chains of Gaussian flow steps, sampled and scored by one kernel.

    With `stochastic_steps="one"`, the random step of each decision is drawn and stored in the
    rollout as `stochastic_step` (N,).

    Example:
        >>> class Wide(FlowStepLikelihood[FlowSDEConfig]):
        ...     def kernel(self, mask):
        ...         return FlowSDE(2 * self.config.noise_level, mask)
    """

    @abstractmethod
    def kernel(self, mask: Tensor) -> Kernel:
        """Return the transition kernel with noise only where a mask is 1.

        Args:
            mask: (H, A) for all flow steps, or (K, H, A) for one of each.
        """

    @property
    def draw_keys(self) -> list[str]:
        return ["stochastic_step"] if self.config.stochastic_steps == "one" else []

    def draw(self, policy: FlowPolicy, num: int) -> dict[str, Tensor]:
        if self.config.stochastic_steps == "all":
            return {}
        steps = torch.randint(policy.grid.flow_steps, (num,), device=policy.device)
        return {"stochastic_step": steps}

    def distribution(
        self, policy: FlowPolicy, context: Context, num: int, draws: Draws
    ) -> FlowChain:
        step, mask = draws.get("stochastic_step", None), noise_mask(policy, self.config, context)
        step = None if step is None else step.to(policy.device)
        return FlowChain(
            policy.field(context),
            self.kernel(mask),
            policy.grid,
            self.config,
            step,
            (num, *policy.chunk_shape),
            num_scored=_num_scored(mask, step),
            device=policy.device,
        )

    def terminal_std(self, policy: FlowPolicy, context: Context, chain: Tensor) -> float:
        last = torch.full((len(chain),), policy.grid.flow_steps - 1, device=policy.device)
        dist = self.distribution(policy, context, len(chain), {"stochastic_step": last})
        dist.log_prob(chain)
        random = dist.scored_std > 0
        return float(dist.scored_std[random].mean())


def noise_mask(
    policy: FlowPolicy, config: FlowStepConfig, context: Context | None = None
) -> Tensor:
    """Return 1 where flow steps have noise: (H, A), or (K, H, A) if it depends on the step.

    A noise on all entries ends before the last step, whose other entries nothing depends on.

    Args:
        policy: Gives the executed entries.
        config: Which entries have noise.
        context: Observations (N). Under a decision delay the mask is that of each row,
            (N, 1, H, A) or (N, K, H, A), and the old chunk's actions have no noise.
    """
    executed = policy.executed_mask(context)  # (H, A) or (N, 1, H, A)
    remainder = None if context is None else remainder_of(context)
    if config.noise_entries == "executed" or (remainder is None and policy.executes_all):
        return executed
    num_steps = policy.grid.flow_steps
    mask = torch.ones(num_steps, *policy.chunk_shape, device=executed.device)
    if remainder is not None:  # all entries after the old chunk's actions
        is_old = remainder.is_frozen(policy.chunk_shape[0])  # (N, H)
        mask = mask * ~is_old[:, None, :, None]  # (N, K, H, A)
    mask[..., -1, :, :] = executed if remainder is None else executed[:, 0]
    return mask


def _num_scored(mask: Tensor, step: Tensor | None) -> Tensor:
    """Return the number of entries with noise, which broadcasts to (N, M).

    Args:
        mask: Of `noise_mask`.
        step: The random step of each row (N,), or None if all are random.
    """
    num = mask.sum((-2, -1))  # (), (K,), (N, 1) or (N, K)
    if step is None or num.ndim == 0 or num.shape[-1] == 1:
        return num
    return num[step][:, None] if num.ndim == 1 else num.gather(1, step[:, None])


@register_likelihood("flow_sde", FlowSDEConfig)
class FlowSDELikelihood(FlowStepLikelihood[FlowSDEConfig]):
    """Flow-SDE: the random flow steps have the same marginals as the ODE.

    Example:
        >>> likelihood = FlowSDELikelihood(FlowSDEConfig(), policy)  # doctest: +SKIP
    """

    def kernel(self, mask: Tensor) -> Kernel:
        return FlowSDE(self.config.noise_level, mask)


@register_likelihood("flow_noise", FlowNoiseConfig)
class FlowNoiseLikelihood(FlowStepLikelihood[FlowNoiseConfig]):
    """Flow-Noise: a network of the expert's features learns the bounded noise of the flow steps.

    Example:
        >>> likelihood = FlowNoiseLikelihood(FlowNoiseConfig(), policy)  # doctest: +SKIP
        >>> likelihood.head.log_min < likelihood.head.log_max  # doctest: +SKIP
        True
    """

    head: NoiseNetwork

    def __init__(self, config: FlowNoiseConfig, policy: FlowPolicy) -> None:
        super().__init__(config, policy)
        network = policy.network.config
        self.head = NoiseNetwork(
            network.expert.width, network.action_dim, config.std_min, config.std_max
        )

    def kernel(self, mask: Tensor) -> Kernel:
        return FlowNoise(self.head, mask)


@register_likelihood("velocity_gaussian", VelocityGaussianConfig)
class VelocityGaussianLikelihood(FlowStepLikelihood[VelocityGaussianConfig]):
    """A Gaussian velocity with a learned, unbounded noise that starts constant.

    Example:
        >>> likelihood = VelocityGaussianLikelihood(VelocityGaussianConfig(), policy)
        ... # doctest: +SKIP
    """

    head: VelocityHead

    def __init__(self, config: VelocityGaussianConfig, policy: FlowPolicy) -> None:
        super().__init__(config, policy)
        network, dt = policy.network.config, policy.grid.dt
        self.head = VelocityHead(network.expert.width, network.action_dim, config.std, dt)

    def kernel(self, mask: Tensor) -> Kernel:
        return FlowNoise(self.head, mask)
