"""Reads the JSON files of lerobot's checkpoints: config, processing steps and their statistics.

The pipeline is read from the step files and not assumed, because file names and step numbers differ
between versions. What the files ask for is honored, or rejected by name.
Source: lerobot `policies/{pi0,pi05}`, `processor/*.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pitune.policies.checkpoints.config import LerobotVersion
from pitune.policies.checkpoints.lerobot_files import legacy as older
from pitune.policies.checkpoints.lerobot_files import settings, stats
from pitune.policies.checkpoints.lerobot_files.cameras import (
    pictures_config,
    with_robot_names,
)
from pitune.policies.checkpoints.lerobot_files.steps import (
    POSTPROCESSOR,
    PREPROCESSOR,
    Steps,
    check_steps,
    with_present_names,
)
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Normalization, PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig


@dataclass(frozen=True, kw_only=True)
class LerobotFolder:
    """The JSON files of a checkpoint.

    Example:
        >>> LerobotFolder(config={"type": "pi0"}, preprocessor={}, postprocessor={}).before.steps
        {}
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    postprocessor: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> LerobotFolder:
        """Read `config.json`, and the step files if they exist.

        Raises:
            ValueError: one of them is no JSON object.
        """
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"no config.json in {folder}, which has lerobot's {PREPROCESSOR}; take a complete "
                "checkpoint"
            )
        contents = {}
        for name, file in (
            ("config", "config.json"),
            ("preprocessor", PREPROCESSOR),
            ("postprocessor", POSTPROCESSOR),
        ):
            # some editors put a mark before the text
            path = folder / file
            text = path.read_bytes().decode("utf-8-sig", "replace") if path.is_file() else "{}"
            try:
                contents[name] = dict(json.loads(text))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path} is not a valid JSON object ({error}); take a complete checkpoint"
                ) from error
            if path.is_file() and not contents[name]:
                raise ValueError(f"{path} is empty; take a complete checkpoint")
        return cls(**{name: with_present_names(content) for name, content in contents.items()})

    @property
    def before(self) -> Steps:
        """Steps of the preprocessor."""
        return Steps.of(self.preprocessor, PREPROCESSOR)

    @property
    def after(self) -> Steps:
        """Steps of the postprocessor."""
        return Steps.of(self.postprocessor, POSTPROCESSOR)

    @property
    def feature_types(self) -> dict[str, str]:
        """Type of each input feature."""
        features = self.config.get("input_features") or {}
        return {
            key: str(feature.get("type"))
            for key, feature in features.items()
            if isinstance(feature, Mapping)
        }

    def modes(self) -> tuple[Normalization, Normalization]:
        """Return how the state is normalized and the action unnormalized.

        Raises:
            ValueError: a mode is not supported.
        """
        if not self.before.steps:
            return older.legacy_modes(self.config)
        return stats.step_modes(self.before, self.after, self.feature_types)


def read_norm_stats(
    folder: Path, files: LerobotFolder, legacy: dict[str, Tensor]
) -> tuple[NormStats, NormStats] | None:
    """Return the statistics of state and action, or None if there are none.

    Args:
        folder: The checkpoint.
        files: Its JSON files.
        legacy: Tensors of lerobot <= 0.3, which kept the statistics among the weights.

    Raises:
        FileNotFoundError: a file of statistics is missing.
        ValueError: a file lacks statistics that the mode needs, or pictures are normalized.
    """
    modes = files.modes()
    if files.before.steps:
        quantities = stats.step_quantities(
            folder, files.before, files.after, modes, files.feature_types
        )
    else:
        quantities = older.legacy_quantities(legacy, files.config, modes)
    if not any(quantity.stats for quantity in quantities) and modes != ("none", "none"):
        return None

    def of(quantity: stats.Quantity, group: str, key: str) -> NormStats:
        if quantity.mode == "none":
            width = settings.feature_width(files.config, group, key, "config.json")
            return NormStats.identity(width)
        return stats.norm_stats(quantity, key, folder)

    state, action = quantities
    return of(state, "input_features", stats.STATE), of(action, "output_features", stats.ACTION)


