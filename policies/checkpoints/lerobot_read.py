"""Reads the JSON files of lerobot's checkpoints (0.4 and later): config and processing steps.

The pipeline is read from the step files and not assumed, because file names and step numbers differ
between versions. Unknown keys of the config are kept for writing and otherwise ignored, because
newer versions add some.
Source: lerobot `policies/{pi0,pi05}`, `processor/*.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pitune.policies.checkpoints.files import read_safetensors
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Normalization, PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
_MODES: dict[str, Normalization] = {
    "MEAN_STD": "zscore",
    "QUANTILES": "quantile",
    "IDENTITY": "none",
}
_CAMERA = "observation.images."
_LEGACY_STATS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")


@dataclass(frozen=True, kw_only=True)
class LerobotFolder:
    """The JSON files of a checkpoint.

    Example:
        >>> LerobotFolder(config={"type": "pi0"}, preprocessor={}, postprocessor={}).step("x")
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
        contents = {}
        for name, file in (
            ("config", "config.json"),
            ("preprocessor", PREPROCESSOR),
            ("postprocessor", POSTPROCESSOR),
        ):
            text = (folder / file).read_text() if (folder / file).is_file() else "{}"
            try:
                contents[name] = dict(json.loads(text))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{folder / file} is not a valid JSON object ({error}); take a complete "
                    "checkpoint"
                ) from error
        return cls(**contents)

    def step(self, name: str) -> dict[str, Any]:
        """Return the preprocessor's step of a registered name, empty if there is none."""
        for step in self.preprocessor.get("steps", []):
            if step.get("registry_name") == name:
                return dict(step)
        return {}


def read_norm_stats(
    folder: Path, files: LerobotFolder, legacy: dict[str, Tensor]
) -> tuple[NormStats, NormStats] | None:
    """Return the statistics of state and action, or None if there are none.

    Args:
        folder: The checkpoint.
        files: Its JSON files.
        legacy: Tensors of lerobot <= 0.3, which kept the statistics among the weights.
    """
    state_file = files.step("normalizer_processor").get("state_file")
    if state_file is not None:
        # a file of the normalizer's step
        tensors = read_safetensors(folder / state_file)
        keys = ("observation.state.{}", "action.{}")
    elif legacy:
        # older checkpoints hold buffers among the weights
        tensors = legacy
        keys = (
            "normalize_inputs.buffer_observation_state.{}",
            "unnormalize_outputs.buffer_action.{}",
        )
    else:
        return None
    state, action = (_stats(tensors, key, folder) for key in keys)
    return state, action


def _stats(tensors: dict[str, Tensor], key: str, folder: Path) -> NormStats:
    stats = {
        name: tuple(tensors[key.format(name)].double().flatten().tolist())
        for name in ("mean", "std", "q01", "q99")
        if key.format(name) in tensors
    }
    if not {"mean", "std"} <= stats.keys():
        raise ValueError(
            f"the norm stats of {folder} lack {key.format('mean')} or {key.format('std')}; they "
            f"hold {sorted(tensors)}, take a complete checkpoint"
        )
    return NormStats.without_quantiles(**stats) if "q01" not in stats else NormStats(**stats)


