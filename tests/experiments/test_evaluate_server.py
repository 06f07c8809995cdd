from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pitune import envs, policies
from pitune.experiments.evaluate import EvaluateConfig, evaluate, main, server_of
from pitune.policies.flow.delay import DelayConfig, Seam
from pitune.policies.flow.real_time import RealTimeConfig
from policy_server import serving

ENV = ["--env.id", "mock/Reach", "--env.num-envs", "4", "--env.num-workers", "0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "policy"
    torch.manual_seed(0)
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=2)
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    policies.save(policies.small_policy(states, actions, action_horizon=6, sampler=sampler), folder)
    return folder


def result(*options: str, out: Path) -> dict:
    main([*options, *ENV, "--episodes", "8", "--device", "cpu", "--out", str(out)])
    return json.loads(out.read_text())


def test_an_address_evaluates_the_policy_behind_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = result("--checkpoint", str(checkpoint), out=tmp_path / "own.json")
    with serving(policies.load(checkpoint), max_wait_ms=20) as server:
        uri = f"ws://127.0.0.1:{server.port}"
        remote = result("--checkpoint", uri, out=tmp_path / "remote.json")
        assert server.metrics.num_requests > 0
    printed = capsys.readouterr().out
    assert f"{uri}, waited" in printed.replace("\n", " ")
    assert remote["waiting_seconds"] > 0
    # the same starts, with other starting noise
    rows = [[row["seed"] for row in r["result"]["rows"]] for r in (own, remote)]
    assert rows[0] == rows[1]
    assert remote["result"]["episodes"] == 8


def test_a_delay_changes_the_outcomes_and_a_delay_of_zero_does_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    def returns(name: str, *options: str) -> list[float]:
        record = result("--checkpoint", str(checkpoint), *options, out=tmp_path / f"{name}.json")
        return [row["episode_return"] for row in record["result"]["rows"]]

    dense = ("--env.reward", "dense")
    plain = returns("plain", *dense)
    assert returns("again", *dense) == plain
    assert returns("late", *dense, "--delay.steps", "2") != plain
    guided = returns("guided", *dense, "--delay.steps", "2", "--delay.seam", "real_time")
    assert guided != plain


@pytest.mark.parametrize("settings", [{"stochastic": True}, {"delay": DelayConfig(steps=1)}])
def test_settings_that_need_the_policy_itself_are_refused_for_a_server(settings: dict) -> None:
    config = EvaluateConfig(checkpoint=Path("ws://127.0.0.1:1"), **settings)
    with pytest.raises(ValueError, match="need the policy itself"):
        evaluate(config)


def test_exploring_under_a_delay_is_refused(checkpoint: Path) -> None:
    config = EvaluateConfig(
        checkpoint=checkpoint, stochastic=True, delay=DelayConfig(steps=1), device="cpu"
    )
    with pytest.raises(ValueError, match="explores without a delay"):
        evaluate(config)


@pytest.mark.parametrize(
    ("own", "seam", "message"),
    [
        (None, "plain", "delay.seam='plain' does not use it"),
        (None, "ensemble", "delay.seam='ensemble' does not use it"),
        (RealTimeConfig(schedule="ones"), "real_time", "settings of its own.*schedule='ones'"),
    ],
)
def test_real_time_settings_without_an_effect_are_refused(
    checkpoint: Path, tmp_path: Path, own: RealTimeConfig | None, seam: Seam, message: str
) -> None:
    policy = policies.load(checkpoint)
    policy = policy.replace(sampler=replace(policy.sampler, real_time=own))
    policies.save(policy, tmp_path / "own")
    config = EvaluateConfig(
        checkpoint=tmp_path / "own",
        delay=DelayConfig(steps=1, seam=seam),
        real_time=RealTimeConfig(max_weight=10.0),
        episodes=1,
        env=envs.EnvConfig(id="mock/Reach", num_envs=1, num_workers=0),
        device="cpu",
    )
    with pytest.raises(ValueError, match=message):
        evaluate(config)


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("ws://host:8000", "ws://host:8000"),
        ("wss://host/path", "wss://host/path"),
        ("runs/ws", None),
        ("/ws:/x", None),
    ],
)
def test_an_address_is_told_from_a_folder(path: str, uri: str | None) -> None:
    assert server_of(Path(path)) == uri
