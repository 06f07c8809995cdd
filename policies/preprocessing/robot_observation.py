"""A robot's observation, under the keys of openpi's and lerobot's clients or of an environment.

Letters: s robot state dim, Y, X image pixels.
Source: openpi `policies/{libero,droid,aloha}_policy.py`; lerobot `processor`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies.preprocessing.images import nearest
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig
from pitune.policies.preprocessing.robot_pictures import picture_bytes

STATES = (
    ("observation/state",),
    ("observation/joint_position", "observation/gripper_position"),
    ("observation.state",),
    ("state",),
)
"""Keys of the state: openpi's LIBERO, DROID, lerobot, and ALOHA or an environment."""
PICTURES = (
    "image/{}",
    "observation/{}",
    "observation.images.{}",
    "images/{}",
    "observation/images/{}",
    "{}",
)
"""Keys of a camera's picture: an environment, openpi, lerobot, ALOHA."""
PROMPTS = ("prompt", "task")
"""Keys of the instruction: openpi and lerobot."""


def robot_observation(config: PreprocessorConfig, raw: Mapping[str, Any]) -> TensorDict:
    """Return a robot's observation with one row: `state` (1, s), `image/<camera>` (1, 3, Y, X).

    Args:
        config: Settings of the policy that acts on it.
        raw: The observation. Nested mappings are read as keys with slashes.

    Raises:
        ValueError: an entry is missing, stands there twice with different values, or has a wrong
            shape, type or range.
    """
    flat = dict(_flattened(raw))
    tensors = {"state": _state(config, flat)[None]}
    cameras = [] if config.pictures is None else list(config.pictures.cameras.values())
    used = set()
    for camera in cameras:
        keys = _picture_keys_of(camera, config, flat)
        used.update(keys)
        tensors[f"image/{camera}"] = picture_bytes(keys[0], flat[keys[0]])[None]
    surplus = sorted(set(_picture_keys(flat)) - used)
    if surplus and not isinstance(raw, TensorDictBase):
        warnings.warn(
            f"the pictures {surplus} of the observation are not used, because the policy's "
            f"cameras are {cameras}",
            stacklevel=4,
        )
    return TensorDict(tensors, batch_size=[1])


def instruction_of(prompt: PromptConfig | None, raw: Mapping[str, Any]) -> str:
    """Return the instruction of one observation, or the prompt's default.

    Raises:
        ValueError: there is none, it is no text, or two keys disagree.
    """
    flat = dict(_flattened(raw))
    given = {key: flat[key] for key in PROMPTS if flat.get(key) is not None}
    if not given:
        if prompt is None or prompt.default is None:
            raise ValueError(
                "the observation has no prompt, and the policy no default one; pass the words "
                f"under one of {list(PROMPTS)} (an environment's are `env.spec.tasks[task_id]`)"
            )
        return prompt.default
    words = {key: _text(key, value) for key, value in given.items()}
    if len(set(words.values())) > 1:
        raise ValueError(f"the observation has two instructions, {words}; pass one of them")
    return next(iter(words.values()))


def _flattened(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries, those of nested mappings under keys with slashes."""
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | TensorDictBase):
            yield from _flattened(value, f"{name}/")
        else:
            yield name, value


def _text(key: str, words: Any) -> str:
    if isinstance(words, np.ndarray | list | tuple) and len(np.atleast_1d(words)) == 1:
        words = np.atleast_1d(words)[0]
    if not isinstance(words, str):
        raise ValueError(f"the {key} must be one text, but is {words!r}")
    return str(words)


def _state(config: PreprocessorConfig, flat: Mapping[str, Any]) -> Tensor:
    """Return the state (s) [robot units]."""
    present = {key for key, value in flat.items() if value is not None}
    complete = [keys for keys in STATES if present.issuperset(keys)]
    if not complete:
        partly = [key for keys in STATES for key in keys if present & set(keys)]
        lacking = sorted(set(partly) - present)
        raise ValueError(
            f"the observation has no state{f', {lacking} is missing' if lacking else ''}: its keys "
            f"are {sorted(flat)}; wanted are {_wanted(config)}"
        )
    states = [np.concatenate([_numbers(key, flat[key]) for key in keys]) for keys in complete]
    if any(not np.array_equal(state, states[0]) for state in states):
        names = [" + ".join(keys) for keys in complete]
        raise ValueError(f"the observation has different states under {names}; pass one of them")
    state = states[0]
    if len(state) != config.state.dim:
        raise ValueError(
            f"the robot's state has {len(state)} numbers under {list(complete[0])}, the policy's "
            f"norm stats {config.state.dim}; pass the state that it was trained with"
        )
    return torch.from_numpy(state)


def _numbers(key: str, value: Any) -> np.ndarray:
    """Return a part of the state as float32 numbers, in one row."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key} is no row of numbers ({error})") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{key} is {type(value).__name__} of {array.dtype}, no row of numbers")
    if array.ndim > 2 or (array.ndim == 2 and len(array) != 1):
        raise ValueError(f"{key} has shape {array.shape}; the state of one moment is one row")
    with np.errstate(over="ignore"):
        row = np.ascontiguousarray(array.reshape(-1), dtype=np.float32)
    if bad := np.flatnonzero(~np.isfinite(row)).tolist():
        raise ValueError(f"{key} is not finite in dimensions {bad}; check the robot's sensors")
    return row


def _picture_keys_of(camera: str, config: PreprocessorConfig, flat: Mapping[str, Any]) -> list[str]:
    """Return the keys of a camera's picture, which must all hold the same one."""
    keys = [key for pattern in PICTURES if (key := pattern.format(camera)) in flat]
    if not keys:
        cameras = set() if config.pictures is None else set(config.pictures.cameras.values())
        names = (key.rpartition("/")[2].rpartition(".")[2] for key in _picture_keys(flat))
        hint = nearest([camera], set(names) - cameras)
        raise ValueError(
            f"the observation has no picture of camera {camera!r}{hint}: its keys are "
            f"{sorted(flat)}; wanted are {_wanted(config)}. Rename one, or map the cameras with "
            "LoadConfig.cameras"
        )
    first, *others = keys
    for key in others:
        if not _same(flat[key], flat[first]):
            raise ValueError(
                f"the observation has different pictures of camera {camera!r} under {keys}; pass "
                "one of them"
            )
    return keys


def _same(value: Any, other: Any) -> bool:
    try:
        return value is other or bool(np.array_equal(np.asarray(value), np.asarray(other)))
    except (ValueError, TypeError):
        return False


def _picture_keys(flat: Mapping[str, Any]) -> list[str]:
    """Return the keys of the arrays that may be pictures."""
    return [key for key, value in flat.items() if getattr(value, "ndim", 0) in (3, 4)]


def _wanted(config: PreprocessorConfig) -> list[str]:
    """Return the keys that a policy wants, by an environment's names."""
    cameras = {} if config.pictures is None else config.pictures.cameras
    words = [] if config.prompt is None else ["prompt"]
    state = f"state ({config.state.dim} numbers)"
    return [state, *(f"image/{camera}" for camera in cameras.values()), *words]
