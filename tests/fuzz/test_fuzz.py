"""No command line and no damaged folder ends in a traceback, without a result, or in a loss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzz.child import Ending, faults_of_text, run_command
from tests.fuzz.command_lines import command_lines
from tests.fuzz.folders import damages
from tests.fuzz.run import KINDS, NUMBER, SEED, run_all
from tests.fuzz.world import make_world

CASES = int(os.environ.get("PITUNE_FUZZ", NUMBER))
"""Cases of each kind; the variable shortens a first look."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a world."""
    folder = tmp_path_factory.mktemp("fuzz") / "world"
    folder.mkdir()
    make_world(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_case_ends_in_a_fault(kind: str, template: Path) -> None:
    faulty = [r.text() for r in run_all(kind, range(CASES), template) if r.faults]
    assert not faulty, "\n".join(faulty)


def test_the_cases_are_the_same_every_time() -> None:
    assert [c.words for c in command_lines(SEED, 40)] == [c.words for c in command_lines(SEED, 40)]
    assert damages(SEED, 40) == damages(SEED, 40)
    assert len({c.words for c in command_lines(SEED, NUMBER)}) > 0.8 * NUMBER


@pytest.mark.parametrize(
    ("ending", "fault"),
    [
        (Ending(1, "", "Traceback (most recent call last):\nKeyError: 'x'\n"), "traceback: KeyE"),
        (Ending(-9, "", ""), "ran past its time"),
        (Ending(-11, "", ""), "signal 11"),
        (Ending(2, "", ""), "status 2 without a message"),
    ],
)
def test_a_fault_would_be_seen(ending: Ending, fault: str) -> None:
    """Negative control."""
    assert any(text.startswith(fault) for text in faults_of_text(ending))
    assert faults_of_text(Ending(2, "", "error: no run in x\n")) == []


def test_a_command_runs_in_a_child(tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    ending = run_command(("list", "nothing"), world)
    assert (ending.status, ending.out) == (2, "")
    assert ending.err.startswith("error: unknown list 'nothing'")
