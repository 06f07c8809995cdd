"""From robot units to the network's normalised space and back.

A policy evaluated with other statistics than it was trained with fails silently, so the statistics
are part of the policy: stored in `policy.json`, never recomputed on load, and never trained.
Letters: N rows, S state dim, A action dim, h executed actions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Normalization = Literal["zscore", "quantile"]


@dataclass(frozen=True, kw_only=True)
class NormStats:
    """Statistics of one quantity over the demonstrations, per dimension [robot units]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    """1 % quantile."""
    q99: tuple[float, ...]
    """99 % quantile."""

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if len(values) != len(self.mean):
                raise ValueError(
                    f"norm stats {name} has {len(values)} numbers, mean has {len(self.mean)}"
                )
            bad = [i for i, value in enumerate(values) if not math.isfinite(value)]
            if bad:
                raise ValueError(f"norm stats {name} is not finite in dimensions {bad}")

    @classmethod
    def of(cls, values: Tensor) -> NormStats:
        """Compute the statistics of samples (N, dimensions)."""
        values = values.double()
        quantiles = torch.quantile(values, values.new_tensor([0.01, 0.99]), dim=0)
        return cls(
            mean=tuple(values.mean(0).tolist()),
            std=tuple(values.std(0, correction=0).tolist()),
            q01=tuple(quantiles[0].tolist()),
            q99=tuple(quantiles[1].tolist()),
        )

    @classmethod
    def identity(cls, dim: int) -> NormStats:
        """Statistics that leave `dim` dimensions as they are under z-scoring."""
        return cls(mean=(0.0,) * dim, std=(1.0,) * dim, q01=(-1.0,) * dim, q99=(1.0,) * dim)


@dataclass(frozen=True, kw_only=True)
class PreprocessorConfig:
    """How observations and actions are scaled."""

    state: NormStats
    action: NormStats
    normalization: Normalization = "zscore"
    """Subtract the mean and divide by the standard deviation, or map 1 % .. 99 % to -1 .. 1."""
    epsilon: float = 1e-6
    """Added to the divisor, as openpi does [robot units]."""
    min_scale: float = 1e-2
    """Least standard deviation or half range; below it a dimension that hardly moved in the
    demonstrations would turn noise into huge inputs [robot units]."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessorConfig:
        """Rebuild from `dataclasses.asdict`, by way of JSON."""
        stats = {
            name: NormStats(**{key: tuple(numbers) for key, numbers in values[name].items()})
            for name in ("state", "action")
        }
        return cls(**{**values, **stats})


class Preprocessor(nn.Module):
    """Scales states and actions, and pads them to the widths of the network.

    Args:
        config: Statistics and the way they are used.
        model_state_dim: Width of the network's state input, at least that of the robot.
        model_action_dim: Width of the network's actions, at least that of the robot.

    Raises:
        ValueError: the network is narrower than the robot.
    """

    def __init__(
        self, config: PreprocessorConfig, model_state_dim: int, model_action_dim: int
    ) -> None:
        super().__init__()
        self.state_offset: Tensor
        self.state_scale: Tensor
        self.action_offset: Tensor
        self.action_scale: Tensor
        self.config = config
        self.state_dim, self.action_dim = len(config.state.mean), len(config.action.mean)
        self.model_state_dim, self.model_action_dim = model_state_dim, model_action_dim
        for name, robot, model in (
            ("state", self.state_dim, model_state_dim),
            ("action", self.action_dim, model_action_dim),
        ):
            if robot > model:
                raise ValueError(
                    f"the robot's {name} has {robot} dimensions, the network takes {model} at most"
                )
        for name, stats in (("state", config.state), ("action", config.action)):
            offset, scale = _offset_and_scale(stats, config)
            self.register_buffer(f"{name}_offset", offset, persistent=False)
            self.register_buffer(f"{name}_scale", scale, persistent=False)

    def normalize_state(self, state: Tensor) -> Tensor:
        """Return states in model space (N, model S) from robot units (N, S)."""
        scaled = (state.float() - self.state_offset) / self.state_scale
        return pad(scaled, (0, self.model_state_dim - self.state_dim))

    def normalize_action(self, action: Tensor) -> Tensor:
        """Return actions in model space (..., model A) from robot units (..., A)."""
        scaled = (action.float() - self.action_offset) / self.action_scale
        return pad(scaled, (0, self.model_action_dim - self.action_dim))

    def unnormalize_action(self, action: Tensor) -> Tensor:
        """Return actions in robot units (..., A) from model space (..., model A)."""
        return action[..., : self.action_dim] * self.action_scale + self.action_offset

    def floored(self) -> dict[str, list[int]]:
        """Return the dimensions whose scale was raised to `min_scale`, per quantity."""
        return {
            name: (_spread(stats, self.config) < self.config.min_scale).nonzero().flatten().tolist()
            for name, stats in (("state", self.config.state), ("action", self.config.action))
        }


def _spread(stats: NormStats, config: PreprocessorConfig) -> Tensor:
    if config.normalization == "zscore":
        return torch.tensor(stats.std, dtype=torch.float32)
    return (torch.tensor(stats.q99) - torch.tensor(stats.q01)) / 2


def _offset_and_scale(stats: NormStats, config: PreprocessorConfig) -> tuple[Tensor, Tensor]:
    """Return what is subtracted and what is divided by."""
    scale = _spread(stats, config).clamp(min=config.min_scale)
    if config.normalization == "zscore":
        return torch.tensor(stats.mean, dtype=torch.float32), scale + config.epsilon
    return (torch.tensor(stats.q99) + torch.tensor(stats.q01)) / 2, scale + config.epsilon / 2
