from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from pitune import policies
from pitune.experiments.benchmarks import serving as benchmark
from pitune.experiments.benchmarks.serving import ServingConfig, measure
from pitune.policies.serving.client import RemoteError
from pitune.policies.serving.config import ServerConfig
from policy_server import serving


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
