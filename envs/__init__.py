"""Simulation: one contract for several simulators. Independent of RL and of policies.

Example:
    >>> import torch
    >>> from pitune import envs
    >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2))
    >>> obs = env.reset(seed=torch.tensor([0, 1]))
    >>> result = env.step(env.expert().act(), active=torch.tensor([True, True]))
    >>> result.reward.shape
    torch.Size([2])
"""

if not __name__.startswith("pitune."):
    raise ImportError(
        f"`import {__name__}` found the folder {__path__[0]} of pitune: write `from pitune import "
        "envs`, or start Python elsewhere for another package of this name"
    )

from pitune.envs.checked import CheckedEnv
from pitune.envs.chunk_env import ChunkEnv
from pitune.envs.config import EnvConfig, EnvOptions, require_default
from pitune.envs.delayed_env import DelayedChunkEnv
from pitune.envs.gym.registration import GymOptions
from pitune.envs.libero.registration import LiberoOptions
from pitune.envs.maniskill.registration import ManiSkillOptions
from pitune.envs.memory_env import MemoryChunkEnv
from pitune.envs.metaworld.registration import MetaWorldOptions
from pitune.envs.mock.registration import MockOptions
from pitune.envs.registry import (
    EnvFactory,
    config_for,
    known_suites,
    known_tasks,
    make,
    prefixes,
    register,
)
from pitune.envs.seeding import EpisodeSeeds, EvaluationSeeds, episode_seed
from pitune.envs.starts import Split, Starts, start_split
from pitune.envs.success import SuccessRule
from pitune.envs.tabletop.registration import TabletopOptions
from pitune.envs.vector_env import (
    DrawsOnRequest,
    EnvSpec,
    Expert,
    Observation,
    StepResult,
    VectorEnv,
)

__all__ = [
    "CheckedEnv",
    "ChunkEnv",
    "DelayedChunkEnv",
    "DrawsOnRequest",
    "EnvConfig",
    "EnvFactory",
    "EnvOptions",
    "EnvSpec",
    "EpisodeSeeds",
    "EvaluationSeeds",
    "Expert",
    "GymOptions",
    "LiberoOptions",
    "ManiSkillOptions",
    "MemoryChunkEnv",
    "MetaWorldOptions",
    "MockOptions",
    "Observation",
    "Split",
    "Starts",
    "StepResult",
    "SuccessRule",
    "TabletopOptions",
    "VectorEnv",
    "config_for",
    "episode_seed",
    "known_suites",
    "known_tasks",
    "make",
    "prefixes",
    "register",
    "require_default",
    "start_split",
]
