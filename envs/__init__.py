"""Simulating: one contract, several simulators. Knows no RL and no policy."""

from pitune.envs.checked import CheckedEnv
from pitune.envs.chunk_env import ChunkEnv
from pitune.envs.registry import EnvConfig, make
from pitune.envs.seeding import EpisodeSeeds, Split, episode_seed
from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult, VectorEnv

__all__ = [
    "CheckedEnv",
    "ChunkEnv",
    "EnvConfig",
    "EnvSpec",
    "EpisodeSeeds",
    "Expert",
    "Observation",
    "Split",
    "StepResult",
    "VectorEnv",
    "episode_seed",
    "make",
]
