"""The processing steps of lerobot's checkpoints, all of which must be known.

A step that is not known, one whose settings are not known, and an order in which the known steps
compute something else are errors that name the step.
Source: lerobot 0.4 to 0.6, `processor/*.py`, `policies/{pi0,pi05}/processor_*.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
_NORMALIZER = {"eps", "features", "norm_map", "normalize_observation_keys"}
_TOKENIZER = {"max_length", "task_key", "padding_side", "padding", "truncation", "tokenizer_name"}
_KNOWN: dict[str, dict[str, set[str]]] = {
    PREPROCESSOR: {
        "rename_observations_processor": {"rename_map"},
        "to_batch_processor": set(),
        "pi0_new_line_processor": set(),
        "pi05_prepare_state_tokenizer_processor_step": {"max_state_dim", "task_key"},
        "tokenizer_processor": _TOKENIZER,
        "device_processor": {"device", "float_dtype"},
        "relative_actions_processor": {"enabled", "exclude_joints", "action_names"},
        "normalizer_processor": _NORMALIZER,
    },
    POSTPROCESSOR: {
        "unnormalizer_processor": _NORMALIZER,
        "absolute_actions_processor": {"enabled"},
        "device_processor": {"device", "float_dtype"},
    },
}
"""Known steps of each file, with the settings of each."""
_RENAMED = {"delta_actions_processor": "relative_actions_processor"}
"""Names of lerobot 0.5.1, and the present ones."""
_ORDER = (
    ("rename_observations_processor", "relative_actions_processor"),
    ("rename_observations_processor", "normalizer_processor"),
    ("relative_actions_processor", "normalizer_processor"),
    ("normalizer_processor", "pi05_prepare_state_tokenizer_processor_step"),
    ("pi05_prepare_state_tokenizer_processor_step", "tokenizer_processor"),
    ("pi0_new_line_processor", "tokenizer_processor"),
    ("unnormalizer_processor", "absolute_actions_processor"),
)
"""Pairs of steps of which the first must come first."""
_PROMPT = {
    "pi0": "pi0_new_line_processor",
    "pi05": "pi05_prepare_state_tokenizer_processor_step",
}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The known steps of one file, by name.

    Example:
        >>> steps = {"steps": [{"registry_name": "to_batch_processor", "config": {}}]}
        >>> Steps.of(steps, "policy_preprocessor.json").config("to_batch_processor")
        {}
    """

    file: str
    """Name of the file, for messages."""
    steps: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, content: Mapping[str, Any], file: str) -> Steps:
        """Check the steps of a file, which is `PREPROCESSOR` or `POSTPROCESSOR`.

        Raises:
            ValueError: a step or one of its settings is not known, is doubled, or comes too late.
        """
        listed = content.get("steps", [] if not content else None)
        if not isinstance(listed, list):
            raise ValueError(
                f"{file} has steps={listed!r}, which must be a list; take a complete checkpoint"
            )
        steps: dict[str, Mapping[str, Any]] = {}
        for position, step in enumerate(listed):
            name = _known_name(step, position, file)
            if name in steps and name not in ("device_processor", "to_batch_processor"):
                raise ValueError(f"{file} has the step {name!r} twice; remove one of them")
            steps[name] = {"config": {}, **step}
        _check_order(list(steps), file)
        return cls(file=file, steps=steps)

    def __contains__(self, name: str) -> bool:
        return name in self.steps

    def config(self, name: str) -> Mapping[str, Any]:
        """Return the settings of a step, empty if there is no such step."""
        return dict(self.steps.get(name, {}).get("config", {}))

    def state_file(self, name: str) -> str | None:
        """Return the name of a step's file of tensors.

        Raises:
            ValueError: it is not the name of a file in the checkpoint.
        """
        value = self.steps.get(name, {}).get("state_file")
        if value is not None and (not isinstance(value, str) or Path(value).name != value):
            raise ValueError(
                f"{self.file}: the step {name!r} has state_file={value!r}, which must be the name "
                "of a file beside it"
            )
        return value


