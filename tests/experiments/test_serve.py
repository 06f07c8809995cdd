from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pitune import policies
from pitune.experiments.serve import ServeConfig, main, make_server
from pitune.policies.serving.client import RemoteClient, RemoteConfig
from pitune.policies.serving.config import ServerConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "policy"
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=2)
    policies.save(policies.small_policy(states, actions, action_horizon=4, sampler=sampler), folder)
    return folder


def test_the_command_serves_until_sigterm_and_ends_with_status_0(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "pitune.experiments.serve", "--checkpoint", str(checkpoint)]
    with subprocess.Popen(
        [*command, "--server.port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving on ws://127.0.0.1:")
            client = RemoteClient(RemoteConfig(uri=line.split()[-1]))
            client.send({"observation/state": np.zeros(4)})
            assert client.receive()["actions"].shape == (4, 2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            client.close()
            assert process.stderr is not None
            assert "1 answers" in process.stderr.read()
        finally:
            process.kill()


def test_settings_reach_the_server(checkpoint: Path, tmp_path: Path) -> None:
    key, metadata = tmp_path / "key.txt", tmp_path / "metadata.json"
    key.write_text("secret\n")
    metadata.write_text('{"reset_pose": [0, 1]}')
    config = ServeConfig(
        checkpoint=checkpoint, api_key_file=key, metadata=metadata, flow_steps=7, device="cpu"
    )
    server = make_server(config)
    assert server.api_key == "secret"
    assert server.metadata["reset_pose"] == [0, 1]
    assert server.metadata["action_dim"] == 2
    assert server.policy.sampler.flow_steps == 7


def test_an_open_address_without_a_key_is_warned_of(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            make_server(ServeConfig(checkpoint=checkpoint, server=ServerConfig(host=host)))
        assert ("no API key" in caplog.text) == warned


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("api-key-file", " \n", "is empty"),
        ("metadata", "{", "is no JSON"),
        ("metadata", "[1]", "must hold a JSON object, not list"),
    ],
)
def test_a_wrong_file_is_an_error(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    message: str,
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(SystemExit) as exit_code:
        main(["--checkpoint", str(checkpoint), f"--{name}", str(file)])
    assert exit_code.value.code == 2
    assert message in capsys.readouterr().err


def test_a_taken_port_is_an_error(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as exit_code:
            main(["--checkpoint", str(checkpoint), "--server.port", port])
    assert exit_code.value.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
