"""Learning: algorithms, advantages, critics, rollouts and evaluation."""

from pitune.rl.actor_critic.learner import ActorCriticConfig
from pitune.rl.actor_critic.td import OffPolicyConfig
from pitune.rl.algorithm import Algorithm, AlgorithmConfig, Needs
from pitune.rl.algorithms.bc import BCConfig, BehaviorCloning
from pitune.rl.algorithms.dgn import DGN, DGNConfig
from pitune.rl.algorithms.dsrl import DSRL, DSRLConfig
from pitune.rl.algorithms.epo import EPO, EPOConfig
from pitune.rl.algorithms.filtered_bc import FilteredBC, FilteredBCConfig
from pitune.rl.algorithms.fpo import FPO, FPOConfig
from pitune.rl.algorithms.grpo import GRPO, GRPOConfig
from pitune.rl.algorithms.ppo import PPO, PPOConfig
from pitune.rl.algorithms.wsrl import WSRL, WSRLConfig
from pitune.rl.evaluation.evaluate import Evaluation, evaluate
from pitune.rl.experience.demonstrations import Demonstrations, collect_demonstrations
from pitune.rl.experience.rollouts import Rollouts, check_fit, check_needs, rollout_metrics
from pitune.rl.policy_gradient.config import (
    AdvantageConfig,
    ClipConfig,
    PPOClipConfig,
    UpdateConfig,
)
from pitune.rl.registry import make, name_of, preset, presets, register

__all__ = [
    "DGN",
    "DSRL",
    "EPO",
    "FPO",
    "GRPO",
    "PPO",
    "WSRL",
    "ActorCriticConfig",
    "AdvantageConfig",
    "Algorithm",
    "AlgorithmConfig",
    "BCConfig",
    "BehaviorCloning",
    "ClipConfig",
    "DGNConfig",
    "DSRLConfig",
    "Demonstrations",
    "EPOConfig",
    "Evaluation",
    "FPOConfig",
    "FilteredBC",
    "FilteredBCConfig",
    "GRPOConfig",
    "Needs",
    "OffPolicyConfig",
    "PPOClipConfig",
    "PPOConfig",
    "Rollouts",
    "UpdateConfig",
    "WSRLConfig",
    "check_fit",
    "check_needs",
    "collect_demonstrations",
    "evaluate",
    "make",
    "name_of",
    "preset",
    "presets",
    "register",
    "rollout_metrics",
]
