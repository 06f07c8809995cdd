"""Acting: the π0 flow policy, its likelihoods, its checkpoints. Knows no RL and no simulator."""

from pitune.policies.actor import LikelihoodActor
from pitune.policies.checkpoints.config import LoadConfig
from pitune.policies.checkpoints.formats import load, save
from pitune.policies.checkpoints.pipelines import PIPELINES, Pipeline
from pitune.policies.finetuning.trainable import FinetuneConfig, apply_finetuning
from pitune.policies.inference import infer
from pitune.policies.likelihood.config import LikelihoodConfig
from pitune.policies.likelihood.distributions import ActionDistribution, FlowChain
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
from pitune.policies.network.gemma import GemmaConfig
from pitune.policies.network.lora import LoRAConfig
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy, SamplerConfig, small_policy
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from pitune.policies.steering import NoiseActor, SteeredActor, SteeredPolicy, SteeringConfig

__all__ = [
    "LAPTOP_EXPERT",
    "PIPELINES",
    "ActionDistribution",
    "FinetuneConfig",
    "FlowChain",
    "FlowPolicy",
    "GemmaConfig",
    "LikelihoodActor",
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
    "apply_finetuning",
    "infer",
    "load",
    "save",
    "small_policy",
]