def split_legacy_stats(
    weights: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights, and the statistics that lerobot <= 0.3 kept among them."""
    stats = {
        key.removeprefix("model."): value
        for key, value in weights.items()
        if key.removeprefix("model.").startswith(_LEGACY_STATS)
    }
    return {k: v for k, v in weights.items() if k.removeprefix("model.") not in stats}, stats


def preprocessor_config(
    files: LerobotFolder,
    stats: tuple[NormStats, NormStats] | None,
    family: str,
    state_padding: int | None = None,
) -> PreprocessorConfig:
    """Return lerobot's preprocessing. Without stats nothing is normalized.

    Args:
        files: The checkpoint's JSON files.
        stats: Statistics of state and action.
        family: Family of the weights.
        state_padding: Width of the state in π0.5's prompt, if the checkpoint does not determine it.

    Raises:
        ValueError: the checkpoint normalizes in a way that is not supported.
    """
    config = files.config
    # widths of the robot
    state_dim = _width(config, "input_features", "observation.state")
    action_dim = _width(config, "output_features", "action")
    if stats is not None:  # hub configs may hold the padded widths, 32
        state_dim, action_dim = min(state_dim, stats[0].dim), min(action_dim, stats[1].dim)

    # norm stats
    normalization: Normalization = "none"
    if stats is None:
        stats = NormStats.identity(state_dim), NormStats.identity(action_dim)
    else:
        normalization = _normalization(files)

    # settings of the steps
    normalizer = files.step("normalizer_processor").get("config", {})
    tokenizer = files.step("tokenizer_processor").get("config", {})
    # `tokenizer_max_length` of lerobot's two config classes
    default_tokens = 48 if family == "pi0" else 200
    is_quantile = normalization == "quantile"
    return PreprocessorConfig(
        state=stats[0].first(state_dim),
        action=stats[1].first(action_dim),
        normalization=normalization,
        epsilon=0.0 if is_quantile else float(normalizer.get("eps", 1e-8)),
        # lerobot adds epsilon when it normalizes, and not in the inverse
        epsilon_out=0.0,
        # lerobot replaces a quantile range of zero by epsilon, and has no least scale otherwise
        min_scale=float(normalizer.get("eps", 1e-8)) / 2 if is_quantile else 0.0,
        delta_mask=_delta_mask(files, action_dim),
        loss_dims="robot",
        pictures=_with_robot_names(pictures_config(config), files),
        prompt=PromptConfig(
            max_tokens=tokenizer.get(
                "max_length", config.get("tokenizer_max_length", default_tokens)
            ),
            clean=family == "pi05",
            discrete_state=family == "pi05",
            state_padding=_state_padding(files, family, state_padding),
        ),
    )


def _state_padding(files: LerobotFolder, family: str, given: int | None) -> int:
    """Return the width to which the state is padded before it enters π0.5's prompt.

    lerobot 0.4 padded it to 32, later versions do not pad. The step for relative actions is newer
    than 0.4, so a checkpoint with it does not pad. Without it the version is unknown.

    Raises:
        ValueError: the version is unknown, and the caller passed no width.
    """
    if family == "pi0" or given is not None:
        return given or 0
    if not files.step("relative_actions_processor"):
        raise ValueError(
            "this checkpoint does not determine whether its prompts hold a padded state; pass "
            "state_padding=32 (--load.state-padding 32) if lerobot 0.4 trained it, 0 otherwise"
        )
    return 0


def _width(config: dict[str, Any], group: str, key: str) -> int:
    try:
        return int(config[group][key]["shape"][0])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"config.json has no width of {key}: {group} is {config.get(group)}; take a complete "
            "checkpoint"
        ) from error


def _normalization(files: LerobotFolder) -> Normalization:
    normalizer = files.step("normalizer_processor").get("config", {})
    modes = normalizer.get("norm_map") or files.config.get("normalization_mapping", {})
    state, action = modes.get("STATE", "MEAN_STD"), modes.get("ACTION", "MEAN_STD")
    if state != action or state not in _MODES:
        raise ValueError(
            f"the checkpoint normalizes its state by {state} and its action by {action}; both must "
            f"use the same one of {sorted(_MODES)}, export the policy so"
        )
    return _MODES[state]


def pictures_config(config: dict[str, Any]) -> PicturesConfig:
    """Return the cameras in the order of the input features. Empty ones are missing."""
    names = [
        key.removeprefix(_CAMERA)
        for key, feature in config.get("input_features", {}).items()
        if feature.get("type") == "VISUAL"
    ]
    empty = [name for name in names if name.startswith("empty_camera_")]
    return PicturesConfig(
        cameras={name: name for name in names if name not in empty},
        missing=tuple(empty),
        size=int(config.get("image_resolution", (224, 224))[0]),
        resize="torch",
    )


def _with_robot_names(pictures: PicturesConfig, files: LerobotFolder) -> PicturesConfig:
    """Return the cameras under the robot's names, which lerobot's first step renames."""
    step = files.step("rename_observations_processor").get("config", {})
    robot_names = {
        new.removeprefix(_CAMERA): old.removeprefix(_CAMERA)
        for old, new in step.get("rename_map", {}).items()
    }
    cameras = {name: robot_names.get(camera, camera) for name, camera in pictures.cameras.items()}
    return replace(pictures, cameras=cameras)


def _delta_mask(files: LerobotFolder, action_dim: int) -> tuple[bool, ...]:
    """Return True for relative actions. An action whose name has an excluded word is absolute."""
    step = files.step("relative_actions_processor").get("config", {})
    if not step.get("enabled", False):
        return ()
    words = [str(word).lower() for word in step.get("exclude_joints") or [] if word]
    names = [str(name).lower() for name in step.get("action_names") or []]
    mask = [not any(word in name for word in words) for name in names[:action_dim]]
    return tuple(mask + [True] * (action_dim - len(mask)))
