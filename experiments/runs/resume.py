"""Continue a run where it stopped: from nothing, from its latest checkpoint, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pitune.experiments.recipes import preset
from pitune.experiments.runs.config_file import read_config
from pitune.experiments.runs.folder.checkpoints import own_checkpoints
from pitune.experiments.runs.folder.same_config import check_same
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.results_table import read_run
from pitune.experiments.runs.train_config import (
    DEFAULT_OUT,
    LIMITS,
    SUBCOMMANDS,
    TrainConfig,
    train_options,
)

RESUME, OUT = "--resume", "--out"
_BLOCKS = tuple(SUBCOMMANDS.values())


def finished_summary(config: TrainConfig) -> dict[str, Any] | None:
    """Return the summary of a run, or None if it is not finished.

    Raises:
        ValueError: the folder has a finished run with other settings.
    """
    if not (config.out / "summary.json").is_file():
        return None
    check_same(config.out, config.identity(), defaults=config.defaults())
    summary, _ = read_run(config.out)
    for name in ("checkpoint", "best_checkpoint"):  # the folder may have been moved
        summary[name] = str(config.out / Path(summary[name]).name)
    return summary


def train_or_resume(
    config: TrainConfig, train: Callable[[TrainConfig], dict[str, Any]]
) -> dict[str, Any]:
    """Start a run, or continue it from its latest checkpoint, and return its summary.

    A run that was killed before its first checkpoint starts again.

    Args:
        config: Of the run.
        train: Runs a training.

    Raises:
        ValueError: the folder has a run with other settings.
    """
    begun = bool(own_checkpoints(config.out))
    if begun:
        screen.note(f"{config.out} is continued from its latest checkpoint")
    return train(replace(config, resume=begun))


def with_saved_options(args: Sequence[str]) -> list[str]:
    """Return the arguments of `pitune train` that resume a run, those of the run first.

    `--resume RUN` alone suffices. Options beside it replace the run's.

    Args:
        args: Arguments. Without `--resume` they are returned as they are.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its config is damaged, or of another algorithm than `args` name.
    """
    folder, words = _resumed_folder(list(args))
    if folder is None:
        return words
    record = read_config(folder / "config.json")
    name = record["config"].get("algorithm_name")
    if words and not words[0].startswith("-"):
        asked = words.pop(0)
        if asked != name:
            raise ValueError(
                f"{folder} was started with another config; different: algorithm_name: {name!r} "
                f"-> {asked!r}. Resume with the same options, or pass another --out"
            )
    try:
        own = train_options(_found_here(record["config"], folder, record.get("started_in", {})))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is broken ({error!r}); the run cannot be resumed"
        ) from error

    # blocks that a word adds come last, those of the caller instead of the run's
    own, own_block = _before_block(own)
    words, block = _before_block(words)
    ends = [*_limit_options(record["limits"]), *words, OUT, str(folder), RESUME]
    return [name, *own, *ends, *(block or own_block)]


def _resumed_folder(words: list[str]) -> tuple[Path | None, list[str]]:
    """Return the folder that is resumed, or None, and the words without it and its options."""
    folder, out, resumed, kept = None, None, False, []
    position = 0
    while position < len(words):
        word, following = words[position], [*words, ""][position + 1]
        position += 1
        name, equals, value = word.partition("=")
        if name == RESUME:
            resumed = True
            if equals:
                folder = Path(value)
            elif following and not following.startswith("-") and following not in _BLOCKS:
                folder, position = Path(following), position + 1
        elif name == OUT and (equals or following):
            out = Path(value if equals else following)
            kept += [word] if equals else [word, following]
            position += not equals
        else:
            kept.append(word)
    if not resumed:
        return None, words
    if folder is not None and out is not None and folder.resolve() != out.resolve():
        raise ValueError(
            f"--resume {folder} and --out {out} are different folders; pass one of them"
        )
    return folder or out or DEFAULT_OUT, kept


def _before_block(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after the first of `SUBCOMMANDS`."""
    first = next((i for i, word in enumerate(words) if word in _BLOCKS), len(words))
    return words[:first], words[first:]


def _limit_options(limits: Mapping[str, Any]) -> list[str]:
    """Return the options for the saved limits and reports of a run."""
    words = []
    for name in (*LIMITS, "save_minutes", "logger", "wandb"):
        if name in limits:
            words += [f"--{name.replace('_', '-')}", str(limits[name])]
    if "video" in limits:
        words.append("--video" if limits["video"] else "--no-video")
    return words


def _found_here(
    config: dict[str, Any], folder: Path, started_in: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings of a run with its device and its files as this process finds them."""
    here = dict(config)
    if str(here.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
        del here["device"]  # the default is one that exists

    def found(value: Any, is_path: bool = False) -> Any:
        if isinstance(value, Mapping):
            return {key: found(inner, key in paths) for key, inner in value.items()}
        if not (is_path and isinstance(value, str)) or os.path.exists(value) or not started_in:
            return value
        before = os.path.join(started_in["cwd"], value)
        moved = os.path.join(folder, os.path.relpath(before, started_in["folder"]))
        return next((path for path in (before, moved) if os.path.exists(path)), value)

    paths = path_settings(config["algorithm_name"])
    resolved: dict[str, Any] = found(here)
    return resolved


def path_settings(algorithm: str) -> set[str]:
    """Return the names of the settings of a training that are paths."""

    def names(block: Any) -> set[str]:
        own = {f.name for f in fields(block) if "Path" in str(f.type)}
        parts = [getattr(block, f.name) for f in fields(block)]
        return own.union(*(names(part) for part in parts if is_dataclass(part)))

    return names(TrainConfig(algorithm=preset(algorithm)))
