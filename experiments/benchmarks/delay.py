"""Success and smoothness under decision delays, for four passages from one chunk to the next.

    pitune bench delay --env.id mujoco/PickCube --plain A/pretrained B/pretrained \
        --trained A_rtc/pretrained B_rtc/pretrained --out runs/delay

`plain` changes at once, `ensemble` averages all predictions of a step, `guided` corrects each flow
step towards the old chunk, all three with the policies of --plain. `trained` begins with the old
chunk's actions, with the policies of --trained (pitune pretrain --real-time-delay). It writes
delay.json and delay.png into --out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tensordict import TensorDictBase

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.runs.run import provenance
from pitune.policies import DelayConfig, DelayedActor, FlowPolicy, RealTimeConfig
from pitune.policies.flow.delay import Seam
from pitune.policies.real_time.action_queue import second_differences
from pitune.ranges import NonNegativeInt, PositiveInt, Seed, Settings, Threads
from pitune.rl.evaluation.statistics import wilson_interval

METHODS = ("plain", "ensemble", "guided", "trained")


@dataclass(frozen=True, kw_only=True)
class DelayBenchmarkConfig(Settings):
    """Measure policies under decision delays.

    Example:
        >>> DelayBenchmarkConfig(plain=(Path("a"),), trained=(Path("b"),)).delays
        (0, 1, 2, 3, 4)
    """

    plain: tuple[Path, ...] = ()
    """Checkpoints without clean beginnings, one per seed."""
    trained: tuple[Path, ...] = ()
    """Checkpoints that were cloned with clean beginnings, one per seed."""
    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    delays: tuple[NonNegativeInt, ...] = (0, 1, 2, 3, 4)
    """Delays [control steps]."""
    episodes: PositiveInt = 200
    """Episodes of each checkpoint, method and delay."""
    seed: Seed = 0
    """Seed of the starts and of the policy's noise."""
    jerk_dims: tuple[NonNegativeInt, ...] = ()
    """Action dimensions of the jerk, all of them by default. A gripper that opens and closes would
    hide the arm's jerk."""
    out: Path = Path("runs/delay")
    """Folder of the figure and the numbers."""
    threads: Threads = 1
    """Threads of the policy's network."""


@dataclass(frozen=True)
class Cell:
    """One checkpoint under one delay.

    Example:
        >>> cell = Cell("plain", 2, "runs/pick/pretrained", 150, 200, 0.3, 0.1)
        >>> cell.successes / cell.episodes, round(cell.jerk, 1)
        (0.75, 3.0)
    """

    method: str
    delay: int
    checkpoint: str
    successes: int
    episodes: int
    at_seam: float
    """Mean size of the second difference of the actions at a seam [robot units]."""
    elsewhere: float
    """The same inside a chunk."""

    @property
    def jerk(self) -> float:
        """Jerk at a seam over that inside a chunk."""
        return self.at_seam / max(self.elsewhere, 1e-12)


class Recorder:
    """An actor that remembers the actions of each episode.

    Args:
        actor: Acts.

    Example:
        >>> recorder = Recorder(DelayedActor(policy, DelayConfig()))  # doctest: +SKIP
        >>> rl.evaluate(env, recorder, 200)  # doctest: +SKIP
        >>> episodes = recorder.episodes()  # doctest: +SKIP
    """

    def __init__(self, actor: DelayedActor) -> None:
        self.actor = actor
        self._decisions: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def policy(self) -> FlowPolicy:
        """The policy that acts."""
        return self.actor.policy

    def evaluated(self) -> Recorder:
        """Return this actor, which never explores."""
        return self

    def __call__(self, td: TensorDictBase) -> TensorDictBase:
        """Act, and remember the actions."""
        td = self.actor(td)
        elapsed = td["elapsed"].flatten().cpu().numpy().copy()
        action: torch.Tensor = td["action"]
        self._decisions.append((elapsed, np.asarray(action.cpu())))
        return td

    def episodes(self) -> list[np.ndarray]:
        """Return the actions (steps, d) of each episode without its last two decisions.

        The last decision may be executed in part, and the one after it belongs to an environment
        that waits.
        """
        episodes: list[list[np.ndarray]] = []
        for env in range(len(self._decisions[0][0])):
            before = float("inf")
            for elapsed, action in self._decisions:
                if elapsed[env] == 0:
                    episodes.append([])
                if elapsed[env] == 0 or elapsed[env] > before:
                    episodes[-1].append(action[env])
                before = elapsed[env]
        return [np.concatenate(chunks[:-2]) for chunks in episodes if len(chunks) > 3]


def measure(config: DelayBenchmarkConfig) -> list[Cell]:
    """Return the measurements of all checkpoints, methods and delays.

    Raises:
        ValueError: there is no checkpoint.
    """
    if not config.plain and not config.trained:
        raise ValueError("there is no checkpoint; name some with --plain or --trained")
    torch.set_num_threads(config.threads)
    env = envs.make(config.env)
    cells: list[Cell] = []
    for method in METHODS:
        for checkpoint in config.trained if method == "trained" else config.plain:
            cells += [_cell(config, env, method, checkpoint, delay) for delay in config.delays]
    env.close()
    return cells


