"""Exploration noise with the shape of what a policy lacks to its demonstrations.

A Gaussian of the difference between demonstrated and own action, as a function of the observation:
where the policy differs from the demonstrations it is perturbed, in the directions in which it
differs. It only acts; no loss of a policy or a critic contains it.

With its mean held at zero (as published) the covariance is fitted to the second moment of the
difference, so a constant difference becomes an axis of the noise, taken in both directions.
Letters: N rows, D width of what is read, X width of an executed chunk (h * d).
Source: Dong et al. 2025 (DGN).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import softplus

Shape = Literal["data_guided", "equal_size"]
MIN_DIAGONAL = 1e-5
"""Least diagonal entry of the covariance's factor [normalized action]."""


class DifferenceModel(nn.Module):
    """A Gaussian of differences (X), given what is read of the observation (D).

    Args:
        in_dim: D.
        dim: X.
        hidden: Widths of the hidden layers.
        with_mean: Whether the mean is learned too, or held at zero as published.
        dropout: Share of hidden units that is left out in a step of fitting.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        hidden: Sequence[int],
        with_mean: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.with_mean = dim, with_mean
        self.rows, self.columns = torch.tril_indices(dim, dim).unbind(0)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((in_dim, *hidden)):
            layers += [nn.Linear(narrow, wide), nn.SiLU(), nn.Dropout(dropout)]
        out_dim = len(self.rows) + dim * with_mean
        self.net = nn.Sequential(*layers, nn.Linear((in_dim, *hidden)[-1], out_dim)).eval()

    def forward(self, read: Tensor) -> MultivariateNormal:
        """Return the distribution of the difference (N, X) [normalized action]."""
        out = self.net(read)
        lower = out.new_zeros(len(read), self.dim, self.dim)
        lower[:, self.rows, self.columns] = out[:, : len(self.rows)]
        diagonal = softplus(lower.diagonal(dim1=-2, dim2=-1)) + MIN_DIAGONAL
        # rows are scaled by their diagonal, so that all of the noise shrinks with it: differences
        # that are exactly zero would say nothing of the entries beside it
        factor = diagonal[..., None] * lower.tril(-1) + diagonal.diag_embed()
        mean = out[:, len(self.rows) :] if self.with_mean else out.new_zeros(len(read), self.dim)
        return MultivariateNormal(mean, scale_tril=factor)

    @torch.no_grad()
    def sample(self, read: Tensor, shape: Shape = "data_guided") -> Tensor:
        """Return noise (N, X) [normalized action].

        Args:
            read: What is read of the observations (N, D).
            shape: "equal_size" keeps the expected squared length at each observation, and forgets
                the directions: the control that says what the directions are worth.
        """
        given = self(read)
        if shape == "data_guided":
            return given.sample()
        length = given.scale_tril.square().sum((-2, -1)) + given.mean.square().sum(-1)
        std = (length / self.dim).sqrt()
        return std[:, None] * torch.randn_like(given.mean)


def fit(
    model: DifferenceModel,
    optimizer: torch.optim.Optimizer,
    read: Tensor,
    difference: Tensor,
    num_steps: int,
    minibatch_size: int,
) -> float:
    """Take maximum-likelihood steps on differences (N, X) and return the mean loss [nats].

    Raises:
        FloatingPointError: the loss is not finite.
    """
    total = 0.0
    size = min(minibatch_size, len(read))
    model.train()
    for _ in range(num_steps):
        rows = torch.randint(len(read), (size,), device=read.device)
        loss = -model(read[rows]).log_prob(difference[rows]).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the noise model's loss is {loss.item()}; check the scale of the demonstrations' "
                "actions, or lower noise_learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    model.eval()
    return total / max(1, num_steps)
