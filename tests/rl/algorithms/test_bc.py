"""`bc`: flow matching on demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from observations import observed
from pitune import rl
from pitune.policies import FlowPolicy, ModelInput
from pitune.rl import BCConfig, Demonstrations
from pitune.rl.algorithms.bc import CloningStep, clone
from pitune.rl.datasets.demonstrations import RandomChunks

CONFIG = BCConfig(minibatch_size=32, gradient_steps=10, learning_rate=5e-3, decay_steps=60)
NOTHING = TensorDict(batch_size=(1, 0))


def chunks(policy: FlowPolicy, num: int) -> TensorDict:
    """Return chunks of zeros at random states."""
    return observed(policy, torch.rand(num, 4), action=torch.zeros(num, 2, 2))


def test_cloning_lowers_the_loss(demonstrations_file: Path, tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, demonstrations=demonstrations_file)
    algorithm = rl.make(config, tiny_policy())
    losses = [algorithm.update(NOTHING)["flow_loss"] for _ in range(6)]
    assert losses[-1] < 0.75 * losses[0]


def test_cloning_one_chunk_makes_the_policy_play_it(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    policy = tiny_policy()
    chunk = torch.tensor([[[0.5, -0.5], [0.2, 0.8]]])
    examples = observed(policy, torch.full((1, 4), 0.5), action=chunk)
    config = replace(CONFIG, learning_rate=2e-2, decay_steps=100)
    step = CloningStep(policy, config)
    for _ in range(100):
        step(examples.expand(32))
    inputs = ModelInput.of(examples.expand(64).contiguous())
    assert (policy.sample_actions(inputs) - chunk).abs().mean() < 0.15
    assert (tiny_policy().sample_actions(inputs) - chunk).abs().mean() > 0.4


def test_the_step_size_falls_by_a_cosine(tiny_policy: Callable) -> None:
    """From 1 at the start over the middle, 0.505, to 0.01 after 4 steps, where it stays."""
    config = BCConfig(learning_rate=1.0, decay_steps=4, final_fraction=0.01)
    step = CloningStep(tiny_policy(), config)
    examples = chunks(step.policy, 8)
    rates = []
    for _ in range(6):
        step(examples)
        rates.append(step.optimizer.param_groups[0]["lr"])
    # (1 + cos(pi / 4)) / 2 = 0.85355
    by_hand = [1, 0.01 + 0.99 * 0.85355, 0.505, 0.01 + 0.99 * 0.14645, 0.01, 0.01]
    assert rates == pytest.approx(by_hand, abs=1e-5)


def test_the_step_size_goes_on_where_it_was_after_resuming(
    demonstrations_file: Path, tiny_policy: Callable
) -> None:
    config = replace(CONFIG, demonstrations=demonstrations_file)
    first, second = rl.make(config, tiny_policy()), rl.make(config, tiny_policy())
    first.update(NOTHING)
    second.load_training_state(first.training_state())
    assert isinstance(second, rl.BehaviorCloning)
    assert second.step.num_steps == 10
    second.update(NOTHING)
    assert CONFIG.learning_rate is not None
    assert second.step.optimizer.param_groups[0]["lr"] < 0.95 * CONFIG.learning_rate


def test_a_constant_step_size_is_one_that_ends_where_it_starts(tiny_policy: Callable) -> None:
    config = rl.FilteredBCConfig().cloning
    step = CloningStep(tiny_policy(), config)
    examples = chunks(step.policy, 8)
    for _ in range(3):
        step(examples)
        assert step.optimizer.param_groups[0]["lr"] == pytest.approx(config.learning_rate)


def test_minibatches_are_no_larger_than_the_data(tiny_policy: Callable) -> None:
    sizes = []

    class Recording(CloningStep):
        def __call__(self, chunks: TensorDictBase) -> float:
            sizes.append(len(chunks))
            return 2.0

    examples = chunks(tiny_policy(), 5)
    assert clone(Recording(tiny_policy(), BCConfig(minibatch_size=32)), examples, 3) == 2.0
    clone(Recording(tiny_policy(), BCConfig(minibatch_size=2)), examples, 1)
    assert sizes == [5, 5, 5, 2]


def test_numbers_that_are_not_finite_stop_the_cloning(tiny_policy: Callable) -> None:
    step = CloningStep(tiny_policy(), CONFIG)
    examples = chunks(step.policy, 2)
    step(examples)
    examples["action"][:] = torch.nan
    with pytest.raises(
        FloatingPointError, match="flow-matching loss is nan in step 1; lower its l"
    ):
        step(examples)


def test_the_target_is_the_demonstrated_chunk(
    demonstrations_file: Path, tiny_policy: Callable
) -> None:
    policy = tiny_policy(horizon=3)
    algorithm = rl.make(replace(CONFIG, demonstrations=demonstrations_file), policy)
    expected = Demonstrations.load(demonstrations_file).chunks(3)
    assert isinstance(algorithm, rl.BehaviorCloning)
    assert isinstance(algorithm.chunks, RandomChunks)
    assert torch.equal(algorithm.chunks.chunks["action"], expected["action"])
    assert not algorithm.needs.rollouts


def test_cloning_without_demonstrations_names_the_file(
    tmp_path: Path, tiny_policy: Callable
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no demonstrations at .*missing\.safetensors"):
        rl.make(BCConfig(demonstrations=tmp_path / "missing.safetensors"), tiny_policy())
