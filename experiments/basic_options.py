"""Basic options: the ones that `--help` lists. `--help-all` lists all of them."""

from __future__ import annotations

from collections.abc import Mapping

BASIC: Mapping[str, frozenset[str]] = {
    "TrainConfig": frozenset(
        [
            "checkpoint",
            "out",
            "seed",
            "num_iterations",
            "eval_every",
            "eval_episodes",
            "wandb",
            "device",
            "resume",
        ]
    ),
    "EvaluateConfig": frozenset(["checkpoint", "episodes", "seed", "stochastic", "out", "device"]),
    "PretrainConfig": frozenset(
        ["out", "num_demonstrations", "gradient_steps", "action_horizon", "seed"]
    ),
    "EnvConfig": frozenset(["id", "num_envs", "num_workers", "cameras", "image_size"]),
    "LoadConfig": frozenset(["pipeline"]),
    "FinetuneConfig": frozenset(["train"]),
    "SamplerConfig": frozenset(["flow_steps", "execution_horizon"]),
    "GemmaConfig": frozenset(),
}
"""Basic fields by the name of their config."""

EVERYWHERE = frozenset(
    [
        "actor_learning_rate",
        "advantage_scale",
        "bc_coefficient",
        "critic_learning_rate",
        "critic_warmup",
        "demonstrations",
        "discount",
        "exploration_std",
        "group_size",
        "gradient_steps",
        "kernel",
        "kl_coefficient",
        "learning_rate",
        "magnitude",
        "minibatch_size",
        "noise",
        "noise_level",
        "num_epochs",
        "num_members",
        "schedule",
        "stochastic_steps",
        "surrogate",
        "target_kl",
        "updates_per_decision",
        "variant",
        "warmup_decisions",
    ]
)
"""Basic fields of all other configs inside pitune: the algorithms' and their blocks."""

ALL_BASIC = ("QuickstartConfig", "QuickstartEnv", "CompareConfig", "VerifyConfig")
"""Configs that are short enough to be listed whole; so are all from outside pitune."""


def is_basic(config: type, name: str) -> bool:
    """Return whether an option stands in the short help.

    Args:
        config: Dataclass that has the option.
        name: Its field.
    """
    if config.__name__ in BASIC:
        return name in BASIC[config.__name__]
    if config.__name__ in ALL_BASIC or not config.__module__.startswith("pitune."):
        return True
    return name in EVERYWHERE
