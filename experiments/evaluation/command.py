"""An evaluation from its settings to its results."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console

from pitune import envs, rl
from pitune.envs import EvaluationSeeds, Starts
from pitune.experiments.evaluation.config import EvaluateConfig
from pitune.experiments.evaluation.fingerprint import fingerprint
from pitune.experiments.evaluation.folder import EvaluationFolder
from pitune.experiments.evaluation.plan import Part, parts
from pitune.experiments.evaluation.play import (
    Memory,
    Stage,
    evaluation_of,
    instructions,
    play,
    threads,
)
from pitune.experiments.evaluation.players import check_servers, fitted, load_players
from pitune.experiments.evaluation.record import write
from pitune.experiments.evaluation.report import CellResult, print_report
from pitune.experiments.evaluation.results import comparison_of, pooled, summary_of
from pitune.experiments.evaluation.shards import run_shards
from pitune.experiments.evaluation.variations import Cell, cells, with_cell
from pitune.experiments.runs.config_file import provenance
from pitune.experiments.runs.progress import screen
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.policy_config import SamplerConfig


def evaluate(config: EvaluateConfig, words: Sequence[str] = ()) -> rl.Evaluation:
    """Evaluate, print the result, and write it into `out` and `folder` if they are set.

    Args:
        config: Settings.
        words: Their command line, which the processes of `shards` repeat.

    Returns:
        All seeds of the checkpoint with the first values of `vary`. A share of the episodes
        returns no rows.

    Raises:
        ValueError: a setting, a checkpoint or a cell of `vary` cannot be evaluated. Nothing is
            played then.
        RuntimeError: an episode was not played exactly once, or the process of a share failed.
    """
    check_servers(config)
    check_out(config)
    grid = cells(config.vary)
    check_repeatable(config, grid)
    num_threads = config.torch_threads or (None if config.folder is None else 1)
    with ExitStack() as stack:
        stack.enter_context(threads(num_threads))
        # environment and policies, closed before shares open theirs
        opened = stack.enter_context(ExitStack())
        players = load_players(config, grid)
        env = envs.make(config.env)
        opened.callback(env.close)
        for name, player in players.items():
            players[name] = fitted(config, player, env.spec, opened)
        stage = Stage(config, env, players)
        check_lists(stage)
        store = open_store(stage)
        if isinstance(store, EvaluationFolder):
            stack.callback(store.close)

        # episodes that are missing
        planned = list(parts(list(players), grid, config.all_seeds))
        start = time.perf_counter()
        if config.shards == 1:
            with recorded(config, env) as played:
                play(stage._replace(env=played), planned, store, config.own_shard)
        descriptions = _descriptions(stage, grid, time.perf_counter() - start)
        if config.own_shard[1] > 1:
            return _own_share(config)
        if isinstance(store, EvaluationFolder) and config.shards > 1:
            opened.close()
            players.clear()
            _play_shares(config, planned, store, words)
        return _finish(stage, grid, store, descriptions)


def check_out(config: EvaluateConfig) -> None:
    """Make the folder of `out`, so that a wrong path does not cost the result in the end.

    Raises:
        FileExistsError: `out` is a folder.
        OSError: its folder cannot be made or written.
    """
    if config.out is None:
        return
    if config.out.is_dir():
        raise FileExistsError(f"out={config.out} is a folder; pass a file such as result.json")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(config.out.parent, os.W_OK):
        reason = "the folder cannot be written; make it writable, or pass another --out"
        raise PermissionError(errno.EACCES, reason, str(config.out.parent))


def check_repeatable(config: EvaluateConfig, grid: Sequence[Cell]) -> None:
    """Reject a folder for an evaluation whose episodes depend on each other.

    Raises:
        ValueError: they do.
    """
    if config.folder is None:
        return
    if config.stochastic:
        raise ValueError(
            f"folder={config.folder} cannot go on with stochastic=True, whose exploration noise "
            "depends on the episodes beside it; pass --out alone, or evaluate the deployed policy"
        )
    for cell in grid:
        delay = delay_of(config, cell)
        if delay.highest > delay.steps:
            raise ValueError(
                f"folder={config.folder} cannot go on with delay.max_steps={delay.max_steps}, "
                "whose draws are shared by the episodes side by side; pass --out alone, or a fixed "
                "delay"
            )


def delay_of(config: EvaluateConfig, cell: Cell) -> DelayConfig:
    """Return the delay of a cell."""
    return with_cell(SamplerConfig(), config.delay, config.real_time, cell)[1]


def check_lists(stage: Stage) -> None:
    """Make the list of episodes and the words of each seed, so that mistakes show at once.

    Raises:
        ValueError: there are too few starts, or the instructions cannot be exchanged.
    """
    config, spec = stage.config, stage.env.spec
    for seed in config.all_seeds:
        EvaluationSeeds(spec.num_envs, config.episodes, seed, "test", Starts.of(spec))
        instructions(config, spec, seed)


def open_store(stage: Stage) -> Memory | EvaluationFolder:
    """Return the place of the rows: the folder, or the memory without one."""
    config, spec = stage.config, stage.env.spec
    if config.folder is None:
        return Memory({})
    versions = {**provenance()["packages"], "simulator": spec.simulator}
    identity = {**config.identity(), "versions": versions}
    hashes = {name: fingerprint(player.path) for name, player in stage.players.items()}
    store = EvaluationFolder(config.folder, identity, hashes, config.own_shard)
    if store.num_rows:
        screen.note(f"{config.folder} holds {store.num_rows} episodes, and the others are played")
    if store.num_rows and not spec.deterministic_reset:
        screen.note(
            f"a seed does not fix the starts of {spec.id}: the other episodes are not those of an "
            "uninterrupted evaluation"
        )
    return store


@contextmanager
def recorded(config: EvaluateConfig, env: envs.CheckedEnv) -> Iterator[envs.CheckedEnv]:
    """Yield the environment, or one that also records its episodes if `record` is set.

    The dataset is complete when the context closes.
    """
    if config.record is None:
        yield env
        return
    from pitune.rl.datasets.recorder import EpisodeRecorder, record

    with EpisodeRecorder(config.record, env.spec, config.recording) as recorder:
        yield record(env, recorder)


def _play_shares(
    config: EvaluateConfig, planned: Sequence[Part], store: EvaluationFolder, words: Sequence[str]
) -> None:
    """Let other processes play the missing episodes."""
    wanted = range(config.episodes)
    num_done = sum(len(store.rows(part.name).keys() & set(wanted)) for part in planned)
    total = len(planned) * config.episodes
    if num_done < total:
        with store.left_to_shares():
            run_shards(store.path, config.shards, words, total)


def _own_share(config: EvaluateConfig) -> rl.Evaluation:
    """Print where a share is, and return no rows."""
    screen.note(
        f"share {config.shard} of {config.folder} is played; after all of them, the same command "
        "without --shard prints the result"
    )
    return rl.Evaluation(rows=())


def _descriptions(stage: Stage, grid: Sequence[Cell], seconds: float) -> list[dict[str, str]]:
    """Return the mode and sampler of each policy in words, for each cell."""
    return [
        {name: p.description(stage.config, cell, seconds) for name, p in stage.players.items()}
        for cell in grid
    ]


def _finish(
    stage: Stage,
    grid: Sequence[Cell],
    store: Memory | EvaluationFolder,
    descriptions: Sequence[dict[str, str]],
) -> rl.Evaluation:
    """Print and write the results, film them, and return the first one."""
    config, spec = stage.config, stage.env.spec
    outcomes = [
        {
            name: {
                seed: evaluation_of(stage, Part(name, cell, seed), store)
                for seed in config.all_seeds
            }
            for name in descriptions[0]
        }
        for cell in grid
    ]
    results = [
        _cell_result(spec, *parts_of_cell)
        for parts_of_cell in zip(grid, outcomes, descriptions, strict=True)
    ]
    print_report(Console(), config.env.id, spec, results)
    write(stage, results)
    if config.films:
        _film(stage, grid, outcomes)
    return pooled(outcomes[0]["checkpoint"])


Outcomes = dict[str, dict[int, rl.Evaluation]]
"""Evaluations by the option that names the policy, and by their seeds."""


def _cell_result(
    spec: envs.EnvSpec, cell: Cell, outcomes: Outcomes, how: dict[str, str]
) -> CellResult:
    """Return the results of a cell."""
    summaries = {name: summary_of(by_seed, spec) for name, by_seed in outcomes.items()}
    comparison = None
    if "compare" in summaries:
        paired = spec.deterministic_reset
        comparison = comparison_of(summaries["checkpoint"], summaries["compare"], paired)
    return CellResult(cell, summaries, how, comparison)


def _film(stage: Stage, grid: Sequence[Cell], outcomes: Sequence[Outcomes]) -> None:
    """Film episodes of each cell."""
    from pitune.experiments.evaluation.films import film

    config, first = stage.config, stage.config.all_seeds[0]
    # the policies were given back where shares have played
    players = stage.players or load_players(config, grid)
    for cell, by_name in zip(grid, outcomes, strict=True):
        film(stage, players, cell, {name: by_seed[first] for name, by_seed in by_name.items()})
