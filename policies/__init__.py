"""Acting: the π0 flow policy, its likelihoods, its checkpoints. Knows no RL and no simulator."""

from policies.actor import FlowActor, FlowChain, LikelihoodConfig
from policies.formats import LoadConfig, load, save
from policies.gemma import GemmaConfig
from policies.norm_stats import NormStats
from policies.pi0 import Pi0
from policies.pi0_config import LAPTOP_EXPERT, Pi0Config
from policies.policy import FlowPolicy, SamplerConfig, small_policy
from policies.preprocessor import Preprocessor, PreprocessorConfig
from policies.published import PIPELINES, Pipeline
from policies.robots import infer

__all__ = [
    "LAPTOP_EXPERT",
    "PIPELINES",
    "FlowActor",
    "FlowChain",
    "FlowPolicy",
    "GemmaConfig",
    "LikelihoodConfig",
    "LoadConfig",
    "NormStats",
    "Pi0",
    "Pi0Config",
    "Pipeline",
    "Preprocessor",
    "PreprocessorConfig",
    "SamplerConfig",
    "infer",
    "load",
    "save",
    "small_policy",
]
