"""`registry`: a likelihood from outside the packages is one file, and unknown names raise."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from pitune import policies
from pitune.experiments.command_line.main import main
from pitune.policies import FlowPolicy, FlowSDEConfig, FlowStepConfig, LikelihoodActor
from pitune.policies.likelihood import registry
from pitune.policies.likelihood.flow_steps import FlowSDELikelihood

OUTSIDE = '''
from dataclasses import dataclass

import torch

from pitune import policies
from pitune.policies.flow.kernels import FlowNoise
from pitune.policies.likelihood.flow_steps import FlowStepLikelihood


@dataclass(frozen=True, kw_only=True)
class ConstantNoiseConfig(policies.FlowStepConfig):
    """Flow steps with Gaussian noise of a constant size."""

    size: float = 0.1
    """Standard deviation of a flow step [normalized action]."""


@policies.register_likelihood("constant_noise", ConstantNoiseConfig)
class ConstantNoise(FlowStepLikelihood[ConstantNoiseConfig]):
    """Every flow step is a Gaussian around the step of the ODE."""

    def kernel(self, mask):
        return FlowNoise(lambda out, time: torch.full_like(out.velocity, self.config.size), mask)
'''


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / f"noise_{tmp_path.name}.py"
    file.write_text(OUTSIDE)
    return file


def test_a_likelihood_from_outside_trains_with_an_option_of_its_own(
    outside: Path, half_trained: Path, tmp_path: Path
) -> None:
    options = "--env.id mock/Reach --env.num-envs 4 --env.num-workers 0 --eval-episodes 4 "
    options += "--num-iterations 2 --num-chunks 4 --wandb off --no-video --device cpu "
    options += "--algorithm.critic-warmup 0 --algorithm.likelihood.size 0.07"
    folders = ["--checkpoint", str(half_trained), "--out", str(tmp_path / "run")]
    main(["--import", str(outside), "train", "ppo:constant_noise", *options.split(), *folders])
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["algorithm_name"] == "ppo:constant_noise"
    assert config["algorithm"]["likelihood"]["size"] == 0.07
    head, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    columns = head.split(",")
    for row in rows:
        values = dict(zip(columns, row.split(","), strict=True))
        assert float(values["terminal_std"]) == pytest.approx(0.07, rel=1e-5)
        assert float(values["ratio_deviation"]) < 1e-4


def test_its_ratio_is_one_and_a_broken_scorer_is_seen(
    outside: Path, tiny_policy: Callable[..., FlowPolicy]
) -> None:
    names: dict = {}
    exec(compile(OUTSIDE, str(outside), "exec", dont_inherit=True), {"__name__": "made"} | names)
    config = policies.likelihood_config("constant_noise", size=0.3)
    actor = LikelihoodActor(tiny_policy(), config)
    obs = TensorDict({"state": torch.randn(8, 4)}, [8])
    td = actor(actor.policy.observation_preprocessor(())(obs))
    score = actor.get_dist(td).log_prob(td["chain"])
    assert torch.allclose(score, td["action_log_prob"], atol=1e-4)
    other = LikelihoodActor(actor.policy, policies.likelihood_config("constant_noise", size=0.2))
    broken = other.get_dist(td).log_prob(td["chain"])
    assert not torch.allclose(broken, td["action_log_prob"], atol=0.1)


def test_unknown_names_and_configs_raise(tiny_policy: Callable[..., FlowPolicy]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unregistered(FlowStepConfig):
        pass

    with pytest.raises(ValueError, match="unknown likelihood 'flow_noize'; did you mean 'flow_noi"):
        policies.likelihood_config("flow_noize")
    with pytest.raises(
        ValueError, match=r"no likelihood takes a Unregistered; registered: \['fast', 'fl"
    ):
        LikelihoodActor(tiny_policy(), Unregistered())


def test_a_name_or_config_that_is_taken_is_refused() -> None:
    class Mine(FlowSDELikelihood):
        pass

    with pytest.raises(ValueError, match="likelihood 'flow_sde' or its FlowStepConfig is regist"):
        policies.register_likelihood("flow_sde", FlowStepConfig)(Mine)
    with pytest.raises(ValueError, match="likelihood 'mine' or its FlowSDEConfig is registered"):
        policies.register_likelihood("mine", FlowSDEConfig)(Mine)
