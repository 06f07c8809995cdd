"""Distributions over chains from noise to action: what an actor samples from and scores with.

Letters: N rows, M scored steps (K, or 1), K flow steps, H action horizon, A action dim.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

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
    """What every likelihood offers: chains from given noise, and log-probabilities of chains.

    `velocity` (N, M, H, A) is the network's, where the last chains were scored.

    Args:
        grid: Flow times.
        shape: (N, H, A).
        device: Where the chains live.
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own attribute
    velocity: Tensor

    def __init__(self, grid: TimeGrid, shape: tuple[int, int, int], device: torch.device) -> None:
        self.grid, self.shape, self.device = grid, shape, device
        points = torch.Size([grid.flow_steps + 1, *shape[1:]])
        super().__init__(torch.Size(shape[:1]), points, validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        """Return chains (N, K + 1, H, A) from fresh noise."""
        if len(sample_shape):
            raise ValueError(
                f"sample_shape={tuple(sample_shape)} is not supported; repeat the rows"
            )
        return self.sample_from(torch.randn(self.shape, device=self.device))

    def sample_from(self, noise: Tensor) -> Tensor:
        """Return chains (N, K + 1, H, A) that start at the given noise (N, H, A)."""
        return self.sample_and_log_prob(noise)[0]

    @abstractmethod
    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return chains from the given noise and their log-probabilities."""


class FlowChain(ActionDistribution):
    """Distribution over chains (K + 1, H, A), given encoded observations of N rows.

    Args:
        field: Velocity field of the rows.
        kernel: Transition kernel; samples and scores.
        grid: Flow times.
        config: Reductions.
        stochastic_step: The random step of each row (N,), or None if all are random.
        shape: (N, H, A).
        num_scored: Entries of a point that are executed, so random and scored.
        device: Where the chains live.
    """

    def __init__(
        self,
        field: VelocityField,
        kernel: Kernel,
        grid: TimeGrid,
        config: LikelihoodConfig,
        stochastic_step: Tensor | None,
        shape: tuple[int, int, int],
        num_scored: int,
        device: torch.device,
    ) -> None:
        self.field, self.kernel, self.config = field, kernel, config
        self.stochastic_step, self.num_scored = stochastic_step, num_scored
        super().__init__(grid, shape, device)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return chains from the given noise and their log-probabilities, in one pass."""
        with torch.no_grad():
            chain, entries = sample_chain(
                self.field, noise, self.grid, self.kernel, self.stochastic_step
            )
        return chain, self._reduce(entries)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of chains (N,), or (N, M) with `ratio="step"`."""
        self.scored = score_chain(self.field, value, self.grid, self.kernel, self.stochastic_step)
        self.velocity = self.scored.velocity
        return self._reduce(self.scored.log_prob)

    @property
    def scored_std(self) -> Tensor:
        """Standard deviation of the entries of the chain that was scored last (N, M, H, A)."""
        return self.scored.transition.std.expand_as(self.scored.transition.mean)

    def entropy(self) -> Tensor:
        """Return the mean entropy per random entry (N,) of the chain that was scored last.

        Only a learned noise has an entropy to train; Flow-SDE's is a constant.
        """
        scored_std = self.scored_std
        random = scored_std > 0
        std = torch.where(random, scored_std, torch.ones_like(scored_std))
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)) * random
        return entropy.flatten(1).sum(-1) / random.flatten(1).sum(-1)

    def _reduce(self, entries: Tensor) -> Tensor:
        """Return the configured log-probability of entries (N, M, H, A): (N,) or (N, M)."""
        steps = entries.sum((-2, -1))
        if self.config.reduction == "mean":
            steps = steps / self.num_scored
        return steps.sum(-1) if self.config.ratio == "joint" else steps


class LossRatio(ActionDistribution):
    """FPO: minus the flow-matching loss in the place of a log-probability.

    Not a density: only differences between two policies on the same draws mean something. The
    chain is the deployed flow's, and only its end is scored.
    Source: McAllister et al. 2025 (FPO): ratio = exp(old loss - new loss), averaged over draws.

    Args:
        field: Velocity field of the rows.
        grid: Flow times of the sampler.
        config: Where the loss is measured, and its reductions; `ratio="step"` is one per draw.
        noise: Draws that were made when acting (N, M, H, A).
        flow_time: Their flow times (N, M).
        mask: Entries that are executed (H, A); the loss of the others says nothing of the reward.
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
        """Return chains from the given noise, and minus their ends' losses, in two passes.

        Their ends have `action_noise` in executed entries: no density is needed, so any will do.
        """
        with torch.no_grad():
            chain, _ = sample_chain(self.field, noise, self.grid)
            chain[:, -1] += self.config.action_noise * torch.randn_like(noise) * self.mask
            return chain, self.log_prob(chain)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the loss of the chains' ends: (N,), or (N, M) with `ratio="step"`."""
        action, time = value[:, -1:], self.flow_time[..., None, None]
        x = interpolate(action, self.noise, time)
        self.velocity = self.field(x, self.flow_time).velocity.float()
        error = (self.velocity - target_velocity(action, self.noise)).square() * self.mask
        if self.config.loss_space == "noise":  # the noise's error is (1 - t) times the velocity's
            error = error * (1 - time).square()
        loss = error.sum((-2, -1))
        if self.config.reduction == "mean":
            loss = loss / self.mask.sum()
        loss = loss.clamp(max=self.config.loss_clamp)
        return -loss.mean(1) if self.config.ratio == "joint" else -loss

    def entropy(self) -> Tensor:
        """Raise, because a loss has none.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "the flow_matching likelihood has no entropy; set entropy_coefficient to 0"
        )


class ExactFlow(ActionDistribution):
    """The deployed flow's own density by change of variables: for tests and reports, no gradient.

    Args:
        field: Velocity field of the rows.
        grid: Flow times of the sampler; the likelihood is integrated on a grid of 100.
        config: Number of probes; `ratio="step"` gives the same number with an axis more.
        shape: (N, H, A).
        device: Where the chains live.
    """

    def __init__(
        self,
        field: VelocityField,
        grid: TimeGrid,
        config: ExactFlowConfig,
        shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.field, self.config = field, config
        super().__init__(grid, shape, device)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ODE's chains from the given noise, and the log-density of their ends."""
        with torch.no_grad():
            chain, _ = sample_chain(self.field, noise, self.grid)
        return chain, self.log_prob(chain)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of the chains' ends (N,), or (N, 1) with `ratio="step"`.

        That of all entries, executed or not.
        """
        total, _ = ode_log_likelihood(
            self.field, value[:, -1].detach(), num_probes=self.config.num_probes
        )
        return total if self.config.ratio == "joint" else total[:, None]
