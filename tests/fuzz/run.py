"""Run the fuzz: random command lines and random damage, each in a copy of a small world.

    python -m tests.fuzz.run --kind command_lines --number 300
    python -m tests.fuzz.run --kind folders --only 17

It prints a line for every case with faults, and a count of all exit statuses.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import command_lines, folders
from tests.fuzz.child import Ending, contents, faults_of_text, run_command
from tests.fuzz.world import make_world

SEED, NUMBER = 13, 300
KINDS = ("command_lines", "folders")


@dataclass(frozen=True)
class Result:
    """A case that ran: its number, its command and damage, its end, and its faults."""

    number: int
    case: str
    ending: Ending
    faults: tuple[str, ...]

    def text(self) -> str:
        """Return the case with its faults and the end of its outputs."""
        last = self.ending.err.strip().splitlines()[-1:] or self.ending.out.splitlines()[-1:]
        shown = "\n".join(f"    {fault}" for fault in self.faults)
        end = f"    [{self.ending.status}] {''.join(last)[:200]}"
        return f"{self.number}: {self.case}\n{shown}\n{end}"


def run_all(kind: str, numbers: range, template: Path) -> Iterator[Result]:
    """Yield the results of the cases with these numbers.

    Args:
        kind: One of `KINDS`.
        numbers: Of the cases.
        template: Folder of the world, which is copied for each case.
    """
    lines = command_lines.command_lines(SEED, numbers.stop)
    damages = folders.damages(SEED, numbers.stop)
    for number in numbers:
        with tempfile.TemporaryDirectory() as name:
            world = Path(name) / "world"
            shutil.copytree(template, world, symlinks=True)
            if kind == KINDS[0]:
                yield _command_line(number, lines[number], world)
            else:
                yield _damage(number, damages[number], world)


def _command_line(number: int, line: command_lines.Line, world: Path) -> Result:
    before = contents(world)
    ending = run_command(line.words, world)
    own = command_lines.faults_of_line(line, world, before, ending)
    return Result(number, shlex.join(line.words), ending, (*faults_of_text(ending), *own))


def _damage(number: int, damage: folders.Damage, world: Path) -> Result:
    changes = folders.apply(damage, world)
    before = contents(world)
    ending = run_command(damage.words(world), world)
    own = folders.faults_of_damage(damage, world, before, ending)
    case = f"{damage.command} after {'; '.join(changes)}"
    return Result(number, case, ending, (*faults_of_text(ending), *own))


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--number", type=int, default=NUMBER)
    parser.add_argument("--only", type=int)
    parser.add_argument("--verbose", action="store_true", help="print every case")
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.number)
    if args.only is not None:
        numbers = range(args.only, args.only + 1)
    statuses: Counter[int] = Counter()
    faulty = 0
    with tempfile.TemporaryDirectory() as name:
        template = Path(name) / "world"
        template.mkdir()
        make_world(template)
        for result in run_all(args.kind, numbers, template):
            statuses[result.ending.status] += 1
            faulty += bool(result.faults)
            if result.faults or args.verbose:
                print(result.text(), flush=True)
            if args.only is not None:
                print(result.ending.text)
    ends = dict(sorted(statuses.items()))
    print(f"{len(numbers)} cases, {faulty} with faults; exit statuses {ends}")


if __name__ == "__main__":
    main()
