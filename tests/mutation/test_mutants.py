"""Each mutant is killed by the tests of its own module, or the table says why not."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutation.mutant import ROOT, Change, Mutant
from tests.mutation.run import Result, report
from tests.mutation.table import MUTANTS, SLOW_TESTS, SURVIVORS

LEAST_KILLED = 0.95


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_old_text_of_a_mutant_occurs_once(mutant: Mutant) -> None:
    assert mutant.occurrences() == 1
    assert "\n" not in mutant.change.old + mutant.change.new
    compile(mutant.applied((ROOT / mutant.file).read_text()), mutant.file, "exec")


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len(MUTANTS) >= 140
    assert [name for name, num in Counter(m.name for m in MUTANTS).items() if num > 1] == []


def test_every_survivor_is_a_mutant() -> None:
    assert SURVIVORS.keys() <= {mutant.name for mutant in MUTANTS}
    assert len(SURVIVORS) <= (1 - LEAST_KILLED) * len(MUTANTS)


def test_the_tests_of_mutants_exist() -> None:
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for name in {test for mutant in MUTANTS for test in mutant.tests}:
        file, _, function = name.partition("::")
        assert (ROOT / file).exists(), name
        assert f"def {function}(" in sources or not function, name
    for name in SLOW_TESTS:
        assert f"def {name}(" in sources, name


def test_a_text_that_occurs_twice_or_never_is_refused() -> None:
    mutant = Mutant("rl/x.py", Change("a name", "a + b", "a - b"), ())
    assert mutant.applied("c = a + b") == "c = a - b"
    for source, num in (("c = a", 0), ("c = a + b\nd = a + b", 2)):
        with pytest.raises(ValueError, match=f"rl/x.py: a name: 'a \\+ b' occurs {num} times; it"):
            mutant.applied(source)


def test_the_report_lists_the_survivors_with_their_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SURVIVORS, "a.py: known", "it is equivalent")
    outcomes = [("a.py: killed", "killed"), ("a.py: known", "survived"), ("a.py: new", "survived")]
    results = [Result(name, outcome, 1.0, "") for name, outcome in outcomes]  # type: ignore[arg-type]
    assert report(results, 5.2).splitlines() == [
        "3 mutants in 5 s: {'killed': 1, 'survived': 2}",
        "survived: a.py: known (it is equivalent)",
        "survived: a.py: new (not explained)",
    ]


CONTROL = """
from tests.mutation.mutant import Change, Mutant
from tests.mutation.run import run

changes = [
    Change("harmless", "SPLITS: tuple[Split, ...]", "SPLITS: tuple[str, ...]"),
    Change("wrong", ">> 1)", ">> 2)"),
    Change("no Python", "def next(self", "def next(self,,"),
    Change("endless", "key = [seed,", "while True: key = [seed,"),
]
mutants = [Mutant("envs/seeding.py", change, ("tests/envs/test_seeding.py",)) for change in changes]
print({result.name: result.outcome for result in run(mutants, num_workers=2, timeout=30)})
"""


@pytest.mark.slow
def test_harmless_wrong_broken_and_endless_changes_are_told_apart() -> None:
    """Control of the test below: the changes reach the tests, and reach nothing else."""
    before = (ROOT / "envs/seeding.py").read_text()
    command = [sys.executable, "-c", CONTROL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == {
        "envs/seeding.py: harmless": "survived",
        "envs/seeding.py: wrong": "killed",
        "envs/seeding.py: no Python": "broken",
        "envs/seeding.py: endless": "timed out",
    }
    assert (ROOT / "envs/seeding.py").read_text() == before


@pytest.mark.slow
def test_the_mutants_are_killed(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.mutation.run", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert file.exists(), done.stderr[-3000:]
    results = {result["name"]: result["outcome"] for result in json.loads(file.read_text())}
    assert len(results) == len(MUTANTS)
    assert [name for name, outcome in results.items() if outcome == "broken"] == []
    survivors = {name for name, outcome in results.items() if outcome == "survived"}
    assert survivors <= SURVIVORS.keys(), done.stdout[-3000:]
    assert len(survivors) <= (1 - LEAST_KILLED) * len(MUTANTS)
