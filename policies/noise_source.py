"""A noise source: a small network that chooses the noise that a frozen flow starts from.

Its input is the observation that the frozen policy has encoded. The flow turns the chosen noise
into actions. No gradient passes through the flow, and its weights never change.

Letters: N rows, H action horizon, h executed actions, A model action dim, W latent width, D width
of the noise actor's input.
Source: Wagenmaker et al. 2025 (DSRL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn.functional import softplus

from pitune.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Settings

Layout = Literal["repeat", "per_step", "full"]


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(Settings):
    """The chosen part of the starting noise, and the size of the network that chooses it.

    Example:
        >>> SteeringConfig(layout="full", hidden=(64,)).magnitude
        1.5
    """

    layout: Layout = "repeat"
    """One vector for all H steps, one per executed step (later steps repeat the last), or all H.
    One vector is the easiest to learn, but a policy may need noise that varies inside the chunk."""
    magnitude: PositiveFloat = 1.5
    """Bound of each noise entry [standard deviations]. A smaller one stays nearer to the mode."""
    hidden: tuple[PositiveInt, ...] = (256, 256)
    """Widths of the noise actor's hidden layers."""
    remainder_steps: NonNegativeInt = 0
    """Steps of the old chunk that the noise actor reads. `dsrl` sets it under a delay."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SteeringConfig:
        """Rebuild the config from `dataclasses.asdict`, also after a round trip through JSON."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})


class NoiseActor(nn.Module):
    """A Gaussian squashed into [-magnitude, magnitude]^W.

    Args:
        in_dim: D.
        latent_dim: W.
        magnitude: Bound of each entry.
        hidden: Widths of the hidden layers.

    Example:
        >>> actor = NoiseActor(6, latent_dim=2, magnitude=1.5, hidden=(8,))
        >>> latent, log_prob = actor.sample(torch.zeros(3, 6))
        >>> latent.shape, log_prob.shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self, in_dim: int, latent_dim: int, magnitude: float, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.latent_dim, self.magnitude = latent_dim, magnitude
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((in_dim, *hidden)):
            layers += [nn.Linear(narrow, wide), nn.LayerNorm(wide), nn.Tanh()]
        head = nn.Linear((in_dim, *hidden)[-1], 2 * latent_dim)
        nn.init.normal_(head.weight, std=0.01)  # starts near the middle, with unit spread
        nn.init.zeros_(head.bias)
        self.net = nn.Sequential(*layers, head)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, both (N, W)."""
        mean, log_std = self.net(x).chunk(2, dim=-1)
        return mean, log_std.clamp(-5.0, 2.0)

    def mode(self, x: Tensor) -> Tensor:
        """Return the deployed latent (N, W): the squashed mean."""
        return self.magnitude * torch.tanh(self.forward(x)[0])

    def sample(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return a latent (N, W) with a gradient, and its log-density (N,).

        The standard normal `noise` (N, W) is drawn by default.
        """
        mean, log_std = self.forward(x)
        z = mean + log_std.exp() * (torch.randn_like(mean) if noise is None else noise)
        return self.magnitude * torch.tanh(z), self.log_prob(z, mean, log_std)

    def log_prob(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return the log-density (N,) of the latent magnitude * tanh(z), in the latent's units."""
        normal = (
            -0.5 * ((z - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        )
        # log(1 - tanh(z)^2), without cancellation at large z
        squash = 2 * (math.log(2) - z - softplus(-2 * z))
        return (normal - squash - math.log(self.magnitude)).sum(-1)


class NoiseSource(nn.Module):
    """Starting noise of a flow policy, chosen by a noise actor.

    Until `steered` is set, the policy starts from fresh noise as without a source, because an
    untrained noise actor does not reproduce the pretrained policy.

    Args:
        config: The chosen part of the noise.
        chunk_shape: (H, A).
        execution_horizon: h.
        input_dim: D.

    Example:
        >>> source = NoiseSource(SteeringConfig(), (4, 2), execution_horizon=2, input_dim=6)
        >>> source(torch.zeros(3, 6)).shape
        torch.Size([3, 4, 2])
    """

    def __init__(
        self,
        config: SteeringConfig,
        chunk_shape: tuple[int, int],
        execution_horizon: int,
        input_dim: int,
    ) -> None:
        super().__init__()
        self.config, self.chunk_shape, self.input_dim = config, chunk_shape, input_dim
        horizon, action_dim = chunk_shape
        steps = {"repeat": 1, "per_step": execution_horizon, "full": horizon}
        self.latent_shape = (steps[config.layout], action_dim)
        latent_dim = math.prod(self.latent_shape)
        self.actor = NoiseActor(input_dim, latent_dim, config.magnitude, config.hidden)
        self.steered: Tensor
        self.register_buffer("steered", torch.zeros((), dtype=torch.bool))
        self._last_read: tuple[Tensor | None, int, bool] = (None, 0, False)

    @property
    def is_steered(self) -> bool:
        """`steered` on the host, read from its device once after each change."""
        flag, (read, version, value) = self.steered, self._last_read
        if read is not flag or version != flag._version:
            value = bool(flag)
            self._last_read = (flag, flag._version, value)
        return value

    def noise_of(self, latent: Tensor) -> Tensor:
        """Return the starting points (N, H, A) of latents (N, W)."""
        steps = latent.unflatten(-1, self.latent_shape)  # (N, steps, A)
        num_rest = self.chunk_shape[0] - steps.shape[1]
        rest = repeat(steps[:, -1], "n a -> n rest a", rest=num_rest)
        return torch.cat([steps, rest], dim=1)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the deployed starting points (N, H, A) of the noise actor's inputs (N, D)."""
        return self.noise_of(self.actor.mode(observation))
