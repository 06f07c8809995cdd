"""Learning: algorithms, advantages, critics, rollouts, evaluation. The imports are what exists."""

from rl.algorithm import Algorithm, AlgorithmConfig, Needs
from rl.behaviour_cloning import BCConfig, BehaviourCloning
from rl.demonstrations import Demonstrations, collect_demonstrations
from rl.dgn import DGN, DGNConfig
from rl.dsrl import DSRL, DSRLConfig
from rl.epo import EPO, EPOConfig
from rl.evaluate import Evaluation, evaluate
from rl.filtered_bc import FilteredBC, FilteredBCConfig
from rl.flow_actor_critic import ActorCriticConfig
from rl.fpo import FPO, FPOConfig
from rl.grpo import GRPO, GRPOConfig
from rl.off_policy import OffPolicyConfig
from rl.ppo import PPO, PPOConfig
from rl.registry import make, name_of, preset, presets, register
from rl.rollout import Rollouts, check_fit, check_needs, rollout_metrics
from rl.wsrl import WSRL, WSRLConfig

__all__ = [
    "DGN",
    "DSRL",
    "EPO",
    "FPO",
    "GRPO",
    "PPO",
    "WSRL",
    "ActorCriticConfig",
    "Algorithm",
    "AlgorithmConfig",
    "BCConfig",
    "BehaviourCloning",
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
    "PPOConfig",
    "Rollouts",
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
