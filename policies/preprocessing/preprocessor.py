"""From robot units to the network's normalized space and back.

Each difference between openpi and lerobot is a field here. The loader sets it from the checkpoint's
format, and `policy.json` stores it with the norm stats.
Letters: N rows, S model state dim, s robot state dim, A model action dim, d robot action dim, H
action horizon, L prompt tokens.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.functional import pad

from pitune.policies.preprocessing import aloha
from pitune.policies.preprocessing.images import PicturesConfig, moved_pictures, resized_pictures
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.prompt import Encoder, PromptConfig, tokenize
from pitune.ranges import NonNegativeFloat, Settings

Normalization = Literal["zscore", "quantile", "none"]


@dataclass(frozen=True, kw_only=True)
class PreprocessorConfig(Settings):
    """Settings of the scaling of states and actions, and of pictures and prompt.

    Example:
        >>> stats = NormStats.identity(2)
        >>> PreprocessorConfig(state=stats, action=stats).normalization
        'zscore'
    """

    state: NormStats
    action: NormStats
    """Statistics of the normalized actions. With `delta_mask` they are relative to the state."""
    normalization: Normalization = "zscore"
    """Subtract the mean and divide by the standard deviation, or map q01 .. q99 to -1 .. 1."""
    epsilon: NonNegativeFloat = 1e-6
    """Added to the divisor in normalization: openpi 1e-6, lerobot 1e-8 or 0 [robot units]."""
    epsilon_out: NonNegativeFloat = 1e-6
    """Added to the factor in unnormalization: openpi 1e-6, lerobot 0 [robot units]."""
    min_scale: NonNegativeFloat = 1e-2
    """Least standard deviation or half range [robot units]. Without it, a dimension that hardly
    moves in the demonstrations amplifies noise to huge inputs."""
    delta_mask: tuple[bool, ...] = ()
    """True for the action dimensions that are relative to the state at the chunk's decision."""
    joints: Literal["as_is", "aloha"] = "as_is"
    """Whether ALOHA's joints are converted to the conventions of π0's pretraining data."""
    loss_dims: Literal["all", "robot"] = "all"
    """Dimensions that count in the flow-matching loss: "all" includes the padding (openpi), "robot"
    does not (lerobot)."""
    pictures: PicturesConfig | None = None
    """None for a policy without cameras."""
    prompt: PromptConfig | None = None
    """None for a policy without a prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delta_mask) > min(self.state.dim, self.action.dim):
            raise ValueError(
                f"delta_mask has {len(self.delta_mask)} entries, but the state has "
                f"{self.state.dim} dimensions and the action {self.action.dim}"
            )
        lacking = [name for name in ("state", "action") if getattr(self, name).quantiles is None]
        if self.normalization == "quantile" and lacking:
            raise ValueError(
                f"normalization='quantile' needs q01 and q99 in the norm stats, but those of "
                f"{' and '.join(lacking)} were never computed; recompute the stats from "
                "demonstrations (pitune norm-stats)"
            )
        if self.epsilon == self.min_scale == 0 and self.normalization != "none":
            for name in ("state", "action"):
                getattr(self, name).check_spread(name, self.normalization == "quantile")
        if self.joints == "aloha" and (self.state.dim, self.action.dim) != (aloha.DIM, aloha.DIM):
            raise ValueError(
                f"joints='aloha' needs {aloha.DIM} state and action dimensions, the norm stats "
                f"have {self.state.dim} and {self.action.dim}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessorConfig:
        """Rebuild the config from `dataclasses.asdict`, also after a round trip through JSON."""
        # JSON has lists in the place of tuples
        parts: dict[str, Any] = {
            name: NormStats.from_dict(values[name]) for name in ("state", "action")
        }
        parts["delta_mask"] = tuple(values.get("delta_mask", ()))
        if values.get("pictures") is not None:
            pictures = values["pictures"]
            names = {key: (*pictures.get(key, ()),) for key in ("missing", "order")}
            parts["pictures"] = PicturesConfig(**{**pictures, **names})
        if values.get("prompt") is not None:
            prompt = values["prompt"]
            # a blank default of older checkpoints is none: `infer` then asks for an instruction
            default = prompt.get("default") or None
            parts["prompt"] = PromptConfig(**{**prompt, "default": default})
        return cls(**{**values, **parts})

    def fingerprint(self) -> str:
        """Return a hash of all settings and statistics, equal for equal configs."""
        values = asdict(self)
        # a setting that older policies did not have counts only if it is set
        for name, default in (("order", ()), ("bars", "black")):
            if self.pictures is not None and getattr(self.pictures, name) == default:
                del values["pictures"][name]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Preprocessor(nn.Module):
    """Scales states and actions, pads them to the network's widths, resizes and tokenizes.

    Args:
        config: Statistics and settings.
        model_state_dim: S, at least the robot's state dim.
        model_action_dim: A, at least the robot's action dim.

    Raises:
        ValueError: the network has fewer dimensions than the robot.

    Example:
        >>> stats = NormStats(mean=(1.0,), std=(2.0,), q01=(0.0,), q99=(2.0,))
        >>> preprocessor = Preprocessor(PreprocessorConfig(state=stats, action=stats), 2, 2)
        >>> preprocessor.normalize_state(torch.tensor([[1.0]])).tolist()
        [[0.0, 0.0]]
    """

    def __init__(
        self, config: PreprocessorConfig, model_state_dim: int, model_action_dim: int
    ) -> None:
        super().__init__()
        self.config = config
        self.state_dim, self.action_dim = config.state.dim, config.action.dim
        self.model_state_dim, self.model_action_dim = model_state_dim, model_action_dim
        for name, robot, model in (
            ("state", self.state_dim, model_state_dim),
            ("action", self.action_dim, model_action_dim),
        ):
            if robot > model:
                raise ValueError(
                    f"the robot's {name} has {robot} dimensions, the network takes {model} at most"
                )
        # quantiles are scaled to 0 .. 2, minus this shift
        self._shift = 1.0 if config.normalization == "quantile" else 0.0
        self.state_offset, self.state_scale = _buffers(config.state, config, config.epsilon)
        self.action_offset, self.action_scale = _buffers(config.action, config, config.epsilon)
        self.action_out_offset, self.action_out_scale = _buffers(
            config.action, config, config.epsilon_out
        )
        # dimensions of relative actions (d,)
        mask = torch.zeros(self.action_dim, dtype=torch.bool)
        mask[: len(config.delta_mask)] = torch.tensor(config.delta_mask, dtype=torch.bool)
        self.delta_mask = nn.Buffer(mask, persistent=False)

    def normalize_state(self, state: Tensor) -> Tensor:
        """Return normalized and padded states (N, S) of states (N, s) [robot units]."""
        return pad(self._scale_state(state), (0, self.model_state_dim - self.state_dim))

    def normalize_action(self, action: Tensor, state: Tensor | None = None) -> Tensor:
        """Return normalized and padded actions (N, H, A) of actions (N, H, d) [robot units].

        Args:
            action: Chunks.
            state: States (N, s) at the chunks' decisions, for relative actions only.
        """
        action = action.float()
        if self.config.joints == "aloha":
            action = aloha.action_to_pi(action)
        if self.config.delta_mask:
            action = action - self._origin(state)
        scaled = (action - self.action_offset) / self.action_scale - self._shift
        # (N, H, d) -> (N, H, A)
        return pad(scaled, (0, self.model_action_dim - self.action_dim))

    def unnormalize_action(self, action: Tensor, state: Tensor | None = None) -> Tensor:
        """Return actions (N, H, d) [robot units] of normalized actions (N, H, A).

        Args:
            action: Chunks of any number of steps.
            state: States (N, s) at the chunks' decisions, for relative actions only.
        """
        action = (action[..., : self.action_dim] + self._shift) * self.action_out_scale
        action = action + self.action_out_offset
        if self.config.delta_mask:
            action = action + self._origin(state)
        return aloha.action_from_pi(action) if self.config.joints == "aloha" else action

    @property
    def obs_keys(self) -> list[str]:
        """Keys of the used entries of an observation: state, cameras and task."""
        pictures, prompt = self.config.pictures, self.config.prompt
        cameras = [] if pictures is None else list(pictures.cameras.values())
        task = [] if prompt is None else ["task_id"]
        return ["state", *(f"image/{camera}" for camera in cameras), *task]

    def images_and_state(self, obs: TensorDictBase) -> dict[str, Tensor]:
        """Return `state`, `robot_state` and, with cameras, `images` of observations (N).

        They are fields of `ModelInput`, which documents their shapes.
        """
        device = self.state_offset.device
        state = obs["state"].to(device)
        values = {"state": self.normalize_state(state), "robot_state": state.float()}
        if self.config.pictures is not None:
            cameras = self.config.pictures.cameras.values()
            # moved as bytes of the simulator's size, and resized on the device
            images = moved_pictures([obs[f"image/{camera}"] for camera in cameras], device)
            values["images"] = resized_pictures(images, self.config.pictures)
        return values

    def tokens(
        self, instructions: list[str], state: Tensor, encoder: Encoder
    ) -> tuple[Tensor, Tensor]:
        """Return prompts (N, L) int64 and their mask (N, L) bool, False in padding.

        Args:
            instructions: One per row.
            state: States (N, s) [robot units].
            encoder: The tokenizer.
        """
        if self.config.prompt is None:
            raise ValueError("this policy has no prompt")
        # in double precision, so that rounding does not move a number into the next bin
        offset, scale = offset_and_scale(self.config.state, self.config, self.config.epsilon)
        scaled = (self._joints(state).double().cpu() - offset) / scale - self._shift
        tokens, mask = tokenize(instructions, scaled, self.config.prompt, encoder)
        return tokens.to(state.device), mask.to(state.device)

    def floored(self) -> dict[str, list[int]]:
        """Return the dimensions whose scale was raised to `min_scale`, per quantity."""
        return self.flat(self.config.min_scale)

    def flat(self, scale: float) -> dict[str, list[int]]:
        """Return the dimensions whose statistics spread less than `scale`, per quantity."""
        return {
            name: (_spread(stats, self.config) < scale).nonzero().flatten().tolist()
            for name, stats in (("state", self.config.state), ("action", self.config.action))
        }

    def _scale_state(self, state: Tensor) -> Tensor:
        """Return normalized states (..., s) without padding."""
        return (self._joints(state) - self.state_offset) / self.state_scale - self._shift

    def _joints(self, state: Tensor) -> Tensor:
        """Return states (..., s) in the conventions of the norm stats, float32."""
        state = state.float()
        return aloha.state_to_pi(state) if self.config.joints == "aloha" else state

    def _origin(self, state: Tensor | None) -> Tensor:
        """Return the reference of relative actions (..., 1, d), 0 for absolute dimensions."""
        if state is None:
            raise ValueError(
                "this policy's actions are relative to the state, but no state was passed"
            )
        # (..., s) -> (..., 1, d), the same for all steps of a chunk
        joints = pad(self._joints(state), (0, max(0, self.action_dim - self.state_dim)))
        return (joints[..., : self.action_dim] * self.delta_mask)[..., None, :]


def _spread(stats: NormStats, config: PreprocessorConfig) -> Tensor:
    """Return the standard deviation or half the range of each dimension, float64."""
    if config.normalization == "zscore":
        return torch.tensor(stats.std, dtype=torch.float64)
    if config.normalization == "quantile" and stats.quantiles is not None:
        low, high = torch.tensor(stats.quantiles, dtype=torch.float64)
        return (high - low) / 2
    return torch.ones(stats.dim, dtype=torch.float64)


def _buffers(
    stats: NormStats, config: PreprocessorConfig, epsilon: float
) -> tuple[nn.Buffer, nn.Buffer]:
    """Return the offset and the divisor of the normalization as float32 buffers."""
    offset, scale = offset_and_scale(stats, config, epsilon)
    return nn.Buffer(offset.float(), persistent=False), nn.Buffer(scale.float(), persistent=False)


def offset_and_scale(
    stats: NormStats, config: PreprocessorConfig, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the offset and the divisor of the normalization, float64."""
    scale = _spread(stats, config).clamp(min=config.min_scale)
    if config.normalization == "quantile" and stats.quantiles is not None:
        # to 0 .. 2, later minus 1, as in the references
        return torch.tensor(stats.quantiles[0], dtype=torch.float64), scale + epsilon / 2
    if config.normalization == "zscore":
        return torch.tensor(stats.mean, dtype=torch.float64), scale + epsilon
    return torch.zeros_like(scale), torch.ones_like(scale)
