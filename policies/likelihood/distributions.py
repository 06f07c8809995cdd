"""Distributions over chains from noise to action, for sampling and scoring.

Letters: N rows, M scored flow steps (K or 1), K flow steps, H action horizon, A model action dim.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributions import Distribution

from pitune.policies.flow.chain import sample_chain, score_chain
from pitune.policies.flow.kernels import Kernel
from pitune.policies.flow.ode import ode_log_likelihood
from pitune.policies.flow.path import TimeGrid, VelocityField, interpolate, target_velocity
from pitune.policies.likelihood.config import (
    ExactFlowConfig,
    FlowMatchingConfig,
    LikelihoodConfig,
)


class ActionDistribution(Distribution, ABC):
    """Chains from given noise, and log-probabilities of chains.

    Args:
        grid: Flow times.
        shape: (N, H, A).
        device: Device of the chains.

    Attributes:
        velocity: The network's velocity (N, M, H, A) at the points that were scored last.
        chosen: Entries (N, ...) of a decision besides its chain that scoring needs, by key. They
            exist after sampling.

    Example:
        >>> dist = actor.get_dist(batch)  # doctest: +SKIP
        >>> log_prob = dist.log_prob(batch["chain"])  # doctest: +SKIP
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own attribute
    velocity: Tensor
    chosen: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(self, grid: TimeGrid, shape: tuple[int, int, int], device: torch.device) -> None:
        self.grid, self.shape, self.device = grid, shape, device
        points = torch.Size([grid.flow_steps + 1, *shape[1:]])
        super().__init__(torch.Size(shape[:1]), points, validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return chains (N, K + 1, H, A) from fresh noise."""
        if len(sample_shape):
            raise ValueError(
                f"sample_shape={tuple(sample_shape)} is not supported; repeat the rows"
            )
        return self.sample_from(torch.randn(self.shape, device=self.device))

    def sample_from(self, noise: Tensor) -> Tensor:
        """Return chains (N, K + 1, H, A) from starting noise (N, H, A)."""
        return self.sample_and_log_prob(noise)[0]

    @abstractmethod
    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return chains (N, K + 1, H, A) from noise (N, H, A), and their log-probabilities."""


class FlowChain(ActionDistribution):
    """Distribution over chains (K + 1, H, A) of Gaussian flow steps, given encoded observations.

    Args:
        field: Velocity field of the rows.
        kernel: Transition kernel, which samples and scores.
        grid: Flow times.
        config: Reductions.
        stochastic_step: The random step of each row (N,), or None if all are random.
        shape: (N, H, A).
        num_scored: Random and scored entries of a point, or a tensor that broadcasts to (N, M).
        device: Device of the chains.

    Example:
        >>> from pitune.policies import FlowSDEConfig
        >>> from pitune.policies.flow.kernels import FlowSDE
        >>> from pitune.policies.flow.path import FlowOutput
        >>> dist = FlowChain(
        ...     lambda x, flow_time: FlowOutput(torch.zeros_like(x)),
        ...     FlowSDE(0.5, torch.ones(4, 2)),
        ...     TimeGrid(3),
        ...     FlowSDEConfig(),
        ...     None,
        ...     (5, 4, 2),
        ...     num_scored=8,
        ...     device=torch.device("cpu"),
        ... )
        >>> chain, log_prob = dist.sample_and_log_prob(torch.randn(5, 4, 2))
        >>> chain.shape, log_prob.shape
        (torch.Size([5, 4, 4, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        field: VelocityField,
        kernel: Kernel,
        grid: TimeGrid,
        config: LikelihoodConfig,
        stochastic_step: Tensor | None,
        shape: tuple[int, int, int],
        num_scored: int | Tensor,
        device: torch.device,
    ) -> None:
        self.field, self.kernel, self.config = field, kernel, config
        self.stochastic_step, self.num_scored = stochastic_step, num_scored
        super().__init__(grid, shape, device)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return chains from noise (N, H, A) and their log-probabilities, in one pass."""
        with torch.no_grad():
            chain, entries = sample_chain(
                self.field, noise, self.grid, self.kernel, self.stochastic_step
            )
        return chain, self._reduce(entries)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probabilities (N,) of chains, or (N, M) with `ratio="step"`."""
        self.scored = score_chain(self.field, value, self.grid, self.kernel, self.stochastic_step)
        self.velocity = self.scored.velocity
        return self._reduce(self.scored.log_prob)

    @property
    def scored_std(self) -> Tensor:
        """Standard deviation of the entries of the last scored chain (N, M, H, A)."""
        return self.scored.transition.std.expand_as(self.scored.transition.mean)

    def entropy(self) -> Tensor:
        """Return the mean entropy per random entry (N,) of the last scored chain.

        Only the entropy of a learned noise can be trained. Flow-SDE's is constant.
        """
        scored_std = self.scored_std
        random = scored_std > 0
        std = torch.where(random, scored_std, torch.ones_like(scored_std))
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)) * random
        return entropy.flatten(1).sum(-1) / random.flatten(1).sum(-1)  # (N, M, H, A) -> (N,)

    def _reduce(self, entries: Tensor) -> Tensor:
        """Return the log-probabilities (N,) or (N, M) of entries (N, M, H, A)."""
        steps = entries.sum((-2, -1))  # (N, M)
        if self.config.reduction == "mean":
            steps = steps / self.num_scored
        return steps.sum(-1) if self.config.ratio == "joint" else steps


class LossRatio(ActionDistribution):
    """FPO: minus the flow-matching loss in place of a log-probability.

    The value is not a log-density. Only the difference of two policies on the same draws has a
    meaning. The chain is the deployed flow's, and only its end is scored.
    Source: McAllister et al. 2025 (FPO): ratio = exp(old loss - new loss), averaged over draws.

    Args:
        field: Velocity field of the rows.
        grid: Flow times of the sampler.
        config: Space of the loss, and its reductions. `ratio="step"` is one ratio per draw.
        noise: Noise that was drawn when acting (N, draws, H, A).
        flow_time: The flow times of the draws (N, draws).
        mask: 1 for executed entries, (H, A), or (N, 1, H, A) for those of each row. The loss of the
            others is unrelated to the reward.

    Example:
        >>> from pitune.policies.flow.path import FlowOutput
        >>> dist = LossRatio(
        ...     lambda x, flow_time: FlowOutput(torch.zeros_like(x)),
        ...     TimeGrid(3),
        ...     FlowMatchingConfig(num_draws=6),
        ...     torch.randn(5, 6, 4, 2),
        ...     torch.rand(5, 6),
        ...     torch.ones(4, 2),
        ... )
        >>> dist.log_prob(torch.randn(5, 4, 4, 2)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        field: VelocityField,
        grid: TimeGrid,
        config: FlowMatchingConfig,
        noise: Tensor,
        flow_time: Tensor,
        mask: Tensor,
    ) -> None:
        self.field, self.config, self.mask = field, config, mask
        self.noise, self.flow_time = noise, flow_time
        n, _, h, a = noise.shape
        super().__init__(grid, (n, h, a), noise.device)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return chains from noise (N, H, A) and minus the losses of their ends, in two passes.

        The executed entries of the ends have `action_noise`, whose density is not needed.
        """
        with torch.no_grad():
            chain, _ = sample_chain(self.field, noise, self.grid)
            mask = self.mask if self.mask.ndim == 2 else self.mask[:, 0]
            chain[:, -1] += self.config.action_noise * torch.randn_like(noise) * mask
            return chain, self.log_prob(chain)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the loss (N,) of the chains' ends, or (N, draws) with `ratio="step"`."""
        action = value[:, -1:]  # (N, 1, H, A)
        time = self.flow_time[..., None, None]  # (N, draws, 1, 1)
        x = interpolate(action, self.noise, time)  # (N, draws, H, A)
        self.velocity = self.field(x, self.flow_time).velocity.float()
        error = (self.velocity - target_velocity(action, self.noise)).square() * self.mask
        if self.config.loss_space == "noise":  # the noise's error is (1 - t) times the velocity's
            error = error * (1 - time).square()
        loss = error.sum((-2, -1))
        if self.config.reduction == "mean":
            loss = loss / self.mask.sum((-2, -1))  # () or (N, 1)
        loss = loss.clamp(max=self.config.loss_clamp)
        return -loss.mean(1) if self.config.ratio == "joint" else -loss

    def entropy(self) -> Tensor:
        """Raise an error, because a loss has no entropy.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "the flow_matching likelihood has no entropy; set entropy_coefficient to 0"
        )


class ExactFlow(ActionDistribution):
    """The deployed flow's density by change of variables, without a gradient.

    Args:
        field: Velocity field of the rows.
        grid: Flow times of the sampler. The likelihood is integrated on a grid of 100 steps.
        config: Number of probes. `ratio="step"` adds an axis of length 1.
        shape: (N, H, A).
        device: Device of the chains.
        given: Whether a step is given and has no density (N, H). By default none is.

    Example:
        >>> from pitune.policies.flow.path import FlowOutput
        >>> field = lambda x, flow_time: FlowOutput(0.1 * x)
        >>> cpu = torch.device("cpu")
        >>> dist = ExactFlow(field, TimeGrid(3), ExactFlowConfig(num_probes=1), (5, 4, 2), cpu)
        >>> dist.sample().shape
        torch.Size([5, 4, 4, 2])
    """

    def __init__(
        self,
        field: VelocityField,
        grid: TimeGrid,
        config: ExactFlowConfig,
        shape: tuple[int, int, int],
        device: torch.device,
        given: Tensor | None = None,
    ) -> None:
        self.field, self.config, self.given = field, config, given
        super().__init__(grid, shape, device)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ODE's chains from noise (N, H, A) and the log-densities of their ends."""
        with torch.no_grad():
            chain, _ = sample_chain(self.field, noise, self.grid)
        return chain, self.log_prob(chain)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-densities (N,) of the chains' ends, or (N, 1) with `ratio="step"`.

        All entries count, executed or not, except those of given steps.
        """
        total, noise = ode_log_likelihood(
            self.field, value[:, -1].detach(), num_probes=self.config.num_probes
        )
        if self.given is not None:
            prior = -0.5 * (noise.square() + math.log(2 * math.pi)) * self.given[..., None]
            total = total - prior.flatten(1).sum(-1)
        return total if self.config.ratio == "joint" else total[:, None]
