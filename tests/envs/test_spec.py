"""The properties of an environment."""

from __future__ import annotations

import pytest
import torch

from pitune import envs


def spec(device: str) -> envs.EnvSpec:
    return envs.EnvSpec(
        id="blocks/Stack",
        num_envs=2,
        state_dim=3,
        action_low=(-1.0,),
        action_high=(1.0,),
        max_episode_steps=5,
        control_hz=20.0,
        tasks=("stack",),
        simulator="blocks 1.0",
        device=torch.device(device),
    )


def test_a_cuda_device_has_the_index_that_its_tensors_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert spec("cuda").device == torch.device("cuda:2")
    assert spec("cuda:1").device == torch.device("cuda:1")
    assert spec("cpu").device == torch.device("cpu")


def test_without_cuda_a_device_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert spec("cuda").device == torch.device("cuda")
