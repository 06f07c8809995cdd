"""Cloning with clean beginnings of random length, for real-time chunking."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from observations import observed
from pitune import policies, rl
from pitune.policies import FlowPolicy, ModelInput, RealTimeConfig
from pitune.policies.flow.path import FlowOutput
from pitune.policies.flow.real_time import clean_prefix
from pitune.policies.network.config import Family
from pitune.policies.network.context import Context
from pitune.rl import BCConfig
from pitune.rl.algorithms.bc import CloningStep
from vision_policies import vision_policy

H = 4
CONFIG = BCConfig(real_time_delay=3, minibatch_size=8)


def batch_of(policy: FlowPolicy, num: int = 6) -> TensorDict:
    """Return random chunks with their draws, of which row i begins with i % 4 clean actions."""
    torch.manual_seed(1)
    obs = TensorDict({"state": torch.randn(num, 4), "action": torch.randn(num, H, 2)}, [num])
    for camera in ("front", "wrist"):
        obs[f"image/{camera}"] = torch.zeros(num, 3, 20, 20, dtype=torch.uint8)
    obs["task_id"] = torch.zeros(num, dtype=torch.int64)
    batch = policy.observation_preprocessor(("push",))(obs).select("model_input", "action")
    batch["noise"] = policy.draw_noise(num)
    batch.update(clean_prefix(torch.rand(num), torch.arange(num) % 4, H))
    return batch


def perturb(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch, where: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Add 10 to the network's velocity (B, 1, H, A) in some steps (B, H), and record its inputs."""
    velocity, calls = policy.network.velocity, []

    def wrong(context: Context, x: Tensor, flow_time: Tensor) -> FlowOutput:
        calls.append((x, flow_time))
        output = velocity(context, x, flow_time)
        return output._replace(velocity=output.velocity + 10 * where[:, None, :, None])

    monkeypatch.setattr(policy.network, "velocity", wrong)
    return calls


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_the_loss_does_not_depend_on_the_networks_output_in_the_clean_beginning(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CloningStep(vision_policy(family), CONFIG)
    batch = batch_of(step.policy)
    is_clean = batch["flow_time"] == 0  # (B, H)
    assert is_clean.sum(1).tolist() == [0, 1, 2, 3, 0, 1]
    with torch.no_grad():
        loss, _ = step.loss(batch)
        with monkeypatch.context() as patch:
            calls = perturb(step.policy, patch, is_clean)
            torch.testing.assert_close(step.loss(batch)[0], loss, rtol=0, atol=0)
            # negative control: without the weights the beginning counts
            unweighted = batch.clone().set("step_weight", torch.ones_like(batch["step_weight"]))
            assert step.loss(unweighted)[0] > loss + 1
        with monkeypatch.context() as patch:
            perturb(step.policy, patch, ~is_clean)
            assert step.loss(batch)[0] > loss + 1

    # the network reads the demonstrated actions with flow time 0, and noisy ones after them
    x, flow_time = calls[0]
    inputs = ModelInput.of(batch)
    action = step.policy.preprocessor.normalize_action(batch["action"], inputs.robot_state)
    assert torch.equal(flow_time[:, 0] == 0, is_clean)
    assert torch.equal(x[:, 0][is_clean], action[is_clean])
    assert (x[:, 0] - action)[~is_clean].abs().min() > 1e-6


def test_the_loss_is_the_mean_over_the_entries_that_are_learned() -> None:
    step = CloningStep(vision_policy(), CONFIG)
    batch = batch_of(step.policy)
    with torch.no_grad():
        loss = step.policy.loss(
            ModelInput.of(batch), batch["action"], batch["noise"], batch["flow_time"]
        )
        torch.testing.assert_close(step.loss(batch)[0], loss[batch["flow_time"] > 0].mean())


def test_parts_of_a_minibatch_give_the_same_gradient(tiny_policy: Callable) -> None:
    weights = []
    for num_parts in (1, 3):
        policy = tiny_policy(horizon=H)
        step = CloningStep(policy, replace(CONFIG, num_parts=num_parts, learning_rate=1e-2))
        torch.manual_seed(0)
        step(observed(policy, torch.rand(9, 4), action=torch.rand(9, H, 2)))
        weights.append(policy.network.action_out_proj.weight.detach())
    torch.testing.assert_close(*weights)


def test_every_length_up_to_the_longest_is_drawn(tiny_policy: Callable) -> None:
    policy = tiny_policy(horizon=H)
    step, lengths = CloningStep(policy, CONFIG), []
    original = step.loss

    def recorded(batch: TensorDict) -> tuple[Tensor, dict[str, Tensor]]:
        lengths.append((batch["flow_time"] == 0).sum(1))
        return original(batch)

    step.loss = recorded  # type: ignore[method-assign]
    step(observed(policy, torch.rand(800, 4), action=torch.zeros(800, H, 2)))
    counts = torch.bincount(torch.cat(lengths), minlength=4)
    assert len(counts) == 4
    assert counts.min() > 150  # 200 expected


def test_without_a_delay_cloning_is_the_plain_one_bit_for_bit(tiny_policy: Callable) -> None:
    losses = []
    for delay in (None, 0):
        policy = tiny_policy(horizon=H)
        torch.manual_seed(0)
        step = CloningStep(policy, replace(CONFIG, real_time_delay=delay))
        losses.append(step(observed(policy, torch.rand(9, 4), action=torch.zeros(9, H, 2))))
    torch.manual_seed(0)
    policy = tiny_policy(horizon=H)
    examples = observed(policy, torch.rand(9, 4), action=torch.zeros(9, H, 2))
    loss = policy.loss(ModelInput.of(examples), examples["action"]).mean()
    assert losses == [loss.item()] * 2


def test_a_chunk_without_a_learned_step_is_refused(tiny_policy: Callable) -> None:
    with pytest.raises(ValueError, match="real_time_delay=4 must be below action_horizon=4"):
        CloningStep(tiny_policy(horizon=H), replace(CONFIG, real_time_delay=4))


def test_bc_records_its_clean_beginnings_and_goes_on_with_them(
    tiny_policy: Callable, demonstrations_file: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, demonstrations=demonstrations_file, gradient_steps=1)
    algorithm = rl.make(config, tiny_policy(horizon=H))
    policy = algorithm.actor.policy
    assert policy.info.real_time_delay == 3
    trained = replace(policy.sampler, real_time=RealTimeConfig(method="trained"))
    policies.save(policy.replace(sampler=trained), tmp_path / "policy")

    loaded = policies.load(tmp_path / "policy")
    assert loaded.info.real_time_delay == 3
    assert loaded.sampler == trained
    # a further cloning has the same beginnings by default
    assert CloningStep(loaded, replace(CONFIG, real_time_delay=None)).config.real_time_delay == 3


def test_trained_prefixes_are_refused_on_a_policy_that_was_not_cloned_so(
    tiny_policy: Callable, tmp_path: Path
) -> None:
    policy = tiny_policy(horizon=H)
    trained = replace(policy.sampler, real_time=RealTimeConfig(method="trained"))
    message = r"real_time\.method='trained' needs a policy that was cloned with clean beginnings"
    with pytest.raises(ValueError, match=message):
        policy.replace(sampler=trained)
    # a checkpoint, whose file asks for it
    policies.save(policy, tmp_path / "policy")
    file = tmp_path / "policy" / "policy.json"
    description = json.loads(file.read_text())
    description["sampler"]["real_time"] = {"method": "trained"}
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        policies.load(tmp_path / "policy")
    # negative control: with the record it is accepted
    description["real_time_delay"] = 2
    file.write_text(json.dumps(description))
    assert policies.load(tmp_path / "policy").info.real_time_delay == 2
