"""Whether a run may be resumed with some settings: only those that change a number count."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pitune.experiments.runs.config_file import read_config
from pitune.experiments.runs.progress import screen

HARMLESS = (
    "device",
    "torch_threads",
    "compile",
    "env.num_workers",
    "env.workers_on",
    "env.ray_address",
    "shard",
)
"""Settings of speed and place, which may differ when a run is resumed.

Other devices, threads, compiled code and sharding round differently, so the numbers are then equal
up to rounding.
"""


class Difference(NamedTuple):
    """A setting that differs between a run and a request.

    Example:
        >>> str(Difference("seed", 0, 1))
        'seed: 0 -> 1'
    """

    name: str
    saved: Any
    asked: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.saved!r} -> {self.asked!r}"


def check_same(
    folder: Path,
    config: dict[str, Any],
    name: str = "config.json",
    defaults: dict[str, Any] | None = None,
    option: str = "--out",
) -> None:
    """Reject a run that was started with another config.

    Args:
        folder: Folder of the run.
        config: Settings that are asked for now.
        name: File in the folder.
        defaults: Default values of `config`. They stand for settings that an older version of
            pitune did not have.
        option: The option that names the folder, for the message.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its config is damaged, differs from `config`, or has unknown settings.
    """
    record = read_config(folder / name)
    saved, asked = record["config"], json.loads(json.dumps(config))
    # settings of other versions, if it is the same algorithm: others have others
    if defaults is not None and saved.get("algorithm_name") == asked.get("algorithm_name"):
        saved = _completed(saved, json.loads(json.dumps(defaults)), folder)
        _reject_unknown(saved, asked, folder)
    started_in = record.get("started_in", {})
    found = [
        difference
        for difference in compare(saved, asked)
        if not _same_path(difference, folder, started_in)
    ]
    for difference in found:
        if difference.name in HARMLESS:
            screen.note(f"{folder} goes on with {difference}, which only changes rounding or speed")
    different = sorted(str(d) for d in found if d.name not in HARMLESS)
    if different:
        raise ValueError(
            f"{folder} was started with another config; different: {'; '.join(different)}. "
            f"Resume with the same options, or pass another {option}"
        )


def differences(saved: Any, asked: Any) -> list[str]:
    """Return the differences between two configs, as `path: saved -> asked`."""
    return [str(difference) for difference in compare(saved, asked)]


def compare(saved: Any, asked: Any, path: str = "") -> Iterator[Difference]:
    """Yield the differences between two configs."""
    if isinstance(saved, Mapping) and isinstance(asked, Mapping):
        for key in saved.keys() | asked.keys():
            name = f"{path}.{key}" if path else key
            yield from compare(saved.get(key), asked.get(key), name)
    elif saved != asked:
        yield Difference(path, saved, asked)


def _completed(saved: dict[str, Any], defaults: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings of a run of an older version, with the defaults of newer ones."""
    added: list[str] = []

    def complete(block: Any, default: Any, path: str) -> Any:
        if not isinstance(block, Mapping) or not isinstance(default, Mapping):
            return block
        names = {key: f"{path}.{key}" if path else key for key in default}
        added.extend(names[key] for key in default if key not in block)
        kept = {key: complete(block[key], default.get(key), names.get(key, "")) for key in block}
        return {**default, **kept}

    completed: dict[str, Any] = complete(saved, defaults, "")
    if added:
        screen.note(
            f"{folder} is of an older version of pitune; new settings have their defaults: "
            f"{', '.join(sorted(added))}"
        )
    return completed


def _reject_unknown(saved: Any, asked: Any, folder: Path) -> None:
    unknown = sorted(_surplus(saved, asked))
    if unknown:
        raise ValueError(
            f"{folder / 'config.json'} has settings that this version of pitune does not know: "
            f"{', '.join(unknown)}. Resume the run with the version that started it"
        )


def _surplus(saved: Any, asked: Any, path: str = "") -> Iterator[str]:
    """Yield the names of settings that are saved and that no config has now."""
    if not isinstance(saved, Mapping) or not isinstance(asked, Mapping) or not asked:
        return
    for key, value in saved.items():
        name = f"{path}.{key}" if path else key
        if key in asked:
            yield from _surplus(value, asked[key], name)
        else:
            yield name


def _same_path(difference: Difference, folder: Path, started_in: Mapping[str, str]) -> bool:
    """Return whether two texts are spellings of one path, or the run has moved with the path."""
    _, saved, asked = difference
    if not isinstance(saved, str) or not isinstance(asked, str) or not saved or not asked:
        return False
    before = os.path.join(started_in.get("cwd", os.getcwd()), saved)
    if os.path.realpath(before) == os.path.realpath(asked):
        return True
    moved_from = started_in.get("folder")
    if moved_from is None or os.path.realpath(moved_from) == os.path.realpath(folder):
        return False
    return os.path.relpath(before, moved_from) == os.path.relpath(asked, folder)
