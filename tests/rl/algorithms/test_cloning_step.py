"""`bc`: the draws, the step size and the averaged weights of cloning, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from observations import observed
from pitune import rl
from pitune.policies import FlowPolicy, ModelInput
from pitune.rl import BCConfig
from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.gradient_step import Metrics

NOTHING = TensorDict(batch_size=(1, 0))


def chunks(policy: FlowPolicy, num: int) -> TensorDict:
    return observed(policy, torch.rand(num, 4), action=torch.rand(num, 2, 2))


def flat(policy: FlowPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_the_step_size_rises_by_a_line_and_falls_by_a_cosine() -> None:
    """A warm-up of three steps from 1/4, then half a cosine over the other four."""
    config = BCConfig(learning_rate=1.0, warmup_steps=3, decay_steps=7, final_fraction=0.2)
    rates = [config.step_size(step) for step in range(9)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[5] == pytest.approx(0.6)
    assert rates[4] + rates[6] == pytest.approx(1.2)
    assert rates[4] == pytest.approx(0.2 + 0.8 * 0.85355, abs=1e-5)
    assert rates[7:] == pytest.approx([0.2, 0.2])


def test_a_step_draws_flow_times_and_noise_of_the_training_distribution(
    tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.999 * Beta(1.5, 1) + 0.001 has the mean 0.6004 and the distribution function t^1.5."""
    torch.manual_seed(0)
    step = CloningStep(tiny_policy(), BCConfig())
    original, seen = step.loss, []

    def loss(batch: TensorDictBase) -> tuple[torch.Tensor, Metrics]:
        seen.append((batch["flow_time"], batch["noise"]))
        return original(batch)

    monkeypatch.setattr(step, "loss", loss)
    step(chunks(step.policy, 4000))
    ((time, noise),) = seen
    assert float(time.mean()) == pytest.approx(0.6004, abs=0.015)
    assert float((time < 0.5).float().mean()) == pytest.approx(0.5**1.5, abs=0.025)
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert noise.shape == (4000, 2, 2)


def test_several_draws_of_a_chunk_have_the_loss_of_each_alone(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    policy = tiny_policy()
    rows = chunks(policy, 5)
    noise, flow_time = torch.randn(5, 3, 2, 2), torch.rand(5, 3)
    inputs, action = ModelInput.of(rows), rows["action"]
    together = policy.loss(inputs, action, noise, flow_time)
    alone = [policy.loss(inputs, action, noise[:, i], flow_time[:, i]) for i in range(3)]
    assert together.shape == (5, 3, 2, 2)
    assert torch.allclose(together, torch.stack(alone, 1), atol=1e-5)
    with pytest.raises(ValueError, match=r"noise has shape \(5, 3, 2\); it must be"):
        policy.loss(inputs, action, torch.randn(5, 2, 3, 2), flow_time[:, :2])


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_draws_of_a_chunk_differ_and_observations_are_encoded_once(
    num_parts: int, tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = BCConfig(draws_per_chunk=3, minibatch_size=8, num_parts=num_parts)
    step = CloningStep(tiny_policy(), config)
    losses, encoded = [], []
    original, encode = step.loss, step.policy.encode

    def loss(batch: TensorDictBase) -> tuple[torch.Tensor, Metrics]:
        losses.append((batch["flow_time"], batch["noise"]))
        return original(batch)

    def counted(inputs: ModelInput, *args: Any, **kwargs: Any) -> Any:
        encoded.append(len(inputs))
        return encode(inputs, *args, **kwargs)

    monkeypatch.setattr(step, "loss", loss)
    monkeypatch.setattr(step.policy, "encode", counted)
    step(chunks(step.policy, 8))
    flow_time, noise = (torch.cat(column) for column in zip(*losses, strict=True))
    assert noise.shape == (8, 3, 2, 2)
    assert len(flow_time.flatten().unique()) == 24
    assert len(noise.flatten().unique()) == 96
    assert sum(encoded) == 8


def test_the_average_follows_each_step_by_its_share(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    policy = tiny_policy()
    step = CloningStep(policy, BCConfig(learning_rate=1e-2, ema_decay=0.75))
    examples = chunks(policy, 8)
    average = flat(policy)
    for _ in range(4):
        step(examples)
        average = 0.75 * average + 0.25 * flat(policy)
    assert step.ema is not None
    assert step.num_steps == 4
    raw = flat(policy)
    with step.ema.swapped():
        assert torch.allclose(flat(policy), average, atol=1e-6)
    assert torch.equal(flat(policy), raw)
    assert not torch.allclose(raw, average, atol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_the_average_is_deployed_and_the_raw_weights_go_on(
    decay: float, demonstrations_file: Path, tiny_policy: Callable
) -> None:
    """Two updates of two steps are four steps in a row."""
    config = BCConfig(
        demonstrations=demonstrations_file,
        learning_rate=1e-2,
        decay_steps=10,
        minibatch_size=8,
        gradient_steps=2,
        ema_decay=decay,
    )
    algorithm = rl.make(config, tiny_policy())
    assert isinstance(algorithm, rl.BehaviorCloning)
    torch.manual_seed(1)
    for _ in range(2):
        algorithm.update(NOTHING)
    deployed = flat(algorithm.actor.policy)

    whole = rl.make(replace(config, gradient_steps=4), tiny_policy())
    torch.manual_seed(1)
    whole.update(NOTHING)
    assert torch.allclose(flat(whole.actor.policy), deployed, atol=1e-6)
    raw = rl.make(replace(config, gradient_steps=4, ema_decay=0.0), tiny_policy())
    torch.manual_seed(1)
    raw.update(NOTHING)
    same = torch.allclose(flat(raw.actor.policy), deployed, atol=1e-5)
    assert same is (decay == 0)
