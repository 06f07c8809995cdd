"""Acting: the π0 flow policy, its likelihoods, its checkpoints. Knows no RL and no simulator."""

from policies.actor import FlowActor
from policies.checkpoint import load, save
from policies.distributions import ActionDistribution, FlowChain
from policies.gemma import GemmaConfig
from policies.likelihood import LikelihoodConfig
from policies.pi0 import LAPTOP_EXPERT, Pi0, Pi0Config
from policies.policy import FlowPolicy, SamplerConfig, small_policy
from policies.preprocessor import NormStats, Preprocessor, PreprocessorConfig

__all__ = [
    "LAPTOP_EXPERT",
    "ActionDistribution",
    "FlowActor",
    "FlowChain",
    "FlowPolicy",
    "GemmaConfig",
    "LikelihoodConfig",
    "NormStats",
    "Pi0",
    "Pi0Config",
    "Preprocessor",
    "PreprocessorConfig",
    "SamplerConfig",
    "load",
    "save",
    "small_policy",
]
