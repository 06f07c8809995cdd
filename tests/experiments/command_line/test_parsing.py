"""`parsing`: defaults of the named environment, and which options are basic."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from pitune import envs
from pitune.experiments.command_line.basic_options import ALL_BASIC, BASIC, is_basic
from pitune.experiments.command_line.parsing import default_env, default_of, parse, program
from pitune.experiments.evaluate import EvaluateConfig
from pitune.experiments.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class MyOptions:
    """Options of my simulator."""

    gravity: float = 9.81
    """Of my simulator [m/s²]."""


@dataclass(frozen=True, kw_only=True)
class MyEnvConfig(envs.EnvConfig):
    """An environment with options of its own."""

    mine: MyOptions = field(default_factory=MyOptions)


@pytest.mark.parametrize(
    "args",
    [
        ["--env.id", "mock/Reach"],
        ["--env.id=mock/Reach"],
        ["--seed", "1", "--env.id", "gym/x", "--env.id", "mock/Reach", "--env.num-envs", "2"],
    ],
)
def test_the_default_environment_is_the_one_that_the_arguments_name(args: list[str]) -> None:
    assert default_env(args).id == "mock/Reach"
    assert default_env([]) == envs.config_for(envs.EnvConfig().id)


def test_the_options_of_the_named_environment_are_parsed_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def config_for(env_id: str, **changes: Any) -> envs.EnvConfig:
        kind = MyEnvConfig if env_id.startswith("mine/") else envs.EnvConfig
        return replace(kind(id=env_id), **changes)

    monkeypatch.setattr(envs, "config_for", config_for, raising=False)
    words = ["--checkpoint", "policy", "--env.id", "mine/x", "--env.mine.gravity", "1.6"]
    config = parse(EvaluateConfig, words, prog="evaluate", description=None)
    assert isinstance(config.env, MyEnvConfig)
    assert config.env.mine.gravity == 1.6
    with pytest.raises(SystemExit) as stopped:
        parse(EvaluateConfig, ["--env.id", "mine/x", "--help"], prog="evaluate", description=None)
    assert not stopped.value.code
    assert "--env.mine.gravity FLOAT" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"unrecognized options: --env\.mine\.gravity, 1\.6; `ev"):
        parse(EvaluateConfig, [*words, "--env.id", "mock/x"], prog="evaluate", description=None)


def test_a_command_without_an_environment_has_no_default_of_its_own() -> None:
    assert default_of(MyOptions, []) is None
    made = default_of(EvaluateConfig, ["--env.id", "mock/Reach"])
    assert made is not None
    assert made.env.id == "mock/Reach"


def test_options_from_outside_are_basic_and_ours_by_the_table() -> None:
    assert is_basic(MyOptions, "gravity")
    assert is_basic(TrainConfig, "seed")
    assert not is_basic(TrainConfig, "torch_threads")
    assert not BASIC.keys() & set(ALL_BASIC)


def test_every_name_in_the_table_of_basic_options_is_a_field() -> None:
    from pitune import policies
    from pitune.envs.tabletop.registration import TabletopOptions
    from pitune.experiments.pretrain import PretrainConfig
    from pitune.experiments.serve import ServeConfig
    from pitune.policies.serving.config import ServerConfig
    from pitune.rl.datasets.config import DataConfig, RecordConfig

    kinds: tuple[Any, ...] = (
        TrainConfig,
        EvaluateConfig,
        PretrainConfig,
        envs.EnvConfig,
        TabletopOptions,
        policies.LoadConfig,
        policies.FinetuneConfig,
        policies.SamplerConfig,
        policies.GemmaConfig,
        policies.SmallVLMConfig,
        DataConfig,
        RecordConfig,
        ServeConfig,
        ServerConfig,
    )
    assert {kind.__name__ for kind in kinds} == BASIC.keys()
    for kind in kinds:
        assert set(BASIC[kind.__name__]) <= kind.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        ("pitune.experiments.train", "python -m pitune.experiments.train"),
        ("pitune.experiments.command_line.main", "pitune train"),
        ("pitune.experiments.benchmarks.command", "pitune train"),
    ],
)
def test_help_names_the_program_with_the_command_in_it(
    module: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = SimpleNamespace(__spec__=SimpleNamespace(name=module))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert program("train") == shown
    assert find_spec(module) is not None


def test_torchrun_starts_no_command_but_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started several processes, and `evaluate`"):
        parse(EvaluateConfig, [], prog="evaluate", description="")
    monkeypatch.setenv("WORLD_SIZE", "1")
    words = ["--checkpoint", "policy"]
    assert parse(EvaluateConfig, words, prog="evaluate", description="").episodes
