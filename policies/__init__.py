"""Acting: the π0 flow policy, its likelihoods, its checkpoints. Knows no RL and no simulator."""

from policies.actor import FlowActor
from policies.distributions import ActionDistribution, FlowChain
from policies.finetune import FinetuneConfig, prepare
from policies.formats import load, save
from policies.gemma import GemmaConfig
from policies.likelihood import LikelihoodConfig
from policies.load_config import LoadConfig
from policies.lora import LoRAConfig
from policies.norm_stats import NormStats
from policies.pi0 import Pi0
from policies.pi0_config import LAPTOP_EXPERT, Pi0Config
from policies.policy import FlowPolicy, SamplerConfig, small_policy
from policies.preprocessor import Preprocessor, PreprocessorConfig
from policies.published import PIPELINES, Pipeline
from policies.robots import infer
from policies.steering import NoiseActor, SteeredActor, SteeredPolicy, SteeringConfig

__all__ = [
    "LAPTOP_EXPERT",
    "PIPELINES",
    "ActionDistribution",
    "FinetuneConfig",
    "FlowActor",
    "FlowChain",
    "FlowPolicy",
    "GemmaConfig",
    "LikelihoodConfig",
    "LoRAConfig",
    "LoadConfig",
    "NoiseActor",
    "NormStats",
    "Pi0",
    "Pi0Config",
    "Pipeline",
    "Preprocessor",
    "PreprocessorConfig",
    "SamplerConfig",
    "SteeredActor",
    "SteeredPolicy",
    "SteeringConfig",
    "infer",
    "load",
    "prepare",
    "save",
    "small_policy",
]
