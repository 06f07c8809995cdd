"""Acting: the π0 flow policy, its likelihoods, its checkpoints. Knows no RL and no simulator."""

from policies.actor import FlowActor, FlowChain, LikelihoodConfig
from policies.checkpoint import load, save
from policies.gemma import GemmaConfig
from policies.pi0 import LAPTOP_EXPERT, Pi0, Pi0Config
from policies.policy import FlowPolicy, SamplerConfig, small_policy
from policies.preprocessor import NormStats, Preprocessor, PreprocessorConfig
from policies.steering import NoiseActor, SteeredActor, SteeredPolicy, SteeringConfig

__all__ = [
    "LAPTOP_EXPERT",
    "FlowActor",
    "FlowChain",
    "FlowPolicy",
    "GemmaConfig",
    "LikelihoodConfig",
    "NoiseActor",
    "NormStats",
    "Pi0",
    "Pi0Config",
    "Preprocessor",
    "PreprocessorConfig",
    "SamplerConfig",
    "SteeredActor",
    "SteeredPolicy",
    "SteeringConfig",
    "load",
    "save",
    "small_policy",
]
