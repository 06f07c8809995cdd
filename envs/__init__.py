"""Simulating: one contract, several simulators. Knows no RL and no policy."""

from envs.checked import Checked
from envs.chunk_env import ChunkEnv
from envs.registry import EnvConfig, make
from envs.seeding import EpisodeSeeds, Split, episode_seed
from envs.vector_env import EnvSpec, Expert, Observation, StepResult, VectorEnv

__all__ = [
    "Checked",
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
