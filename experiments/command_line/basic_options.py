"""Basic options: the ones that `--help` lists. `--help-all` lists all of them."""

from __future__ import annotations

from collections.abc import Mapping

BASIC: Mapping[str, tuple[str, ...]] = {
    "TrainConfig": (
        "checkpoint",
        "out",
        "seed",
        "num_iterations",
        "eval_every",
        "eval_episodes",
        "wandb",
        "device",
        "resume",
    ),
    "EvaluateConfig": (
        "checkpoint",
        "episodes",
        "seed",
        "seeds",
        "compare",
        "vary",
        "stochastic",
        "shuffle_instructions",
        "out",
        "folder",
        "shards",
        "films",
        "device",
    ),
    "RecordConfig": (),
    "PretrainConfig": (
        "out",
        "num_demonstrations",
        "dataset",
        "record",
        "gradient_steps",
        "action_horizon",
        "words",
        "seed",
    ),
    "EnvConfig": ("id", "num_envs", "num_workers", "cameras"),
    "DataConfig": (),
    "TabletopOptions": (),
    "LoadConfig": ("pipeline",),
    "FinetuneConfig": (),
    "ServeConfig": ("checkpoint", "api_key_file", "device"),
    "ServerConfig": ("host", "port", "max_batch", "max_wait_ms"),
    "SamplerConfig": ("flow_steps", "execution_horizon"),
    "GemmaConfig": (),
    "SmallVLMConfig": (),
}
"""Basic fields by the name of their config."""

EVERYWHERE = (
    "actor_learning_rate",
    "advantage_scale",
    "critic_learning_rate",
    "demonstrations",
    "discount",
    "exploration_std",
    "gradient_steps",
    "group_size",
    "kl_coefficient",
    "learning_rate",
    "magnitude",
    "minibatch_size",
    "noise",
    "noise_level",
    "num_epochs",
    "num_members",
    "stochastic_steps",
    "surrogate",
    "updates_per_decision",
    "variant",
    "warmup_decisions",
)
"""Basic fields of all other configs of pitune: the algorithms' and their blocks."""

ALL_BASIC = (
    "BenchmarkConfig",
    "CompareConfig",
    "EnvOptions",
    "NormStatsConfig",
    "PartsConfig",
    "QuickstartConfig",
    "QuickstartEnv",
    "SavingConfig",
    "ServingConfig",
    "SoakConfig",
    "VerifyConfig",
)
"""Configs whose fields are all basic. So are all fields of a config from outside pitune."""


def is_basic(config: type, name: str) -> bool:
    """Return whether an option stands in the short help.

    Args:
        config: Dataclass that has the option.
        name: Its field.
    """
    if config.__name__ in BASIC:
        return name in BASIC[config.__name__]
    bases = {base.__name__ for base in config.__mro__}
    if bases & set(ALL_BASIC) or not config.__module__.startswith("pitune."):
        return True
    return name in EVERYWHERE
