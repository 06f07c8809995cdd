"""Time of every part of the work, as a multiple of the bare network's.

    pitune bench
    pitune bench parts --size tiny --no-compile --algorithms ppo dsrl
    pitune bench --device cuda --dtype bfloat16 --size tiny

The bare network is its module calls alone: `encode`, `velocity`, and their backward passes. A part
that takes 1.2 times as long spends a sixth of its time elsewhere. The weights are random, because
time does not depend on their values. Times on the CPU are those of the process on one thread, so
other work on the machine matters less. Those on an accelerator are by the clock on the wall, from
an idle device until it is idle again. Each is the median of --repeats rounds over all parts, after
a call that is not measured. A compiled part is measured right after its eager form, and the table
has the median, least and greatest of their ratios.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from pitune import rl
from pitune.compilation import CompileClock
from pitune.experiments.benchmarks.parts.clock import seconds
from pitune.experiments.benchmarks.parts.work import (
    GROWTH,
    Work,
    WorkConfig,
    temporary_folder,
)
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.run import provenance
from pitune.ranges import PositiveFloat, PositiveInt

Times = Mapping[str, float]
"""Time of each part [s]."""
LETTERS = {"num_envs": "E", "action_horizon": "H", "flow_steps": "K", "width": "width"}


@dataclass(frozen=True, kw_only=True)
class PartsConfig(WorkConfig):
    """Measure all parts of work of these sizes.

    Raises:
        ValueError: an algorithm is unknown.

    Example:
        >>> PartsConfig(algorithms=("ppo",), growth=False).repeats
        3
    """

    algorithms: tuple[str, ...] = ()
    """Algorithms whose gradient steps are measured, all by default."""
    compile: bool = True
    """Whether to measure the compiled policy too, which takes minutes to compile."""
    growth: bool = True
    """Whether to measure each part with twice the environments, chunk length, flow steps, width."""
    repeats: PositiveInt = 3
    """Rounds over all parts."""
    least_seconds: PositiveFloat = 0.2
    """Least time of one measurement [s]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.algorithms:
            rl.registry.entry(name)


@dataclass(frozen=True)
class Row:
    """The measurements of a part.

    Example:
        >>> row = Row("encode", eager=0.2, bare=0.1, speedups=(1.9, 2.0, 2.2), growth={"E": 1.9})
        >>> row.share, row.speedup
        (2.0, '2.00 x (1.90-2.20)')
    """

    name: str
    eager: float
    """Time [s]."""
    bare: float
    """Time of the bare network for the same rows and flow steps [s]."""
    speedups: tuple[float, ...]
    """How many times as fast the compiled policy is, of each round."""
    growth: Times
    """Time with twice of something, as a multiple."""

    @property
    def share(self) -> float:
        """Time as a multiple of the bare network's."""
        return self.eager / self.bare

    @property
    def speedup(self) -> str:
        """Median, least and greatest of the speedups in words."""
        if not self.speedups:
            return ""
        least, greatest = min(self.speedups), max(self.speedups)
        return f"{median(self.speedups):.2f} x ({least:.2f}-{greatest:.2f})"


def measure(config: PartsConfig) -> tuple[list[Row], float]:
    """Return the rows of the table, and the time of the compilations [s]."""
    torch.set_num_threads(1)
    names = list(config.algorithms) or sorted(rl.presets())
    with temporary_folder() as folder:
        eager = Work(config, Path(folder), False, names)
        device = eager.policy.device
        parts, bare = eager.parts(), eager.bare()
        # each compiled part once, so that no compilation falls into a measurement
        compile_clock, compiled_parts = CompileClock(), {}
        if config.compile:
            compiled_parts = Work(config, Path(folder), True, names).parts()
            for part in compiled_parts.values():
                part.act()
        compile_clock.stop()

        # in turn, because the load of the machine changes
        rounds: list[dict[str, float]] = []
        for _ in range(config.repeats):
            least = config.least_seconds
            times = {f"bare {name}": seconds(act, device, least) for name, act in bare.items()}
            for name, part in parts.items():
                times[name] = seconds(part.act, device, least)
                if name in compiled_parts:
                    times[f"compiled {name}"] = seconds(compiled_parts[name].act, device, least)
            rounds.append(times)
        middle = {name: median(times[name] for times in rounds) for name in rounds[0]}
        grown = _growth(config, Path(folder), names, middle) if config.growth else {}
    rows = [
        Row(
            name,
            middle[name],
            middle[f"bare {part.bare}"],
            tuple(
                times[name] / times[f"compiled {name}"]
                for times in rounds
                if name in compiled_parts
            ),
            {letter: times[name] for letter, times in grown.items()},
        )
        for name, part in parts.items()
    ]
    return rows, compile_clock.seconds


def _growth(
    config: PartsConfig, folder: Path, names: list[str], base: Times
) -> dict[str, dict[str, float]]:
    """Return the time of each part with twice of each size, as a multiple of its base."""
    grown = {}
    for size in GROWTH:
        work = Work(config.grown(size), folder, False, names)
        acts = [part.act for part in work.parts().values()]
        device, least = work.policy.device, config.least_seconds
        times = [seconds(act, device, least) for act in acts]
        # the names of some parts hold the number of flow steps, their order stays
        grown[LETTERS[size]] = {
            name: value / base[name]
            for name, value in zip([n for n in base if _is_part(n)], times, strict=True)
        }
    return grown


def _is_part(name: str) -> bool:
    """Return whether a measurement is that of an eager part."""
    return not name.startswith(("bare ", "compiled "))


def report(config: PartsConfig, rows: Sequence[Row], compile_seconds: float) -> Table:
    """Return the rows as a table, with the multiple of the bare network in front."""
    title = (
        f"{config.size}: E = {config.num_envs}, H = {config.action_horizon}, "
        f"K = {config.flow_steps}, width {config.width}, minibatch {config.minibatch_size}, "
        f"{config.dtype} on {config.device}"
    )
    where = provenance()
    machine = where["machine"] if config.device == "cpu" else where["cuda"] or config.device
    caption = f"medians of {config.repeats}; commit {where['commit'][:10]}; {machine}"
    if config.compile:
        caption += f"; compiled in {compile_seconds:.0f} s"
    table = Table(title=title, caption=caption)
    table.add_column("part")
    for name in ("of bare network", "compiled faster by", "ms"):
        table.add_column(name, justify="right")
    letters = list(rows[0].growth)
    for letter in letters:
        table.add_column(f"2 {letter}", justify="right")
    for row in rows:
        growth = [f"{row.growth[letter]:.2f}" for letter in letters]
        table.add_row(
            row.name, f"{row.share:.2f} x", row.speedup, f"{1000 * row.eager:.2f}", *growth
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            PartsConfig, arguments(argv), prog=program("bench parts"), description=__doc__
        )
        Console(width=120).print(report(config, *measure(config)))


if __name__ == "__main__":
    main()
