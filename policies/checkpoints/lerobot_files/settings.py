"""The fields of lerobot's `config.json`, each honored, known to be irrelevant, or rejected by name.

Source: lerobot 0.3 to 0.6, `configs/policies.py` and `policies/{pi0,pi05}/configuration_*.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pitune.policies.network.config import Pi0Config

DEFAULTS = {
    "chunk_size": 50,
    "n_action_steps": 50,
    "num_inference_steps": 10,
    "max_state_dim": 32,
    "max_action_dim": 32,
}
"""Whole numbers that change the policy, with lerobot's defaults."""
_FIXED: dict[str, Any] = {
    "n_obs_steps": 1,
    "min_period": 4e-3,
    "max_period": 4.0,
    "adapt_to_pi_aloha": False,
    "use_delta_joint_actions_aloha": False,
    "use_visual_memory": False,
    "use_proprioceptive_memory": False,
}
"""Fields with the only value that is supported, which is lerobot's default."""
_TRAINING = {
    "time_sampling_beta_alpha": 1.5,
    "time_sampling_beta_beta": 1.0,
    "time_sampling_scale": 0.999,
    "time_sampling_offset": 0.001,
}
"""Flow times of lerobot's training, with the values that cloning uses here."""
_READ = {"type", "input_features", "output_features", "num_steps", "resize_imgs_with_padding"}
_READ |= {"image_resolution", "tokenizer_max_length", "normalization_mapping", "dtype", "use_peft"}
_READ |= {"rtc_training_max_delay"}
_UNUSED = """
use_relative_actions relative_exclude_joints action_feature_names empty_cameras
paligemma_variant action_expert_variant proj_width
device use_amp use_cache attention_implementation compile_model compile_mode
push_to_hub repo_id private tags license pretrained_path pretrained_revision
gradient_checkpointing freeze_vision_encoder train_expert_only train_state_proj
optimizer_lr optimizer_betas optimizer_eps optimizer_weight_decay optimizer_grad_clip_norm
scheduler_warmup_steps scheduler_decay_steps scheduler_decay_lr rtc_config
"""
"""Fields without an effect on the actions: copies of the steps' settings, sizes that follow from
the weights, hardware, the hub, training, and real-time chunking."""


def check_settings(config: Mapping[str, Any], file: Path | str) -> None:
    """Fail if a field asks for a computation that is not implemented.

    Warns of fields of newer versions that are set, because nothing is known of them.

    Raises:
        ValueError: names the field, its value and the supported one.
    """
    for name, only in _FIXED.items():
        value = config.get(name, only)
        if value != only or (isinstance(only, bool) and value is not only):
            raise ValueError(
                f"{file} has {name}={value!r}, which is not implemented; only {only!r} is. Train "
                f"the checkpoint with {name}={only!r}, or run it with lerobot"
            )
    for name in DEFAULTS:
        whole(config, name, file)
    if config.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise ValueError(
            f"{file} has dtype={config['dtype']!r}; lerobot computes in 'float32' or 'bfloat16', "
            "set the one that trained it"
        )
    if not isinstance(config.get("use_peft", False), bool):
        raise ValueError(f"{file} has use_peft={config['use_peft']!r}; it must be true or false")

    # fields that are set and have no effect here
    other = {n: config[n] for n, value in _TRAINING.items() if config.get(n, value) != value}
    known = DEFAULTS.keys() | _FIXED.keys() | _TRAINING.keys() | _READ | set(_UNUSED.split())
    # settings of a memory that is off
    surplus = [name for name in config.keys() - known if not name.startswith("memory_")]
    other |= {name: config[name] for name in sorted(surplus) if config[name]}
    if other:
        warnings.warn(
            f"{file} sets {other}, which pitune does not use; check that the policy does not "
            "depend on it",
            stacklevel=2,
        )


def whole(config: Mapping[str, Any], name: str, file: Path | str) -> int:
    """Return a positive whole number of the config, by default lerobot's.

    Raises:
        ValueError: the field is set to something else.
    """
    value = config.get(name, DEFAULTS[name])
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{file} has {name}={value!r}, which must be a positive whole number; lerobot's default"
            f" is {DEFAULTS[name]}"
        )
    return value


