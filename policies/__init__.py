"""Acting: the π0 flow policy, its likelihoods and checkpoints. Imports no RL and no simulator."""

if not __name__.startswith("pitune."):
    raise ImportError(
        f"`import {__name__}` found the folder {__path__[0]} of pitune: write `from pitune import "
        "policies`, or start Python elsewhere for another package of this name"
    )

from pitune.policies.actor import Actor, LikelihoodActor
from pitune.policies.checkpoints.config import LoadConfig
from pitune.policies.checkpoints.formats import load, save
from pitune.policies.checkpoints.pipelines import PIPELINES, Pipeline
from pitune.policies.fast.config import FastDecodingConfig
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.finetuning.trainable import FinetuneConfig, apply_finetuning
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.policies.inference import InferenceSession, infer
from pitune.policies.likelihood.config import (
    ExactFlowConfig,
    FastLikelihoodConfig,
    FlowMatchingConfig,
    FlowNoiseConfig,
    FlowSDEConfig,
    FlowStepConfig,
    LikelihoodConfig,
    VelocityGaussianConfig,
)
from pitune.policies.likelihood.distributions import ActionDistribution, FlowChain
from pitune.policies.likelihood.registry import (
    Likelihood,
    likelihood_config,
    likelihood_name,
    likelihoods,
    register_likelihood,
)
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
from pitune.policies.network.lora import LoRAConfig
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.sizes import GemmaConfig
from pitune.policies.noise_source import NoiseActor, NoiseSource, SteeringConfig
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.model_input import ModelInput, ObservationPreprocessor
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from pitune.policies.real_time.action_queue import ActionQueue
from pitune.policies.real_time.delayed_actor import DelayedActor
from pitune.policies.small_policy import SmallVLMConfig, small_policy

__all__ = [
    "LAPTOP_EXPERT",
    "PIPELINES",
    "ActionDistribution",
    "ActionQueue",
    "Actor",
    "DelayConfig",
    "DelayedActor",
    "ExactFlowConfig",
    "FastDecodingConfig",
    "FastLikelihoodConfig",
    "FastTokenizer",
    "FinetuneConfig",
    "FlowChain",
    "FlowMatchingConfig",
    "FlowNoiseConfig",
    "FlowPolicy",
    "FlowSDEConfig",
    "FlowStepConfig",
    "GemmaConfig",
    "InferenceSession",
    "Likelihood",
    "LikelihoodActor",
    "LikelihoodConfig",
    "LoRAConfig",
    "LoadConfig",
    "ModelInput",
    "NetworkOptions",
    "NoiseActor",
    "NoiseSource",
    "NormStats",
    "ObservationPreprocessor",
    "Pi0",
    "Pi0Config",
    "Pipeline",
    "PolicyInfo",
    "Preprocessor",
    "PreprocessorConfig",
    "RealTimeConfig",
    "SamplerConfig",
    "SmallVLMConfig",
    "SteeringConfig",
    "VelocityGaussianConfig",
    "apply_finetuning",
    "infer",
    "likelihood_config",
    "likelihood_name",
    "likelihoods",
    "load",
    "register_likelihood",
    "save",
    "small_policy",
]
