"""Playing the parts of an evaluation, of which a folder may hold some episodes already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from pitune import envs, rl
from pitune.envs import EvaluationSeeds, Starts
from pitune.experiments.evaluation.config import EvaluateConfig
from pitune.experiments.evaluation.folder import EvaluationFolder
from pitune.experiments.evaluation.plan import Part, missing
from pitune.experiments.evaluation.players import Player
from pitune.experiments.evaluation.rows_file import StoredRow
from pitune.experiments.runs.progress import count_episodes
from pitune.rl.evaluation.instructions import shuffled_instructions
from pitune.rl.evaluation.played_once import check_played_once


class Stage(NamedTuple):
    """Settings, environment and policies of an evaluation.

    Example:
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2))
        >>> Stage(EvaluateConfig(checkpoint="runs/a"), env, {}).env.spec.num_envs
        2
    """

    config: EvaluateConfig
    env: envs.CheckedEnv
    players: dict[str, Player]
    """By the option that names them."""


@dataclass
class Memory:
    """Rows of an evaluation that has no folder.

    Example:
        >>> Memory({}).rows("checkpoint seed=0")
        {}
    """

    stored: dict[tuple[str, int], StoredRow]
    """By part and place."""

    def rows(self, part: str) -> dict[int, StoredRow]:
        """Return the rows of a part, by their place in its list."""
        return {index: row for (name, index), row in self.stored.items() if name == part}

    def add(self, part: str, outcome: rl.EpisodeOutcome, reported: bool) -> None:
        """Store the outcome of an episode."""
        self.stored[part, outcome.index] = StoredRow(part, outcome, reported)


def play(
    stage: Stage, parts: Sequence[Part], store: Memory | EvaluationFolder, shard: tuple[int, int]
) -> None:
    """Play the episodes of a share that are missing."""
    config, num_envs = stage.config, stage.env.spec.num_envs
    for part in parts:
        done = store.rows(part.name).keys()
        indices = missing(done, num_envs, config.episodes, shard)
        if indices:
            _play_part(stage, part, store, indices, len(done))


def _play_part(
    stage: Stage,
    part: Part,
    store: Memory | EvaluationFolder,
    indices: Sequence[int],
    num_done: int,
) -> None:
    """Play some episodes of a part after others, and store each of them when it ends."""
    config, env = stage.config, stage.env
    title = "evaluation" if part.name == f"checkpoint seed={config.seed}" else part.name
    total = num_done + len(indices)
    with count_episodes(title, total, env.spec.num_envs, num_done) as on_step:
        rl.evaluate(
            env,
            stage.players[part.player].actor(config, part.cell, part.seed),
            config.episodes,
            seed=part.seed,
            stochastic=config.stochastic,
            on_step=on_step,
            on_episode=lambda row: store.add(part.name, row, env.spec.success_signal),
            episodes=indices,
            instructions=instructions(config, env.spec, part.seed),
        )


def instructions(config: EvaluateConfig, spec: envs.EnvSpec, seed: int) -> tuple[str, ...] | None:
    """Return the exchanged words of each task, or None where each keeps its own.

    Raises:
        ValueError: they cannot be exchanged, because there is one task.
    """
    return shuffled_instructions(spec.tasks, seed) if config.shuffle_instructions else None


def evaluation_of(stage: Stage, part: Part, store: Memory | EvaluationFolder) -> rl.Evaluation:
    """Return the outcomes of a part, after the check that each was played once.

    Raises:
        RuntimeError: an episode is missing, or was played on another start or task.
    """
    config, spec = stage.config, stage.env.spec
    stored = store.rows(part.name)
    rows = [stored[index] for index in sorted(stored) if index < config.episodes]
    outcomes = [row.outcome for row in rows]
    # each (task, start) once, over all processes
    starts = Starts.of(spec)
    seeds = EvaluationSeeds(spec.num_envs, config.episodes, part.seed, "test", starts)
    check_played_once(outcomes, range(config.episodes), seeds)
    if spec.success_signal or any(row.reported for row in rows):
        return rl.Evaluation(rows=tuple(outcomes), success_rule=spec.success_rule)
    # nobody has reported a success, in no process
    unknown = [replace(row, success_once=None, success_at_end=None) for row in outcomes]
    return rl.Evaluation(rows=tuple(unknown), success_rule=None)


@contextmanager
def threads(num: int | None) -> Iterator[None]:
    """Use a number of threads of PyTorch while the context is open, or those of the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(num or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
