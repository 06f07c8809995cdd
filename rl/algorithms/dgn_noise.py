"""Exploration noise with the shape of what a policy lacks to its demonstrations.

A Gaussian of the difference between demonstrated and own action, as a function of the observation:
where the policy differs from the demonstrations it is perturbed, in the directions in which it
differs. It only acts; no loss of a policy or a critic contains it.

With its mean held at zero (as published) the covariance is fitted to the second moment of the
difference, so a constant difference becomes an axis of the noise, taken in both directions.
Letters: N rows, D width of an observation as critics read it, X width of an executed chunk (h * d).
Source: Dong et al. 2025 (DGN).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import silu, softplus

from pitune.rl.gradient_step import Metrics, gradient_step

Shape = Literal["data_guided", "equal_size"]
MIN_DIAGONAL = 1e-5
"""Least diagonal entry of the covariance's factor [normalized action]."""


class DifferenceModel(nn.Module):
    """A Gaussian of differences (X), given an observation as critics read it (D).

    Args:
        in_dim: D.
        dim: X.
        hidden: Widths of the hidden layers.
        with_mean: Whether the mean is learned too, or held at zero as published.
        dropout: Share of hidden units that is left out in a step of fitting.

    Example:
        >>> model = DifferenceModel(3, 2, (8,), with_mean=False)
        >>> model.sample(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
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
        self.dim, self.with_mean, self.dropout = dim, with_mean, dropout
        self.rows, self.columns = torch.tril_indices(dim, dim).unbind(0)
        self.widths = tuple(hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise((in_dim, *hidden)))
        out_dim = len(self.rows) + dim * with_mean
        self.head = nn.Linear((in_dim, *hidden)[-1], out_dim)

    def dropout_masks(self, num_rows: int) -> list[Tensor]:
        """Return a factor per hidden unit (N, width) of each layer: 0, or 1 / (1 - dropout)."""
        if self.dropout == 0:
            return []
        keep, bias = 1 - self.dropout, self.head.bias
        shapes = [(num_rows, width) for width in self.widths]
        return [bias.new_empty(shape).bernoulli_(keep).div_(keep) for shape in shapes]

    def forward(self, read: Tensor, masks: Sequence[Tensor] = ()) -> MultivariateNormal:
        """Return the distribution of the difference (N, X) [normalized action].

        Args:
            read: Observations as critics read them (N, D).
            masks: Factors of the hidden units, see `dropout_masks`; none outside of fitting.
        """
        hidden = read
        for i, layer in enumerate(self.layers):
            hidden = silu(layer(hidden))
            hidden = hidden * masks[i] if masks else hidden
        out = self.head(hidden)
        lower = out.new_zeros(len(read), self.dim, self.dim)  # (N, X, X)
        lower[:, self.rows, self.columns] = out[:, : len(self.rows)]
        diagonal = softplus(lower.diagonal(dim1=-2, dim2=-1)) + MIN_DIAGONAL
        # rows are scaled by their diagonal, so that all of the noise shrinks with it: differences
        # that are exactly zero give the entries beside it no gradient
        factor = diagonal[..., None] * lower.tril(-1) + diagonal.diag_embed()
        mean = out[:, len(self.rows) :] if self.with_mean else out.new_zeros(len(read), self.dim)
        return MultivariateNormal(mean, scale_tril=factor)

    @torch.no_grad()
    def sample(self, read: Tensor, shape: Shape = "data_guided") -> Tensor:
        """Return noise (N, X) [normalized action].

        Args:
            read: Observations as critics read them (N, D).
            shape: "equal_size" keeps the expected squared length at each observation and forgets
                the directions: the control for the benefit of the directions.
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
    num_parts: int = 1,
) -> float:
    """Take maximum-likelihood steps on differences (N, X) and return the mean loss [nats].

    Args:
        model: Fitted in place.
        optimizer: Of the model.
        read: Observations as critics read them (N, D).
        difference: Demonstrated minus own action (N, X) [normalized action].
        num_steps: Gradient steps.
        minibatch_size: Rows per step, drawn with replacement.
        num_parts: Parts that a minibatch is split into.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    total = 0.0
    size = min(minibatch_size, len(read))
    for step in range(num_steps):
        rows = torch.randint(len(read), (size,), device=read.device)
        masks = {str(i): mask for i, mask in enumerate(model.dropout_masks(size))}
        batch = {"read": read[rows], "difference": difference[rows], "masks": masks}
        metrics, _ = gradient_step(
            optimizer,
            partial(likelihood_loss, model),
            TensorDict(batch, batch_size=[size]),
            name="noise model",
            step=f"step {step} of {num_steps}",
            num_parts=num_parts,
        )
        total += float(metrics["noise_loss"])
    return total / max(1, num_steps)


def likelihood_loss(model: DifferenceModel, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
    """Return minus the mean log-likelihood of differences [nats], and the same as a metric.

    Args:
        model: Scores.
        batch: Rows with `read` (N, D), `difference` (N, X) and `masks` of the hidden units.
    """
    masks = [batch["masks", str(i)] for i in range(len(batch["masks"].keys()))]
    loss = -model(batch["read"], masks).log_prob(batch["difference"]).mean()
    return loss, {"noise_loss": loss}
