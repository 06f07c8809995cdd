"""The recording of chosen episodes: they are played again, and drawn.

Episode i of an evaluation has a start and starting noise of its own, so the deployed policy plays
it again in the same way. So the episodes can be chosen after their outcomes are known, and nothing
is drawn during the evaluation. Rounding errors of the network depend on the number of environments,
and in an episode at the edge of success they may change its outcome: `differing` finds these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from pitune import envs, rl
from pitune.envs import Split, Starts
from pitune.experiments.films.film import Film, FilmedEnv, Take
from pitune.policies.actor import ActingModule


def film_episodes(
    config: envs.EnvConfig,
    actor: ActingModule,
    indices: Sequence[int],
    *,
    num_episodes: int,
    seed: int,
    split: Split = "test",
    stochastic: bool = False,
    instructions: Sequence[str] | None = None,
    num_envs: int = 1,
    on_episode: Callable[[rl.EpisodeOutcome], None] | None = None,
) -> list[Film]:
    """Play some episodes of an evaluation again and return a film of each.

    Example:
        >>> config = envs.EnvConfig(id="mujoco/PickCube")
        >>> film_episodes(config, actor, [0, 7], num_episodes=100, seed=0)  # doctest: +SKIP

    Args:
        config: Of the evaluation's environment. Another one with equal settings is made and closed.
        actor: Acts as deployed, or explores if `stochastic`. Then the episodes have the starts of
            the evaluation, but not its exploration noise.
        indices: Places in the evaluation's list.
        num_episodes: Length of the list.
        seed: Of the evaluation.
        split: Of the evaluation.
        stochastic: Whether the actor explores.
        instructions: The words for each task that the policy was given, in place of the
            environment's.
        num_envs: Environments that play at once. All of them are drawn while one of them plays.
        on_episode: Called with each outcome, for progress.

    Returns:
        The films, in the order of `indices`.

    Raises:
        ValueError: an index is outside of the list or occurs twice, or the policy does not fit.
        RuntimeError: the environment cannot be made, or cannot render.
    """
    env = FilmedEnv(envs.make(film_config(config, num_envs)))
    try:
        result = rl.evaluate(
            env,
            actor,
            num_episodes,
            seed=seed,
            split=split,
            stochastic=stochastic,
            on_episode=on_episode,
            episodes=indices,
            instructions=instructions,
        )
    finally:
        env.close()

    starts = envs.EvaluationSeeds(1, num_episodes, seed, split, Starts.of(env.spec))
    words = env.spec.tasks if instructions is None else tuple(instructions)
    films = _films(env, result, starts, words)
    return [films[index] for index in indices]


def _films(
    env: FilmedEnv, result: rl.Evaluation, starts: envs.EvaluationSeeds, words: Sequence[str]
) -> dict[int, Film]:
    """Return the film of each episode by its place in the list.

    Args:
        env: Has taken the pictures.
        result: Outcomes.
        starts: Seeds of the list.
        words: Instruction of each task.
    """
    # by the list's seeds, because an outcome has none where a seed does not fix the start
    takes = defaultdict(list)
    for take in env.takes:
        takes[take.seed].append(take)

    # the rows are in the order of the list, in which equal seeds were played
    rule, films = result.success_rule, {}
    for row in result.rows:
        take = takes[starts.seed_of(row.index)].pop(0)
        films[row.index] = Film(
            outcome=row,
            seed=take.seed,
            instruction=words[row.task_id],
            frames=take.frames,
            steps=take.steps,
            marks=_marks(take, rule),
            solved_at=take.solved_at,
            success=None if rule is None else row.success(rule),
            fps=env.spec.control_hz / env.stride,
        )
    return films


def _marks(take: Take, rule: envs.SuccessRule | None) -> list[bool]:
    """Return whether each picture shows success by a definition."""
    if rule == "once":
        return [take.solved_at is not None and step >= take.solved_at for step in take.steps]
    return take.solved if rule == "at_end" else [False] * len(take.steps)


def film_config(config: envs.EnvConfig, num_envs: int) -> envs.EnvConfig:
    """Return the config of the environment for a film.

    It has worker processes unless the environments of the run have none. A simulator that can exist
    once in a process has a process for each environment, also here.
    """
    one_each = config.num_workers >= config.num_envs
    num_workers = num_envs if one_each else min(num_envs, config.num_workers)
    return replace(config, num_envs=num_envs, num_workers=num_workers)


def differing(films: Sequence[Film], rows: Sequence[rl.EpisodeOutcome]) -> list[int]:
    """Return the places of the films that ended otherwise than the evaluated episodes.

    Args:
        films: Of episodes that were played again.
        rows: Outcomes of the evaluation.
    """
    evaluated = {row.index: _ending(row) for row in rows}
    return [film.index for film in films if _ending(film.outcome) != evaluated[film.index]]


def _ending(row: rl.EpisodeOutcome) -> tuple[bool | None, bool | None, int]:
    return row.success_once, row.success_at_end, row.length
