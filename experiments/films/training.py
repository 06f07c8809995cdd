"""The films of a training run: the same starts before and after it."""

from __future__ import annotations

from pathlib import Path

from pitune import envs, rl
from pitune.experiments.films.choose import spread_episodes
from pitune.experiments.films.files import read_mp4, save_grid, write
from pitune.experiments.films.layout import HELD_SECONDS, beside
from pitune.experiments.films.record import film_episodes
from pitune.experiments.runs.progress import screen
from pitune.policies import Actor

NUM_FILMED = 4
"""Episodes in a film."""
COLUMNS, TILE_WIDTH = 2, 200
"""Films beside each other, and the width of each [pixels]."""


def record_video(
    config: envs.EnvConfig, actor: Actor, file: Path, seed: int, num_episodes: int = NUM_FILMED
) -> bool:
    """Film four episodes of an evaluation, two by two, and return whether that was possible.

    They are spread over its list. Two films with the same seed and number of episodes show the same
    starts, whatever the policies do in them. On a machine that cannot render a note is printed
    instead.

    Args:
        config: Of the environment.
        actor: Acts as deployed.
        file: To write, whole or not at all. `before.mp4` has the caption "before training".
        seed: Of the evaluation.
        num_episodes: Of the evaluation on the test starts.
    """
    # by the list alone, so that before and after show the same starts
    chosen = spread_episodes(num_episodes, NUM_FILMED)
    played: list[int] = []
    try:
        with screen.task("film", len(chosen)) as task:

            def count(row: rl.EpisodeOutcome) -> None:
                played.append(row.index)
                task.update(len(played))

            films = film_episodes(
                config, actor, chosen, num_episodes=num_episodes, seed=seed, on_episode=count
            )
    except RuntimeError as error:
        screen.note(f"no film {file.name}: {error}")
        return False
    save_grid(films, file, COLUMNS, width=TILE_WIDTH, title=f"{file.stem} training")
    return True


def before_after(folder: Path) -> Path | None:
    """Write before_after.gif from the two films of a run and return it.

    The films show the same starts side by side. Without both films a note is printed instead.

    Args:
        folder: Of the run, with before.mp4 and after.mp4.
    """
    files = [folder / "before.mp4", folder / "after.mp4"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        screen.note(f"no before_after.gif: the run has no {' and no '.join(missing)}")
        return None
    (before, fps), (after, _) = map(read_mp4, files)
    num_held = round(HELD_SECONDS * fps)  # each film holds its last frame, and so does the pair
    pair = beside(before[: max(1, len(before) - num_held)], after[: max(1, len(after) - num_held)])
    return write(pair, fps, folder / "before_after.gif")
