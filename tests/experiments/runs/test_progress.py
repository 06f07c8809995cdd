"""`progress`: one display, bars on a terminal and a line a minute elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pitune.experiments.runs import progress
from pitune.experiments.runs.progress import Screen, count_episodes

ROOT = Path(__file__).resolve().parents[3]


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Screen:
    """Return a screen that is not a terminal."""
    return Screen(Console(file=io.StringIO(), width=80), clock)


def lines(screen: Screen) -> list[str]:
    file = screen.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


@pytest.fixture
def terminal() -> Screen:
    """Return a screen that Rich takes for a terminal."""
    return Screen(Console(file=io.StringIO(), force_terminal=True, width=80))


def test_a_log_gets_the_first_line_at_once_and_then_one_a_minute(log: Screen, clock: Clock) -> None:
    with log.task("cloning", total=600) as task:
        for second in range(1, 301):
            clock.now = float(second)
            task.update(second)
    assert lines(log) == [
        "cloning: 0/600",
        "cloning: 60/600, 0:09:00 left",
        "cloning: 120/600, 0:08:00 left",
        "cloning: 180/600, 0:07:00 left",
        "cloning: 240/600, 0:06:00 left",
        "cloning: 300/600, 0:05:00 left",
    ]


def test_all_tasks_of_a_log_share_its_line_a_minute(log: Screen, clock: Clock) -> None:
    with log.task("training", total=10, done=4) as training:
        for number in range(5, 8):
            clock.now += 40
            with log.task("evaluation", total=100) as evaluation:
                evaluation.update(100)
            training.update(number, "success  50%")
    assert lines(log) == [
        "training: 4/10",
        "evaluation: 0/100",  # after 80 s
    ]


def test_the_time_left_of_a_resumed_task_counts_its_new_work_only(
    log: Screen, clock: Clock
) -> None:
    with log.task("training", total=10, done=4) as task:
        clock.now = 60
        task.update(6)  # two in a minute: two minutes for the other four
    assert lines(log)[1] == "training: 6/10, 0:02:00 left"


def test_notes_are_printed_whole_and_as_they_are(log: Screen) -> None:
    note = "a note [with brackets] of more than eighty characters, which stays on one line: " * 2
    log.note(note)
    assert lines(log) == [note]


NOISY = """
import logging, sys, warnings
handler = logging.StreamHandler()  # keeps the stream itself
logger = logging.getLogger("noisy")
logger.addHandler(handler)
logger.propagate = False
from pitune.experiments.runs.progress import screen
with screen.task("training", total=2) as task:
    for number in (1, 2):
        logger.warning(f"record {number}")
        warnings.warn(f"warning {number}")
        screen.note(f"note {number}")
        with screen.task("evaluation", total=1) as inner:
            inner.update(1)
        task.update(number)
assert handler.stream is sys.stderr
logger.warning("end")
"""


def displayed(output: str) -> list[str]:
    """Return the lines that a terminal shows in the end."""
    shown, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            shown += [""] * (row + 1 - len(shown))
        elif token == "\x1b[2K":
            shown[row] = ""
        elif token.startswith("\x1b[") and token.endswith("A"):
            row -= int(token[2:-1])
        elif not token.startswith("\x1b"):
            line = shown[row].ljust(column)
            shown[row] = line[:column] + token + line[column + len(token) :]
            column += len(token)
    return shown


def test_bars_and_other_output_do_not_tear_each_other() -> None:
    """Log records, warnings and notes stand whole above the bar, on a real terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", NOISY],
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(ROOT)},
    )
    os.close(slave)
    parts = []
    with contextlib.suppress(OSError):  # Linux ends a closed terminal with an error
        while part := os.read(master, 65536):
            parts.append(part)
    os.close(master)
    assert process.wait() == 0
    lines = [line.rstrip() for line in displayed(b"".join(parts).decode()) if line.strip()]
    kept = [line for line in lines if not line.startswith("  ")]  # the warnings' source
    assert [line.partition("UserWarning: ")[2] or line for line in kept[:-2]] == [
        *("record 1", "warning 1", "note 1"),
        *("record 2", "warning 2", "note 2"),
    ]
    assert kept[-2].startswith("training ")
    assert " 2/2 " in kept[-2]
    assert kept[-1] == "end"


def test_an_inner_task_has_its_own_bar_while_it_lasts(terminal: Screen) -> None:
    with terminal.task("training", total=2) as outer:
        with terminal.task("evaluation", total=5) as inner:
            inner.update(5)
            assert terminal._bars is not None
            assert [bar.description for bar in terminal._bars.tasks] == ["training", "evaluation"]
        assert [bar.description for bar in terminal._bars.tasks] == ["training"]
        outer.update(2)
    assert terminal._bars is None


def test_an_error_ends_the_display(terminal: Screen) -> None:
    stream = sys.stderr
    with pytest.raises(ZeroDivisionError), terminal.task("training", total=2):
        raise ZeroDivisionError
    assert terminal._bars is None
    assert sys.stderr is stream


def test_every_episode_of_an_evaluation_is_counted(
    log: Screen, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first environment plays three of five episodes, the second is slow."""
    monkeypatch.setattr(progress, "screen", log)
    with count_episodes("evaluation", num_episodes=5, num_envs=2) as on_step:
        for first, second in ((True, False), (True, False), (True, True), (False, True)):
            clock.now += 61
            on_step(torch.tensor([first, second]))
    counts = [line.split(",")[0] for line in lines(log)]
    assert counts == ["evaluation: 0/5", *(f"evaluation: {n}/5" for n in (1, 2, 4, 5))]
