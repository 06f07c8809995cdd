"""Training settings of openpi's checkpoints, which the checkpoints do not hold.

openpi keeps the horizon, the normalization, the delta actions, the cameras and the robot's
dimensions in its own Python configs. The settings here have the names of those configs. A robot of
one's own has its settings in a file, see `read_pipeline`.
Source: openpi `training/config.py`, `policies/{libero,droid,aloha}_policy.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pitune.policies.network.config import Family
from pitune.policies.preprocessing.images import nearest

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""openpi's cameras, in the order of the prefix."""
FILE = "pipeline.json"
"""File of the pipeline that pitune writes beside a checkpoint in openpi's format."""
ENDINGS = (".json", ".yaml", ".yml")
"""Endings of a pipeline's file."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The settings around an openpi network that its checkpoint does not hold.

    Raises:
        ValueError: a setting has no meaning, or a camera is none of openpi's.

    Example:
        >>> own = replace(PIPELINES["pi05_libero"], state_dim=7, cameras={"base_0_rgb": "front"})
        >>> own.max_tokens
        200
    """

    family: Family
    action_horizon: int
    """H."""
    execution_horizon: int
    """h, number of actions that openpi's example client executes."""
    state_dim: int | None = None
    """Width of the robot's state. None for the width of the norm stats."""
    action_dim: int | None = None
    """Width of the robot's action. None for the width of the norm stats."""
    cameras: dict[str, str]
    """The observation's camera for each camera of the network. The others are masked."""
    quantiles: bool
    """Whether quantiles normalize. Otherwise mean and standard deviation do."""
    discrete_state: bool = False
    """Whether the prompt contains the state (π0.5)."""
    delta_mask: tuple[bool, ...] = ()
    """True for action dimensions that are relative to the state."""
    joints: Literal["as_is", "aloha"] = "as_is"
    """Whether ALOHA's joints are converted to π0's conventions."""
    prompt_tokens: int | None = None
    """L, openpi's `max_token_len`. None for 48 (π0) or 200 (π0.5)."""
    flow_steps: int = 10
    """K, openpi's `num_steps` of `sample_actions`."""

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(f"family={self.family!r} is not one of {list(get_args(Family))}")
        if unknown := sorted(set(self.cameras) - set(CAMERAS)):
            raise ValueError(
                f"cameras={self.cameras} names {unknown}, but openpi's networks have the cameras "
                f"{list(CAMERAS)}{nearest(unknown, CAMERAS)}"
            )
        if not self.cameras:
            raise ValueError(f"cameras={{}} is empty; name at least one of {list(CAMERAS)}")
        if self.joints not in ("as_is", "aloha"):
            raise ValueError(f"joints={self.joints!r} is not one of ['as_is', 'aloha']")
        for name in ("action_horizon", "execution_horizon", "flow_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("state_dim", "action_dim", "prompt_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or left out")

    @property
    def max_tokens(self) -> int:
        """Length of the prompt."""
        return self.prompt_tokens or (48 if self.family == "pi0" else 200)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Pipeline:
        """Return the pipeline of a file's settings.

        Args:
            values: Fields by name. `base` may name a known pipeline, whose settings the others
                replace.

        Raises:
            ValueError: a field is unknown, missing or of another type.
        """
        changes = dict(values)
        base = changes.pop("base", None)
        settings = {} if base is None else asdict(pipeline_named(str(base)))
        known = {item.name: item for item in fields(cls)}
        if unknown := sorted(changes.keys() - known.keys()):
            raise ValueError(
                f"{unknown} are no settings of a pipeline{nearest(unknown, known)}; valid are "
                f"{['base', *known]}"
            )
        for name, value in changes.items():
            _check_type(name, value)
        settings |= changes
        masked = bool(settings.get("delta_mask")) and "delta_mask" not in changes
        if masked and settings["action_dim"] != pipeline_named(str(base)).action_dim:
            raise ValueError(
                f"action_dim={settings['action_dim']} is not that of base={base!r}, so its "
                "delta_mask does not fit; give delta_mask, a list of true and false"
            )
        required = ("family", "action_horizon", "execution_horizon", "cameras", "quantiles")
        if missing := [name for name in required if name not in settings]:
            raise ValueError(
                f"a pipeline needs {missing}; give them, or the known pipeline to start from as "
                f"'base', one of {sorted(PIPELINES)}"
            )
        return cls(**{**settings, "delta_mask": tuple(settings.get("delta_mask", ()))})


_WHOLE = {"action_horizon", "execution_horizon", "flow_steps"}
_WHOLE_OR_NONE = {"state_dim", "action_dim", "prompt_tokens"}
_BOOLEAN = {"quantiles", "discrete_state"}


def _check_type(name: str, value: Any) -> None:
    """Reject a value of another type than its field.

    Raises:
        ValueError: names the field.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    valid, expected = True, ""
    if name in _WHOLE | _WHOLE_OR_NONE:
        valid = is_whole or (value is None and name in _WHOLE_OR_NONE)
        expected = "a whole number"
    elif name in _BOOLEAN:
        valid, expected = isinstance(value, bool), "true or false"
    elif name == "delta_mask":
        valid = isinstance(value, list | tuple) and all(isinstance(item, bool) for item in value)
        expected = "a list of true and false, one per action dimension"
    elif name == "cameras":
        valid = isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())
        expected = "an object with the observation's camera for each of the network's"
    if not valid:
        raise ValueError(f"{name}={value!r} must be {expected}")


def pipeline_named(name: str) -> Pipeline:
    """Return a pipeline by the name of openpi's config, or by the path of its file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name is unknown, or the file describes no pipeline.
    """
    if name in PIPELINES:
        return PIPELINES[name]
    if name.endswith(ENDINGS):
        return read_pipeline(Path(name))
    raise ValueError(
        f"pipeline={name!r} is not one of {sorted(PIPELINES)}{nearest([name], PIPELINES)}; for "
        "your own robot pass the path of a .json or .yaml file with its settings"
    )


def read_pipeline(file: Path) -> Pipeline:
    """Return the pipeline in a file: a JSON or YAML object with the fields of `Pipeline`.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: it is a YAML file, and PyYAML is not installed.
        ValueError: it describes no pipeline.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no pipeline at {file}; it should be a JSON or YAML object such as "
            '{"base": "pi05_libero", "state_dim": 7, "cameras": {"base_0_rgb": "front"}}'
        )
    try:
        values = _parsed(file)
        if not isinstance(values, Mapping):
            raise ValueError(f"it holds {type(values).__name__}, no object of settings")
        return Pipeline.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} describes no pipeline: {error}") from error