def _cell(
    config: DelayBenchmarkConfig,
    env: envs.CheckedEnv,
    method: str,
    checkpoint: Path,
    delay: int,
) -> Cell:
    """Return the measurement of one checkpoint."""
    # policy with the settings of its method
    policy = policies.load(checkpoint)
    seam: Seam = "real_time"
    settings: RealTimeConfig | None = None
    if method in ("plain", "ensemble"):
        seam = method  # type: ignore[assignment]
    else:
        settings = RealTimeConfig(method=method)  # type: ignore[arg-type]
    policy = policy.replace(sampler=replace(policy.sampler, real_time=settings))

    # episodes, with their actions
    recorder = Recorder(DelayedActor(policy, DelayConfig(steps=delay, seam=seam), config.seed))
    result = rl.evaluate(env, recorder, config.episodes, seed=config.seed)

    # jerk at the steps where new chunks came into force
    h = policy.sampler.execution_horizon
    at_seam, elsewhere = [], []
    for actions in recorder.episodes():
        starts = list(range(h + delay, len(actions), h))
        moved = actions[:, list(config.jerk_dims)] if config.jerk_dims else actions
        seam_jumps, others = second_differences(moved, starts)
        at_seam.append(seam_jumps)
        elsewhere.append(others)
    # nan where no episode has a seam, or chunks are too short to have an inside
    parts = [np.concatenate(part) if part else np.zeros(0) for part in (at_seam, elsewhere)]
    jumps = [float(part.mean()) if len(part) else float("nan") for part in parts]
    successes = sum(bool(row.success_once) for row in result.rows)
    return Cell(method, delay, str(checkpoint), successes, len(result.rows), *jumps)


def report(config: DelayBenchmarkConfig, cells: Sequence[Cell]) -> Table:
    """Return the means over the checkpoints as a table, with intervals over all episodes."""
    table = Table(title=f"{config.env.id}, commit {provenance()['commit'][:10]}")
    for name in ("method", "delay", "success", "95 % interval", "of each", "seam jerk"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, delay, group in _groups(cells):
        successes = sum(cell.successes for cell in group)
        episodes = sum(cell.episodes for cell in group)
        low, high = wilson_interval(successes, episodes)
        each = ", ".join(f"{cell.successes / cell.episodes:.1%}" for cell in group)
        jerk = float(np.mean([cell.jerk for cell in group]))
        rate, interval = f"{successes / episodes:.1%}", f"{low:.1%} to {high:.1%}"
        table.add_row(method, str(delay), rate, interval, each, f"{jerk:.2f}")
    return table


def draw(config: DelayBenchmarkConfig, cells: Sequence[Cell], file: Path) -> None:
    """Draw success and seam jerk over the delay, one line per method and a point per checkpoint."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, method in enumerate(METHODS):
        groups = [(delay, group) for name, delay, group in _groups(cells) if name == method]
        if not groups:
            continue
        delays, color = [delay for delay, _ in groups], f"C{number}"
        for axes, values in (
            (left, [[c.successes / c.episodes for c in group] for _, group in groups]),
            (right, [[c.jerk for c in group] for _, group in groups]),
        ):
            axes.plot(delays, [np.mean(row) for row in values], color=color, label=method)
            for delay, row in zip(delays, values, strict=True):
                axes.plot([delay] * len(row), row, ".", color=color, markersize=4)
    left.set(xlabel="delay [control steps]", ylabel="success rate", ylim=(0, 1))
    right.set(xlabel="delay [control steps]", ylabel="seam jerk [-]")
    left.legend(fontsize="small")
    figure.suptitle(config.env.id)
    figure.savefig(file, dpi=120)


def _groups(cells: Sequence[Cell]) -> list[tuple[str, int, list[Cell]]]:
    """Return the cells of each method and delay, in order."""
    keys = dict.fromkeys((cell.method, cell.delay) for cell in cells)
    return [
        (method, delay, [c for c in cells if (c.method, c.delay) == (method, delay)])
        for method, delay in keys
    ]


def write(config: DelayBenchmarkConfig, cells: Sequence[Cell]) -> None:
    """Write the numbers and the figure into --out."""
    config.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [asdict(cell) for cell in cells]
    record = {"env": config.env.id, "seed": config.seed, "provenance": provenance(), "cells": rows}
    (config.out / "delay.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(config, cells, config.out / "delay.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            DelayBenchmarkConfig, arguments(argv), prog=program("bench delay"), description=__doc__
        )
        cells = measure(config)
        Console(width=100).print(report(config, cells))
        write(config, cells)


if __name__ == "__main__":
    main()