def with_present_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step file whose steps have the names of the present lerobot."""

    def present(step: Any) -> Any:
        name = step.get("registry_name") if isinstance(step, Mapping) else None
        return {**step, "registry_name": _RENAMED[name]} if name in _RENAMED else step

    steps = content.get("steps")
    return {**content, "steps": [*map(present, steps)]} if isinstance(steps, list) else {**content}


def _known_name(step: Any, position: int, file: str) -> str:
    """Return the present name of a step whose settings are all known."""
    name = step.get("registry_name") if isinstance(step, Mapping) else None
    known = _KNOWN[file]
    label = str(name)
    if label not in known:
        shown = step.get("class", name) if isinstance(step, Mapping) else step
        raise ValueError(
            f"{file} has the step {shown!r} at position {position}, which is not known, so that "
            f"its effect would be lost; known are {sorted(known)}. Remove it and do its work in "
            "the environment, or run the checkpoint with lerobot"
        )
    config = step.get("config", {})
    if not isinstance(config, Mapping):
        raise ValueError(f"{file}: the step {label!r} has config={config!r}, which must be {{}}")
    surplus = sorted(config.keys() - known[label])
    if any(config[key] for key in surplus):
        raise ValueError(
            f"{file}: the step {label!r} has {surplus[0]}={config[surplus[0]]!r}, which is not "
            f"known; known settings are {sorted(known[label])}"
        )
    return label


def _check_order(names: list[str], file: str) -> None:
    for first, second in _ORDER:
        if first in names and second in names and names.index(first) > names.index(second):
            raise ValueError(
                f"{file} has the step {second!r} before {first!r}, and in lerobot's pipelines it "
                "comes after; export the policy again with lerobot"
            )


def check_steps(before: Steps, after: Steps, family: str) -> None:
    """Fail if the steps of a checkpoint do not make up lerobot's pipeline of a family.

    Raises:
        ValueError: names the file, the step and the setting.
    """
    if not before.steps and not after.steps:
        return  # lerobot <= 0.3
    for there, lacking in ((after, before), (before, after)):
        if not lacking.steps:
            raise ValueError(
                f"the checkpoint has {there.file}, but no steps of {lacking.file}; take a complete "
                "checkpoint"
            )

    # steps that the network's input needs
    for name in (_PROMPT[family], "tokenizer_processor"):
        if name not in before:
            raise ValueError(
                f"{before.file} lacks the step {name!r}, with which lerobot makes {family}'s "
                "prompt; export the policy again with lerobot"
            )
    for other in set(_PROMPT.values()) - {_PROMPT[family]}:
        if other in before:
            raise ValueError(
                f"{before.file} has the step {other!r}, which is not {family}'s; take the files of "
                "one checkpoint"
            )
    _check_settings(before, after)
    _check_relative(before, after)


def _check_settings(before: Steps, after: Steps) -> None:
    """Fail if a step has a setting that computes something else than is done here."""
    expected = (
        (before, "tokenizer_processor", "task_key", ("task",)),
        (before, "tokenizer_processor", "padding_side", ("right", "left")),
        (before, "tokenizer_processor", "padding", ("max_length", "longest", True)),
        (before, "tokenizer_processor", "truncation", (True,)),
        (before, _PROMPT["pi05"], "task_key", ("task",)),
        (before, "device_processor", "float_dtype", (None, "float32")),
        (after, "device_processor", "float_dtype", (None, "float32")),
        (before, "relative_actions_processor", "enabled", (True, False)),
        (after, "absolute_actions_processor", "enabled", (True, False)),
    )
    for steps, name, setting, valid in expected:
        value = steps.config(name).get(setting, valid[-1])
        if not any(value is option or value == option for option in valid) or (
            isinstance(valid[0], bool) and not isinstance(value, bool)
        ):
            raise ValueError(
                f"{steps.file}: the step {name!r} has {setting}={value!r}; valid are {list(valid)},"
                " export the policy so"
            )
    length = before.config("tokenizer_processor").get("max_length", 1)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(
            f"{before.file}: the step 'tokenizer_processor' has max_length={length!r}, which must "
            "be a positive whole number"
        )


def _check_relative(before: Steps, after: Steps) -> None:
    """Fail if only one of training and acting has relative actions."""
    relative = before.config("relative_actions_processor").get("enabled", False)
    absolute = after.config("absolute_actions_processor").get("enabled", False)
    if relative != absolute:
        raise ValueError(
            f"'relative_actions_processor' of {before.file} has enabled={relative}, but "
            f"'absolute_actions_processor' of {after.file} has enabled={absolute}; both must be "
            "the same, take the files of one checkpoint"
        )
