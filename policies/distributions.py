"""Distributions over chains from noise to action: what an actor samples from and scores with.

Letters: N rows, M scored steps (K, or 1), K flow steps, H action horizon, A action dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from policies.chain import sample_chain, score_chain
from policies.flow import Kernel, TimeGrid, VelocityField
from policies.likelihood import LikelihoodConfig


class FlowChain(Distribution):
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

    arg_constraints = {}  # noqa: RUF012 - torch's own attribute

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
        self.field, self.kernel, self.grid, self.config = field, kernel, grid, config
        self.stochastic_step, self.shape, self.num_scored = stochastic_step, shape, num_scored
        self.device = device
        super().__init__(
            torch.Size(shape[:1]),
            torch.Size([grid.flow_steps + 1, *shape[1:]]),
            validate_args=False,
        )

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
