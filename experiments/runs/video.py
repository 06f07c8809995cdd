"""Films of the deployed policy, and one picture of the same starts before and after training.

Letters: E envs, H action horizon, d robot action dim, Y, X image pixels.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from pitune import envs
from pitune.experiments.runs.progress import Task, screen
from pitune.policies import Actor

NUM_FILMED = 4
"""Episodes in a film."""
SUCCESS_COLOR = (0, 200, 60)
"""RGB of the border around an environment that has succeeded."""
MAX_BYTES = 1_500_000
"""Size of the picture, for a README."""
QUALITIES = ((320, 40, 64), (300, 36, 64), (280, 30, 48), (240, 24, 32), (200, 16, 16), (120, 8, 8))
"""Width of a film [pixels], frames and colors of the picture, from the best to the smallest."""


@torch.no_grad()
def record_video(
    config: envs.EnvConfig, actor: Actor, file: Path, seed: int, num_episodes: int = NUM_FILMED
) -> bool:
    """Film four episodes of an evaluation, two by two, and return whether that was possible.

    A green border marks success. Two films with the same seed and number of episodes show the same
    starts, whatever the policies do in them. On a machine that cannot render a note is printed
    instead.

    Args:
        config: Of the environment.
        actor: Acts as deployed.
        file: To write, whole or not at all.
        seed: Of the evaluation.
        num_episodes: Of the evaluation on the test starts, from which `filmed_episodes` chooses.
    """
    num_envs = len(filmed_episodes(num_episodes))
    workers = _film_workers(config, num_envs)
    try:
        env = envs.make(replace(config, num_envs=num_envs, num_workers=workers))
    except RuntimeError as error:
        screen.note(f"no film {file.name}: {error}")
        return False
    try:
        with screen.task("film", env.spec.max_episode_steps) as task:
            frames = _frames(env, actor, seed, task, num_episodes)
    except RuntimeError as error:
        screen.note(f"no film {file.name}: {error}")
        return False
    finally:
        env.close()
    import imageio

    # an absolute path, because a colon in a relative one would be a protocol for ffmpeg
    temporary = file.absolute().with_name(f"tmp_{file.name}")
    imageio.mimwrite(temporary, frames, fps=env.spec.control_hz, macro_block_size=8)
    temporary.rename(file)
    return True


def _film_workers(config: envs.EnvConfig, num_envs: int) -> int:
    """Return the processes of a film: none only if the environments of the run have none.

    A simulator that can exist once in a process has a process for each environment, also here.
    """
    if config.num_workers >= config.num_envs:
        return num_envs
    return min(num_envs, config.num_workers)


def filmed_episodes(num_episodes: int) -> list[int]:
    """Return the episodes of an evaluation that are filmed: four, evenly spread over its list.

    The rule knows no outcome, so a film shows neither the best nor the worst.

    Example:
        >>> filmed_episodes(200)
        [0, 50, 100, 150]

    Args:
        num_episodes: Of the evaluation, at least 1.
    """
    return sorted({number * num_episodes // NUM_FILMED for number in range(NUM_FILMED)})


def _frames(
    env: envs.CheckedEnv,
    actor: Actor,
    seed: int,
    task: Task | None = None,
    num_episodes: int = NUM_FILMED,
) -> list[np.ndarray]:
    """Return the pictures (Y, X, 3) uint8 of one episode of every environment, two by two."""
    # new episodes
    num_envs, device = env.spec.num_envs, env.spec.device
    starts = envs.EvaluationSeeds(num_envs, num_episodes, seed, "test", envs.Starts.of(env.spec))
    chosen = [starts.seed_of(episode) for episode in filmed_episodes(num_episodes)]
    obs = env.reset(torch.tensor(chosen, device=device))
    active = torch.ones(num_envs, dtype=torch.bool, device=device)
    success = torch.zeros_like(active)
    devices = list(range(torch.cuda.device_count()))

    # steps of the chunks, until all episodes have ended
    frames = [_grid(env, success)]
    preprocess = actor.policy.observation_preprocessor(env.spec.tasks)
    with torch.random.fork_rng(devices), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(seed)
        while active.any():
            # with the device of the environment, to which the actor's actions return
            td = preprocess(TensorDict(dict(obs), batch_size=[num_envs], device=device))
            for action in actor(td)["action"].unbind(1):  # H actions (E, d)
                if not active.any():
                    break
                obs, _, terminated, truncated, info = env.step(action, active)
                success = success | (info["success"] & active)
                active = active & ~(terminated | truncated)
                frames.append(_grid(env, success))
                if task is not None:
                    task.update(len(frames) - 1)
    return frames


def _grid(env: envs.CheckedEnv, success: torch.Tensor) -> np.ndarray:
    """Return the environments' pictures as one (Y, X, 3), with the successful ones framed."""
    pictures = env.render().cpu().numpy().copy()  # (E, Y, X, 3)
    edge = max(2, pictures.shape[1] // 40)
    for index in np.flatnonzero(success.cpu().numpy()):
        picture = pictures[index]
        for border in (picture[:edge], picture[-edge:], picture[:, :edge], picture[:, -edge:]):
            border[:] = SUCCESS_COLOR
    columns = min(2, len(pictures))
    missing = -len(pictures) % columns  # black pictures, if an evaluation has three episodes
    pictures = np.pad(pictures, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return rearrange(pictures, "(a b) y x c -> (a y) (b x) c", b=columns)


def before_after(folder: Path) -> Path | None:
    """Write before_after.gif from the two films of a run and return it.

    The films show the same starts side by side. Without both films a note is printed instead.

    Args:
        folder: Of the run, with before.mp4 and after.mp4.
    """
    # films
    files = [folder / "before.mp4", folder / "after.mp4"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        screen.note(f"no before_after.gif: the run has no {' and no '.join(missing)}")
        return None
    import imageio

    absolute = [file.absolute() for file in files]
    films = [list(imageio.mimread(file, memtest=False)) for file in absolute]
    fps = float(imageio.get_reader(absolute[0]).get_meta_data()["fps"])
    target = folder / "before_after.gif"
    temporary = folder / "tmp_before_after.gif"

    # the best quality that is small enough
    for width, num_frames, colors in QUALITIES:
        data = _gif(films, fps, width, num_frames, colors)
        if len(data) <= MAX_BYTES:
            break
    temporary.write_bytes(data)
    temporary.rename(target)
    return target


def _gif(
    films: list[list[np.ndarray]], fps: float, width: int, num_frames: int, colors: int
) -> bytes:
    """Return an animation of films side by side. The shorter one holds its last frame."""
    from PIL import Image

    # equally spaced frames of the longer film
    length = max(len(film) for film in films)
    chosen = np.unique(np.linspace(0, length - 1, min(num_frames, length)).round().astype(int))
    images = []
    for index in chosen:
        frames = [film[min(index, len(film) - 1)] for film in films]
        images.append(_titled(frames, width).quantize(colors, dither=Image.Dither.NONE))
    # Real time, and a second to look at the end.
    duration = [round(1000 * length / fps / len(images))] * (len(images) - 1) + [1000]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0
    )
    return buffer.getvalue()


def _titled(frames: list[np.ndarray], width: int) -> Any:
    """Return one image of frames (Y, X, 3) beside each other, with titles above them."""
    from PIL import Image, ImageDraw

    gap, title = 8, 18
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    size = (len(frames) * width + (len(frames) - 1) * gap, height + title)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, frame) in enumerate(zip(("before", "after"), frames, strict=True)):
        left = number * (width + gap)
        canvas.paste(Image.fromarray(frame).resize((width, height)), (left, title))
        draw.text((left + 4, 3), f"{name} training (green: success)", fill="black")
    return canvas
