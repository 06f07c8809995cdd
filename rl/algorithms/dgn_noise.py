"""Exploration noise in the directions in which a policy differs from its demonstrations.

The noise is a Gaussian of the difference between demonstrated and own chunks, as a function of the
observation. It perturbs the policy where it differs from the demonstrations. It is used for acting
only, and no loss of a policy or a critic contains it.

With a mean of zero (as published), the covariance is fitted to the second moment of the difference.
A constant difference then becomes an axis of the noise, in both directions.
In shapes, `dim` is the width of an executed chunk (h * d).
Letters: N rows, B minibatch rows, h executed actions, d robot action dim, D width of a critic's
input.
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

from pitune.rl import ranks
from pitune.rl.algorithm import Progress, no_progress
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import Metrics, gradient_step

Shape = Literal["data_guided", "equal_size"]
MIN_DIAGONAL = 1e-5
"""Least diagonal entry of the covariance's factor [normalized action]."""


class DifferenceModel(nn.Module):
    """A Gaussian of differences (dim), given a critic's input (D).

    Args:
        in_dim: D.
        dim: h * d.
        hidden: Widths of the hidden layers.
        with_mean: Whether to learn the mean, or fix it at zero as published.
        dropout: Dropout rate in fitting.

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
        # entries of the covariance's factor (dim * (dim + 1) / 2,), which move with the model
        rows, columns = torch.tril_indices(dim, dim).unbind(0)
        self.rows = nn.Buffer(rows, persistent=False)
        self.columns = nn.Buffer(columns, persistent=False)
        self.widths = tuple(hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise((in_dim, *hidden)))
        out_dim = len(self.rows) + dim * with_mean
        self.head = nn.Linear((in_dim, *hidden)[-1], out_dim)

    def dropout_masks(self, num_rows: int) -> list[Tensor]:
        """Return the factors of each layer's hidden units (N, width): 0, or 1 / (1 - dropout)."""
        if self.dropout == 0:
            return []
        keep, bias = 1 - self.dropout, self.head.bias
        shapes = [(num_rows, width) for width in self.widths]
        return [bias.new_empty(shape).bernoulli_(keep).div_(keep) for shape in shapes]

    def forward(self, obs: Tensor, masks: Sequence[Tensor] = ()) -> MultivariateNormal:
        """Return the distribution of the differences (N, dim) [normalized action].

        Args:
            obs: Critic inputs (N, D).
            masks: Factors of the hidden units for fitting, see `dropout_masks`.
        """
        # output of the network
        hidden = obs
        for i, layer in enumerate(self.layers):
            hidden = silu(layer(hidden))
            hidden = hidden * masks[i] if masks else hidden
        out = self.head(hidden)

        # factor of the covariance
        lower = out.new_zeros(len(obs), self.dim, self.dim)  # (N, dim, dim)
        lower[:, self.rows, self.columns] = out[:, : len(self.rows)]
        diagonal = softplus(lower.diagonal(dim1=-2, dim2=-1)) + MIN_DIAGONAL
        # each row is scaled by its diagonal entry, so that the whole noise shrinks with it, because
        # differences of exactly zero give the other entries no gradient
        factor = diagonal[..., None] * lower.tril(-1) + diagonal.diag_embed()
        mean = out[:, len(self.rows) :] if self.with_mean else out.new_zeros(len(obs), self.dim)
        return MultivariateNormal(mean, scale_tril=factor)

    @torch.no_grad()
    def sample(self, obs: Tensor, shape: Shape = "data_guided") -> Tensor:
        """Return noise (N, dim) [normalized action].

        Args:
            obs: Critic inputs (N, D).
            shape: "equal_size" is white noise of the same expected squared length at each
                observation, the control for the benefit of the directions.
        """
        dist = self(obs)
        if shape == "data_guided":
            return dist.sample()
        length = dist.scale_tril.square().sum((-2, -1)) + dist.mean.square().sum(-1)  # (N,)
        std = (length / self.dim).sqrt()
        return std[:, None] * torch.randn_like(dist.mean)


def fit(
    model: DifferenceModel,
    optimizer: torch.optim.Optimizer,
    obs: Tensor,
    difference: Tensor,
    num_steps: int,
    minibatch_size: int,
    num_parts: int = 1,
    on_progress: Progress = no_progress,
) -> float:
    """Take maximum-likelihood steps on differences (N, dim) and return the mean loss [nats].

    Args:
        model: Fitted in place.
        optimizer: Optimizer of the model.
        obs: Critic inputs (N, D).
        difference: Demonstrated minus own chunks (N, dim) [normalized action].
        num_steps: Gradient steps.
        minibatch_size: Rows per step, drawn with replacement.
        num_parts: Number of parts of a minibatch.
        on_progress: Called after each step.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    total = 0.0
    size = ranks.share(min(minibatch_size, len(obs)))
    for step in range(num_steps):
        # random draws of the whole minibatch
        rows = torch.randint(len(obs), (size,), device=obs.device)
        masks = {str(i): mask for i, mask in enumerate(model.dropout_masks(size))}
        batch = {"input": obs[rows], "difference": difference[rows], "masks": masks}

        metrics, _ = gradient_step(
            optimizer,
            partial(likelihood_loss, model),
            TensorDict(batch, batch_size=[size]),
            name="noise model",
            step=f"step {step} of {num_steps}",
            num_parts=num_parts,
        )
        total += float(metrics["noise_loss"])
        on_progress("noise model", step + 1, num_steps)
    return total / max(1, num_steps)


def likelihood_loss(model: DifferenceModel, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
    """Return minus the mean log-likelihood of differences [nats] as the loss and a metric.

    Args:
        model: The noise model.
        batch: Rows with `input` (B, D), `difference` (B, dim) and `masks` of the hidden units.
    """
    masks = [batch["masks", str(i)] for i in range(len(sub_dict(batch, "masks").keys()))]
    loss = -model(batch["input"], masks).log_prob(batch["difference"]).mean()
    return loss, {"noise_loss": loss}
