"""All configs that a command line, a checkpoint or an algorithm can make."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pitune import envs, policies, rl
from pitune.experiments.benchmarks import pi0, rollout, soak, update
from pitune.experiments.benchmarks.learning import recap
from pitune.experiments.compare import CompareConfig
from pitune.experiments.evaluate import EvaluateConfig
from pitune.experiments.inspect_run import InspectConfig
from pitune.experiments.norm_stats import NormStatsConfig
from pitune.experiments.pretrain import PretrainConfig
from pitune.experiments.quickstart import QuickstartConfig
from pitune.experiments.runs.results_table import TableConfig
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.verify_checkpoint import VerifyConfig
from pitune.ranges import declared_types

OF_COMMANDS: tuple[type, ...] = (
    CompareConfig,
    EvaluateConfig,
    InspectConfig,
    NormStatsConfig,
    PretrainConfig,
    QuickstartConfig,
    TableConfig,
    TrainConfig,
    VerifyConfig,
    pi0.BenchmarkConfig,
    recap.BenchmarkConfig,
    rollout.BenchmarkConfig,
    soak.SoakConfig,
    update.BenchmarkConfig,
)
OF_CHECKPOINTS: tuple[type, ...] = (
    policies.Pi0Config,
    policies.PreprocessorConfig,
    policies.SamplerConfig,
    policies.SteeringConfig,
    policies.LoRAConfig,
)


def all_configs() -> list[type]:
    """Return the class of every config, with those of the nested blocks, by name."""
    registered = [
        *(type(config) for config in rl.presets().values()),
        *(type(config) for config in policies.likelihoods().values()),
        *envs.prefixes().values(),
    ]
    waiting, found = [*OF_COMMANDS, *OF_CHECKPOINTS, *registered], set[type]()
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found.add(kind)
            hints = (declared_types(kind)[item.name] for item in fields(kind))
            waiting += [block for hint in hints for block in blocks(hint)]
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def blocks(hint: Any) -> list[type]:
    """Return the dataclasses in a declared type."""
    if is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [block for inner in get_args(hint) for block in blocks(inner)]


def example(kind: type) -> Any:
    """Return a valid config of a class, with small values for the fields without a default."""
    hints = declared_types(kind)
    required = {
        item.name: _example_value(hints[item.name])
        for item in fields(kind)
        if item.default is MISSING and item.default_factory is MISSING
    }
    return kind(**required)


def _example_value(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return _example_value(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return (_example_value(get_args(hint)[0]),)
    if hint is policies.NormStats:
        return policies.NormStats.identity(16)
    if hint is rl.AlgorithmConfig:
        return rl.PPOConfig()
    if is_dataclass(hint) and isinstance(hint, type):
        return example(hint)
    return {int: 16, Path: Path("folder")}[hint]
