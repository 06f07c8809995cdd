from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pitune import policies
from pitune.experiments.benchmarks import serving as benchmark
from pitune.experiments.benchmarks.serving import ServingConfig, measure
from pitune.policies.serving.client import RemoteError
from pitune.policies.serving.config import ServerConfig
from policy_server import ask, client, serving


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    sampler = policies.SamplerConfig(flow_steps=2)
    policy = policies.small_policy(states, actions, action_horizon=6, sampler=sampler)
    policies.save(policy, tmp_path / "policy")
    return tmp_path / "policy"


def test_a_server_that_cannot_start_ends_the_measurement(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = ServerConfig(port=taken.getsockname()[1])
        with pytest.raises(ValueError, match="did not start"):
            measure(ServingConfig(checkpoint=checkpoint, server=server, seconds=0.5))


def test_a_client_that_gets_no_answer_is_an_error(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> dict[str, object]:
        return {"observation/state": np.zeros(3)}

    monkeypatch.setattr(benchmark, "_observation", wrong)
    policy = policies.load(checkpoint)
    config = ServingConfig(checkpoint=checkpoint, seconds=0.5)
    with serving(policy) as server, pytest.raises(RemoteError, match="state has 3 numbers"):
        benchmark._load(config, policy, 2, server.port, os.getpid())


def test_clients_that_misbehave_cost_the_others_nothing(checkpoint: Path) -> None:
    server = ServerConfig(port=0, seed=0, max_message_mib=0.5, ping_seconds=0.5)
    config = ServingConfig(
        checkpoint=checkpoint, server=server, seconds=4.0, num_clients=(3,), disturb=True
    )
    [load] = measure(config)
    assert load.rate > 1
    assert load.num_leaked <= 0
    assert load.disturbances.startswith("200 malformed messages refused, 50 clients left in")


def test_an_answer_that_is_another_clients_is_an_error(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, config = policies.load(checkpoint), ServingConfig(checkpoint=checkpoint, seconds=0.5)
    original = benchmark._observation
    with serving(policy, seed=0) as server:
        load = benchmark._load(config, policy, 2, server.port, os.getpid())
        assert len(load.latency) > 4
    # negative control: the answers of one client are checked against the other's observation
    given: dict[int, np.ndarray] = {}
    raw = original(policy, 0)
    with serving(policy, seed=0) as server, client(server) as connection:
        given[0] = ask(connection, raw)["actions"]
        given[1] = ask(connection, raw)["actions"]
    checked = replace(config, server=ServerConfig(seed=0))
    benchmark._check(policy, checked, 0, raw, given)
    with pytest.raises(ValueError, match="answer 0 of client 0 differs"):
        benchmark._check(policy, checked, 0, original(policy, 1), given)
    with pytest.raises(ValueError, match="answer 1 of client 0 differs"):
        benchmark._check(policy, checked, 0, raw, {1: given[0]})
