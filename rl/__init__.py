"""Learning: algorithms, advantages, critics, rollouts, evaluation.

A name is imported from its module when it is first used, so that `import pitune.rl` costs nothing.
"""

if not __name__.startswith("pitune."):
    raise ImportError(
        f"`import {__name__}` found the folder {__path__[0]} of pitune: write `from pitune import "
        "rl`, or start Python elsewhere for another package of this name"
    )

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pitune.rl import registry
    from pitune.rl.actor_critic.learner import ActorCriticConfig
    from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig
    from pitune.rl.algorithm import Algorithm, AlgorithmConfig, Needs
    from pitune.rl.algorithms.bc import BCConfig, BehaviorCloning
    from pitune.rl.algorithms.dgn import DGN, DGNConfig
    from pitune.rl.algorithms.dsrl import DSRL, DSRLConfig
    from pitune.rl.algorithms.epo import EPO, EPOConfig
    from pitune.rl.algorithms.es import ES, ESConfig
    from pitune.rl.algorithms.filtered_bc import FilteredBC, FilteredBCConfig
    from pitune.rl.algorithms.fpo import FPO, FPOConfig
    from pitune.rl.algorithms.grpo import GRPO, GRPOConfig
    from pitune.rl.algorithms.ppo import PPO, PPOConfig
    from pitune.rl.algorithms.recap.config import RecapConfig
    from pitune.rl.algorithms.recap.learner import Recap
    from pitune.rl.algorithms.wsrl import WSRL, WSRLConfig
    from pitune.rl.cloning.config import (
        LanguageLossConfig,
        LanguageRegularizationConfig,
        StatusLossConfig,
    )
    from pitune.rl.evaluation.evaluate import evaluate
    from pitune.rl.evaluation.outcome import EpisodeOutcome, Evaluation
    from pitune.rl.evaluation.paired import PairedTest, paired_test
    from pitune.rl.experience.collect import collect_demonstrations
    from pitune.rl.experience.demonstrations import Demonstrations
    from pitune.rl.experience.fit import check_fit, check_needs
    from pitune.rl.experience.rollouts import Rollouts, rollout_metrics
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
    "ES",
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
    "ESConfig",
    "EpisodeOutcome",
    "Evaluation",
    "FPOConfig",
    "FilteredBC",
    "FilteredBCConfig",
    "GRPOConfig",
    "LanguageLossConfig",
    "LanguageRegularizationConfig",
    "Needs",
    "OffPolicyConfig",
    "PPOClipConfig",
    "PPOConfig",
    "PairedTest",
    "Recap",
    "RecapConfig",
    "Rollouts",
    "StatusLossConfig",
    "UpdateConfig",
    "WSRLConfig",
    "check_fit",
    "check_needs",
    "collect_demonstrations",
    "evaluate",
    "make",
    "name_of",
    "paired_test",
    "preset",
    "presets",
    "register",
    "registry",
    "rollout_metrics",
]

_MODULES = {
    "actor_critic.learner": ("ActorCriticConfig",),
    "actor_critic.td": ("OffPolicyConfig",),
    "algorithm": ("Algorithm", "AlgorithmConfig", "Needs"),
    "algorithms.bc": ("BCConfig", "BehaviorCloning"),
    "algorithms.dgn": ("DGN", "DGNConfig"),
    "algorithms.dsrl": ("DSRL", "DSRLConfig"),
    "algorithms.epo": ("EPO", "EPOConfig"),
    "algorithms.es": ("ES", "ESConfig"),
    "algorithms.filtered_bc": ("FilteredBC", "FilteredBCConfig"),
    "algorithms.fpo": ("FPO", "FPOConfig"),
    "algorithms.grpo": ("GRPO", "GRPOConfig"),
    "algorithms.ppo": ("PPO", "PPOConfig"),
    "algorithms.recap.config": ("RecapConfig",),
    "algorithms.recap.learner": ("Recap",),
    "algorithms.wsrl": ("WSRL", "WSRLConfig"),
    "cloning.config": (
        "LanguageLossConfig",
        "LanguageRegularizationConfig",
        "StatusLossConfig",
    ),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.outcome": ("EpisodeOutcome", "Evaluation"),
    "evaluation.paired": ("PairedTest", "paired_test"),
    "experience.collect": ("collect_demonstrations",),
    "experience.demonstrations": ("Demonstrations",),
    "experience.fit": ("check_fit", "check_needs"),
    "experience.rollouts": ("Rollouts", "rollout_metrics"),
    "policy_gradient.config": ("AdvantageConfig", "ClipConfig", "PPOClipConfig", "UpdateConfig"),
    "registry": ("make", "name_of", "preset", "presets", "register"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # a type checker reads the imports above, and reports unknown names

    def __getattr__(name: str) -> object:
        """Import a public name from its module, and keep it."""
        if name == "registry":
            return import_module(f"{__name__}.registry")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
