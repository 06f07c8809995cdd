"""Films of an evaluation: chosen episodes are played again from their starts, and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pitune import rl
from pitune.experiments.evaluation.config import EvaluateConfig
from pitune.experiments.evaluation.play import Stage, instructions
from pitune.experiments.evaluation.players import Player
from pitune.experiments.evaluation.variations import Cell, text_of
from pitune.experiments.films.choose import choose_episodes
from pitune.experiments.films.files import save_films, save_grid, save_pairs
from pitune.experiments.films.film import Film
from pitune.experiments.films.record import differing, film_episodes
from pitune.experiments.runs.progress import screen


def films_folder(config: EvaluateConfig) -> Path:
    """Return the folder of an evaluation's films.

    Example:
        >>> films_folder(EvaluateConfig(checkpoint=Path("a"), out=Path("b/pick.json"), films=2))
        PosixPath('b/pick_films')
    """
    if config.folder is not None:
        return config.folder / "films"
    out = config.out or Path("evaluation.json")
    return out.with_name(f"{out.stem}_films")


def film(
    stage: Stage,
    players: Mapping[str, Player],
    cell: Cell,
    evaluations: Mapping[str, rl.Evaluation],
) -> list[Path]:
    """Film episodes of a cell, and return the files. Without a renderer a note is printed instead.

    The episodes are chosen by the outcomes of the checkpoint, and `compare` shows the same starts.
    They are those of the first seed.

    Args:
        stage: Settings and environment.
        players: Policies by the option that names them.
        cell: Values of the varied settings.
        evaluations: Outcomes of each policy, of the first seed.
    """
    config, first = stage.config, evaluations["checkpoint"]
    chosen = choose_episodes(first.rows, config.films, first.success_rule)
    folder = films_folder(config)
    if cell:
        folder = folder / text_of(cell).replace(" ", "_")
    try:
        made = {name: _played(stage, player, cell, chosen) for name, player in players.items()}
    except RuntimeError as error:
        screen.note(f"no films in {folder}: {error}")
        return []

    # files of each episode, of all together, and of pairs
    files: list[Path] = []
    for name, films in made.items():
        files += save_films(films, folder / name)
        if config.film_grid:
            files.append(save_grid(films, folder / f"{name}.mp4"))
        _note_differences(name, films, evaluations[name].rows)
    if "compare" in made:
        pair, titles = folder / "checkpoint_and_compare.mp4", ("checkpoint", "compare")
        files.append(save_pairs(made["checkpoint"], made["compare"], pair, titles=titles))
    screen.note(f"{len(files)} films in {folder}")
    return files


def _played(stage: Stage, player: Player, cell: Cell, chosen: Sequence[int]) -> list[Film]:
    """Return films of one policy."""
    config, seed = stage.config, stage.config.all_seeds[0]
    ended: list[int] = []
    with screen.task(f"films, {player.name}", len(chosen)) as task:

        def count(row: rl.EpisodeOutcome) -> None:
            ended.append(row.index)
            task.update(len(ended))

        return film_episodes(
            config.env,
            player.actor(config, cell, seed),
            chosen,
            num_episodes=config.episodes,
            seed=seed,
            stochastic=config.stochastic,
            instructions=instructions(config, stage.env.spec, seed),
            on_episode=count,
        )


def _note_differences(name: str, films: Sequence[Film], rows: Sequence[rl.EpisodeOutcome]) -> None:
    """Print the episodes that ended otherwise in the film."""
    others = differing(films, rows)
    if others:
        screen.note(
            f"films of {name}: episodes {others} ended otherwise than in the evaluation, by "
            "rounding, exploration or an unseeded start"
        )