def real_time_delay(config: Mapping[str, Any], file: Path | str) -> int:
    """Return the longest clean beginning of the training's chunks, 0 without any.

    Raises:
        ValueError: the field is no whole number.
    """
    value = config.get("rtc_training_max_delay") or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"{file} has rtc_training_max_delay={value!r}, which must be a whole number; 0 stands "
            "for a training without delays"
        )
    return value


def flow_steps(config: Mapping[str, Any], file: Path | str) -> int:
    """Return the number of flow steps, which lerobot 0.3 called `num_steps`.

    Raises:
        ValueError: both names are used with different numbers, or one is no whole number.
    """
    steps = whole(config, "num_inference_steps", file)
    if "num_steps" not in config:
        return steps
    older = whole({"num_inference_steps": config["num_steps"]}, "num_inference_steps", file)
    if "num_inference_steps" in config and older != steps:
        raise ValueError(
            f"{file} has num_steps={older} and num_inference_steps={steps}; remove the wrong one"
        )
    return older


def execution_horizon(config: Mapping[str, Any], horizon: int, file: Path | str) -> int:
    """Return h, at most an action horizon.

    Raises:
        ValueError: it is above the config's own chunk.
    """
    steps, chunk = whole(config, "n_action_steps", file), whole(config, "chunk_size", file)
    if steps > chunk and "n_action_steps" in config:
        raise ValueError(
            f"{file} has n_action_steps={steps} above chunk_size={chunk}; lower it to at most that"
        )
    return min(steps, horizon)


def check_sizes(config: Mapping[str, Any], network: Pi0Config, file: Path | str) -> None:
    """Fail if the config contradicts the network that the weights make.

    Raises:
        ValueError: names the field and both values.
    """
    size = network.vision.image_size if network.vision else 224
    # lerobot 0.3 has the second name
    resolution = (
        "resize_imgs_with_padding" if "resize_imgs_with_padding" in config else ("image_resolution")
    )
    sizes: dict[str, Any] = {
        "max_action_dim": network.action_dim,
        resolution: [size, size],
        **({"max_state_dim": network.state_dim} if network.family == "pi0" else {}),
    }
    defaults = {"image_resolution": [224, 224]}
    for name, expected in sizes.items():
        value = config.get(name, defaults.get(name, expected))
        if (list(value) if isinstance(value, list | tuple) else value) != expected:
            raise ValueError(
                f"{file} has {name}={value!r}, but the weights are those of {expected}; take the "
                "config.json that belongs to the weights"
            )


def feature_width(config: Mapping[str, Any], group: str, key: str, file: Path | str) -> int:
    """Return the width of the state or of the action.

    Raises:
        ValueError: the config does not hold it.
    """
    features = config.get(group)
    try:
        shape = features[key]["shape"]  # type: ignore[index]
        if len(shape) != 1 or isinstance(shape[0], bool) or shape[0] != int(shape[0]) > 0:
            raise ValueError(shape)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{file} has no width of {key}: {group} is {features}; take a complete "
            "checkpoint, or write the robot's features into it as "
            f'"{group}": {{"{key}": {{"type": ..., "shape": [width]}}}}'
        ) from error
    return int(shape[0])


def robot_width(feature: int, stats: int, padded: int, key: str, file: Path | str) -> int:
    """Return the robot's width, given that of a feature and of its statistics.

    The feature of a checkpoint on the hub may have the padded width, and the statistics may be
    padded.

    Raises:
        ValueError: there are too few statistics for the feature.
    """
    if stats < feature != padded:
        raise ValueError(
            f"{file} has {key} of shape [{feature}], but its norm stats have {stats} dimensions; "
            "take the files of one checkpoint"
        )
    return min(feature, stats)


def number(values: Mapping[str, Any], name: str, default: float, file: Path | str) -> float:
    """Return a number that is finite and not negative.

    Raises:
        ValueError: it is something else.
    """
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(
            f"{file} has {name}={value!r}, which must be a number from 0 on; lerobot's default is "
            f"{default}"
        )
    return float(value)
