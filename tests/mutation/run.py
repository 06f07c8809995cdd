"""Run each mutant's tests on a copy of the checkout in which its one line is changed.

    python -m tests.mutation.run                   # all mutants
    python -m tests.mutation.run --only replay     # those whose name contains a word

A mutant is killed if a test fails or takes too long. First the tests run on an unchanged copy,
because a test that fails there would kill everything. The checkout itself is never changed. One
process imports the libraries, which takes seconds, and forks for every mutant.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from tests.mutation.mutant import ROOT, Mutant
from tests.mutation.table import MUTANTS, SLOW_TESTS, SURVIVORS

Outcome = Literal["killed", "survived", "timed out", "broken"]
LIBRARIES = (
    "PIL.Image",
    "einops",
    "gymnasium",
    "numpy",
    "pytest",
    "rich",
    "safetensors.torch",
    "scipy.stats",
    "tensordict",
    "torch",
    "torchrl.collectors",
    "torchrl.data",
    "torchrl.envs",
    "torchrl.objectives.value.functional",
    "tyro",
)
"""Libraries that are imported before the forks."""
PARTS = ("pitune", "rl", "policies", "envs", "experiments", "tests", "setup.cfg", "pyproject.toml")


@dataclass
class Result:
    """The outcome of one mutant."""

    name: str
    outcome: Outcome
    seconds: float
    by: str
    """The first test that failed."""


@dataclass
class Job:
    """A running pytest process."""

    mutant: Mutant | None
    copy: Path
    pid: int
    start: float


def copy_checkout(folder: Path) -> Path:
    """Return a copy of the checkout with compiled sources."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    compileall.compile_dir(folder, quiet=2)
    return folder


def run_tests(copy: Path, tests: Iterable[str]) -> NoReturn:
    """Run tests in a copy, in this forked process, and end it with pytest's exit status."""
    import pytest

    os.setsid()
    log = os.open(copy / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(copy)
    # modules come from the copy, and a changed file must not be compiled into its cache
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    slow = " or ".join(SLOW_TESTS)
    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-W", "ignore"]
    status = 3
    try:
        status = int(pytest.main([*options, "-k", f"not ({slow})", *tests]))
    finally:
        os._exit(status)


def start(mutant: Mutant | None, copy: Path, tests: Iterable[str]) -> Job:
    """Start the tests of a mutant in a copy, or given tests on the unchanged code."""
    if mutant is not None:
        file = copy / mutant.file
        file.write_text(mutant.applied((ROOT / mutant.file).read_text()))
        for cached in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            cached.unlink()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        run_tests(copy, tests)
    return Job(mutant, copy, pid, time.monotonic())


def finished(job: Job, timeout: float) -> tuple[Outcome, float] | None:
    """Return the outcome and duration [s] of a job, or None while it runs."""
    seconds = time.monotonic() - job.start
    pid, status = os.waitpid(job.pid, os.WNOHANG)
    if pid == 0:
        if seconds < timeout:
            return None
        os.killpg(job.pid, signal.SIGKILL)
        os.waitpid(job.pid, 0)
        return "timed out", seconds
    code = os.waitstatus_to_exitcode(status)
    outcomes: dict[int, Outcome] = {0: "survived", 1: "killed"}
    return outcomes.get(code, "broken"), seconds


def first_failure(copy: Path) -> str:
    """Return the test that failed first, from the log of a copy's last run."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", (copy / "log.txt").read_text(), re.MULTILINE)
    return found.group(1) if found else ""


def check_unchanged(copies: list[Path], mutants: list[Mutant]) -> None:
    """Run all selected tests on the unchanged copies.

    Raises:
        RuntimeError: a test fails.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    jobs = [
        start(None, copy, tests[i :: len(copies)])
        for i, copy in enumerate(copies)
        if tests[i :: len(copies)]
    ]
    for job in jobs:
        os.waitpid(job.pid, 0)
        log = (job.copy / "log.txt").read_text()
        if " failed" in log or " error" in log or " passed" not in log:
            raise RuntimeError(f"the tests fail on unchanged code:\n{log[-3000:]}")


def run(mutants: list[Mutant], num_workers: int, timeout: float) -> list[Result]:
    """Return the outcome of each mutant, in the order in which they end."""
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copies = [copy_checkout(Path(folder) / str(i)) for i in range(num_workers)]
        check_unchanged(copies, mutants)
        waiting, results = list(mutants), []
        jobs: list[Job] = []
        while waiting or jobs:
            while waiting and copies:
                mutant = waiting.pop(0)
                jobs.append(start(mutant, copies.pop(), mutant.tests))
            time.sleep(0.05)
            for job in list(jobs):
                ended = finished(job, timeout)
                if ended is None or job.mutant is None:
                    continue
                by = first_failure(job.copy)
                results.append(Result(job.mutant.name, ended[0], ended[1], by))
                print(f"{ended[0]:9} {ended[1]:5.1f} s  {job.mutant.name}  {by}", flush=True)
                shutil.copy(ROOT / job.mutant.file, job.copy / job.mutant.file)
                jobs.remove(job)
                copies.append(job.copy)
    return results


def report(results: list[Result], seconds: float) -> str:
    """Return the counts and the survivors, with their reasons."""
    counts = Counter(result.outcome for result in results)
    lines = [f"{len(results)} mutants in {seconds:.0f} s: {dict(counts)}"]
    for result in results:
        if result.outcome in ("survived", "broken"):
            reason = SURVIVORS.get(result.name, "not explained")
            lines.append(f"{result.outcome}: {result.name} ({reason})")
    return "\n".join(lines)


def main() -> None:
    """Command line entry. The exit status is 1 if a mutant survives without an explanation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="words in the names of the mutants to run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=300.0, help="per mutant [s]")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.only or any(word in m.name for word in args.only)]
    begin = time.monotonic()
    results = run(chosen, args.workers, args.timeout)
    print(report(results, time.monotonic() - begin))
    if args.json is not None:
        args.json.write_text(json.dumps([vars(result) for result in results], indent=1))
    unexplained = [r for r in results if r.outcome == "survived" and r.name not in SURVIVORS]
    sys.exit(bool(unexplained or any(result.outcome == "broken" for result in results)))


if __name__ == "__main__":
    main()