def _parsed(file: Path) -> Any:
    """Return the content of a JSON or YAML file."""
    if file.suffix == ".json":
        return json.loads(file.read_text())
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file} is YAML, which needs the package pyyaml; install it, or write JSON"
        ) from error
    try:
        return yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML ({error})") from error


def nearest_pipeline(family: Family, dims: tuple[int, int] | None) -> str:
    """Return the name of the known pipeline that is nearest to a checkpoint.

    Args:
        family: Family of its weights.
        dims: Widths of state and action in its norm stats, if there are any.
    """
    if dims is None:
        dims = (8, 7)

    def distance(name: str) -> int:
        pipeline = PIPELINES[name]
        widths = (pipeline.state_dim or 0, pipeline.action_dim or 0)
        return sum(abs(a - b) for a, b in zip(widths, dims, strict=True))

    return min((name for name in PIPELINES if PIPELINES[name].family == family), key=distance)


_SIX_OF_SEVEN = (True,) * 6 + (False,)

_LIBERO = Pipeline(
    family="pi0",
    action_horizon=50,
    execution_horizon=5,
    state_dim=8,
    action_dim=7,
    cameras={"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image"},
    quantiles=False,
    # LIBERO's actions are deltas already, and this checkpoint was trained with deltas of them
    delta_mask=_SIX_OF_SEVEN,
)
_DROID = Pipeline(
    family="pi0",
    action_horizon=10,
    execution_horizon=8,
    state_dim=8,
    action_dim=8,
    cameras={"base_0_rgb": "exterior_image_1_left", "left_wrist_0_rgb": "wrist_image_left"},
    quantiles=False,
)
_ALOHA = Pipeline(
    family="pi0",
    action_horizon=50,
    execution_horizon=25,
    state_dim=14,
    action_dim=14,
    cameras={
        "base_0_rgb": "cam_high",
        "left_wrist_0_rgb": "cam_left_wrist",
        "right_wrist_0_rgb": "cam_right_wrist",
    },
    quantiles=False,
    delta_mask=_SIX_OF_SEVEN * 2,
    joints="aloha",
)

PIPELINES: dict[str, Pipeline] = {
    "pi0_libero": _LIBERO,
    "pi05_libero": replace(
        _LIBERO, family="pi05", action_horizon=10, quantiles=True, delta_mask=()
    ),
    "pi0_droid": _DROID,
    "pi05_droid": replace(
        _DROID, family="pi05", action_horizon=15, quantiles=True, discrete_state=True
    ),
    "pi0_aloha": _ALOHA,
    "pi05_aloha": replace(_ALOHA, family="pi05", quantiles=True, discrete_state=True),
}
"""Pipelines by the name of openpi's config. `pi05_libero` was trained without the state."""
