"""Films of a policy: what the numbers look like."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from pitune import envs
from pitune.policies import LikelihoodActor

logger = logging.getLogger(__name__)


@torch.no_grad()
def record_video(config: envs.EnvConfig, actor: LikelihoodActor, file: Path, seed: int) -> bool:
    """Film four environments side by side for one episode; return whether that was possible.

    The same seed shows the same starts, so films before and after can be compared. A machine that
    cannot render gets a log line and no film.
    """
    env = envs.make(replace(config, num_envs=4, num_workers=0))
    try:
        frames = _frames(env, actor, seed)
    except RuntimeError as error:
        logger.warning("no video %s: %s", file.name, error)
        return False
    finally:
        env.close()
    import imageio

    imageio.mimwrite(file, frames, fps=env.spec.control_hz, macro_block_size=8)
    return True


def _frames(env: envs.CheckedEnv, actor: LikelihoodActor, seed: int) -> list[np.ndarray]:
    """Return the pictures of one episode of every environment, two by two."""
    seeds = envs.EpisodeSeeds(env.spec.num_envs, seed, "test")
    env_idx = torch.arange(env.spec.num_envs, device=env.spec.device)
    obs = env.reset(seeds.next(env_idx).to(env_idx.device))
    active = torch.ones(env.spec.num_envs, dtype=torch.bool, device=env.spec.device)
    devices = list(range(torch.cuda.device_count()))
    frames = [_grid(env)]
    with torch.random.fork_rng(devices), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(seed)
        while active.any():
            td = TensorDict(dict(obs), batch_size=[env.spec.num_envs])
            for action in actor(td)["action"].unbind(1):
                if not active.any():
                    break
                obs, _, terminated, truncated, _ = env.step(action, active)
                active = active & ~(terminated | truncated)
                frames.append(_grid(env))
    return frames


def _grid(env: envs.CheckedEnv) -> np.ndarray:
    return rearrange(env.render().cpu().numpy(), "(a b) y x c -> (a y) (b x) c", a=2)