def preprocessor_config(
    files: LerobotFolder,
    norm_stats: tuple[NormStats, NormStats] | None,
    family: str,
    state_padding: int | None = None,
    version: LerobotVersion | None = None,
) -> PreprocessorConfig:
    """Return lerobot's preprocessing. Without stats nothing is normalized.

    Args:
        files: The checkpoint's JSON files.
        norm_stats: Statistics of state and action.
        family: Family of the weights.
        state_padding: Width of the state in π0.5's prompt, if the checkpoint does not determine it.
        version: Version that trained the checkpoint, if the checkpoint does not determine it.

    Raises:
        ValueError: the checkpoint asks for something that is not supported.
    """
    config, before = files.config, files.before
    check_steps(before, files.after, family)
    normalization, norm_stats = _normalization(files, norm_stats)
    normalizer, tokenizer = (before.config(n) for n in (stats.NORMALIZER, "tokenizer_processor"))
    version = version or _version(files, state_padding)
    # `tokenizer_max_length` of lerobot's two config classes
    default_tokens = 48 if family == "pi0" else 200
    max_tokens = tokenizer.get("max_length", config.get("tokenizer_max_length", default_tokens))
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ValueError(
            f"config.json has tokenizer_max_length={max_tokens!r}, which must be a positive whole "
            f"number; lerobot's default is {default_tokens}"
        )
    is_quantile = normalization == "quantile"
    epsilon = settings.number(normalizer, "eps", 1e-8, PREPROCESSOR)
    return PreprocessorConfig(
        state=norm_stats[0],
        action=norm_stats[1],
        normalization=normalization,
        epsilon=0.0 if is_quantile else epsilon,
        # lerobot adds epsilon when it normalizes, and not in the inverse
        epsilon_out=0.0,
        # lerobot replaces a quantile range of zero by epsilon, and has no least scale otherwise
        min_scale=epsilon / 2 if is_quantile else 0.0,
        delta_mask=_delta_mask(files, norm_stats[1].dim),
        loss_dims="robot",
        pictures=with_robot_names(pictures_config(config, version), before),
        prompt=PromptConfig(
            max_tokens=max_tokens,
            clean=family == "pi05",
            discrete_state=family == "pi05",
            state_padding=_state_padding(files, family, state_padding, version),
        ),
    )


def _normalization(
    files: LerobotFolder, given: tuple[NormStats, NormStats] | None
) -> tuple[Normalization, tuple[NormStats, NormStats]]:
    """Return the normalization and the statistics of the robot's dimensions.

    A quantity that stays as it is gets statistics that do not change it.

    Raises:
        ValueError: state and action are normalized differently, or widths contradict each other.
    """
    config, modes = files.config, files.modes()
    widths = [
        settings.feature_width(config, group, key, "config.json")
        for group, key in (("input_features", stats.STATE), ("output_features", stats.ACTION))
    ]
    if given is None:
        return "none", (NormStats.identity(widths[0]), NormStats.identity(widths[1]))
    used = sorted({mode for mode in modes if mode != "none"})
    if len(used) > 1:
        names = {mode: name for name, mode in stats.MODES.items()}
        raise ValueError(
            f"the checkpoint normalizes its state by {names[modes[0]]} ({PREPROCESSOR}) and its "
            f"action by {names[modes[1]]} ({POSTPROCESSOR}); both must use the same one of "
            f"{sorted(stats.MODES)}, export the policy so"
        )

    # widths of the robot
    padded = [
        settings.whole(config, f"max_{key}_dim", "config.json") for key in ("state", "action")
    ]
    state, action = (
        quantity.first(settings.robot_width(width, quantity.dim, limit, key, "config.json"))
        for quantity, width, limit, key in zip(
            given, widths, padded, (stats.STATE, stats.ACTION), strict=True
        )
    )
    state = NormStats.identity(state.dim) if modes[0] == "none" else state
    action = NormStats.identity(action.dim) if modes[1] == "none" else action
    return used[0] if used else "none", (state, action)


def _version(files: LerobotFolder, state_padding: int | None) -> LerobotVersion | None:
    """Return the version that trained a checkpoint, None if its files do not determine it.

    The step for relative actions came with 0.5.1. Versions 0.4 and 0.5.0 wrote equal files.
    """
    if "relative_actions_processor" in files.before:
        return "0.5"
    if "resize_imgs_with_padding" in files.config:
        return "0.3"
    if state_padding is None:
        return None
    return "0.4" if state_padding else "0.5"


def _state_padding(
    files: LerobotFolder, family: str, given: int | None, version: LerobotVersion | None
) -> int:
    """Return the width to which the state is padded before it enters π0.5's prompt.

    lerobot 0.4 padded it, later versions do not.

    Raises:
        ValueError: the version is unknown, and the caller passed no width.
    """
    if family == "pi0" or given is not None:
        return given or 0
    if version is None:
        raise ValueError(
            "this checkpoint does not determine whether its prompts hold a padded state; pass "
            "state_padding=32 (--load.state-padding 32) if lerobot 0.4 trained it, 0 otherwise"
        )
    return settings.whole(files.config, "max_state_dim", "config.json") if version == "0.4" else 0


def _delta_mask(files: LerobotFolder, action_dim: int) -> tuple[bool, ...]:
    """Return True for relative actions. An action whose name has an excluded word is absolute."""
    step = files.before.config("relative_actions_processor")
    if not step.get("enabled", False):
        return ()
    words = [str(word).lower() for word in step.get("exclude_joints") or [] if word]
    names = [str(name).lower() for name in step.get("action_names") or []]
    mask = [not any(word in name for word in words) for name in names[:action_dim]]
    return tuple(mask + [True] * (action_dim - len(mask)))
