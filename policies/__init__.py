"""Acting: the π0 flow policy, its likelihoods, its checkpoints. Knows no RL and no simulator."""

from policies.actor import FlowActor, FlowChain, LikelihoodConfig
from policies.checkpoint import load, save
from policies.gemma import GemmaConfig
from policies.norm_stats import NormStats
from policies.pi0 import Pi0
from policies.pi0_config import LAPTOP_EXPERT, Pi0Config
from policies.policy import FlowPolicy, SamplerConfig, small_policy
from policies.preprocessor import Preprocessor, PreprocessorConfig

__all__ = [
    "LAPTOP_EXPERT",
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
