"""The task as a condition: its numbers, its null in training and guidance, and its refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune import envs, policies, rl
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.policies import FlowPolicy, ModelInput, NetworkOptions
from pitune.policies.finetuning.memory import example_input
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.tokens.conditioning import (
    ConditioningConfig,
    with_tasks,
)
from pitune.policies.preprocessing.model_input import task_numbers
from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.datasets.demonstrations import demonstrations_for

TASKS = ("reach the green goal", "reach the red goal")
TASK = ConditioningConfig(task=True, tasks=TASKS)


def conditioned(policy: FlowPolicy, option: ConditioningConfig = TASK) -> FlowPolicy:
    """Return the policy with the condition, perturbed as if it had been trained."""
    network = network_with_options(policy.network, NetworkOptions(conditioning=option), None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in network.options.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=generator))
    return policy.replace(network=network)


def rows(policy: FlowPolicy, ids: list[int], tasks: tuple[str, ...] = TASKS) -> ModelInput:
    state = torch.rand(1, 4, generator=torch.Generator().manual_seed(0)).expand(len(ids), -1)
    return policy.model_input({"state": state, "task_id": torch.tensor(ids)}, tasks)


@torch.no_grad()
def actions(policy: FlowPolicy, inputs: ModelInput) -> Tensor:
    noise = torch.randn(1, *policy.chunk_shape, generator=torch.Generator().manual_seed(3))
    return policy.sample_actions(inputs, noise.expand(len(inputs), -1, -1))


def test_a_task_is_known_by_its_words_in_any_table(tiny_policy: Callable) -> None:
    policy = conditioned(tiny_policy())
    green, red = actions(policy, rows(policy, [0, 1]))
    assert not torch.allclose(green, red, atol=1e-2)
    other = actions(policy, rows(policy, [0, 1], TASKS[::-1]))  # a table in another order
    assert torch.allclose(other, torch.stack([red, green]), atol=1e-5)
    alone = rows(policy, [0], TASKS[1:])
    assert torch.allclose(actions(policy, alone)[0], red, atol=1e-5)
    assert task_numbers(TASKS, TASKS[::-1]).tolist() == [1, 0]
    # of a robot, by the words of its observation
    raw = {"observation/state": [0.1, 0.2, 0.3, 0.4]}
    noise = torch.zeros(policy.chunk_shape).numpy()
    found = [policies.infer(policy, {**raw, "prompt": words}, noise) for words in TASKS]
    assert abs(found[0] - found[1]).max() > 1e-2
    with pytest.raises(ValueError, match="the observation has no prompt"):
        policies.infer(policy, raw, noise)


def test_guidance_moves_away_from_the_null_of_the_task(tiny_policy: Callable) -> None:
    policy = conditioned(tiny_policy())
    inputs = rows(policy, [0, 1])
    context = policy.encode(inputs)
    x, time = torch.randn(2, 1, *policy.chunk_shape), torch.full((2, 1), 0.5)
    dropped = context._replace(condition=torch.full((2, 1), -1))
    with torch.no_grad():
        with_task, without = (
            policy.network.velocity(each, x, time).velocity for each in (context, dropped)
        )
        sampler = replace(policy.sampler, guidance=GuidanceConfig(scale=1.5))
        guided = policy.replace(sampler=sampler)
        found = guided.field(guided.encode(inputs))(x, time).velocity
    expected = with_task + 1.5 * (with_task - without)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(with_task, without, atol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_null_of_the_task_is_trained_exactly_where_it_is_dropped(
    dropout: float, tiny_policy: Callable
) -> None:
    policy = conditioned(tiny_policy())
    module: Any = policy.network.options["conditioning"]
    null, values = module.nulls["task"].detach().clone(), module.values["task"].detach().clone()
    config = rl.BCConfig(minibatch_size=6, weight_decay=0.0, condition_dropout=dropout)
    torch.manual_seed(0)
    action = torch.rand(6, policy.chunk_shape[0], 2)
    chunks = {"model_input": rows(policy, [0] * 6).tensordict(), "action": action}
    CloningStep(policy, config)(TensorDict(chunks, [6]))
    assert torch.equal(module.nulls["task"], null) == (dropout == 0)
    moved = (module.values["task"] != values).any(1)
    assert moved.tolist() == [True, False]  # only the task of the rows


def test_saving_keeps_the_tasks(tmp_path: Path, tiny_policy: Callable) -> None:
    policy = conditioned(tiny_policy())
    policies.save(policy, tmp_path / "policy")
    again = policies.load(tmp_path / "policy")
    assert again.condition_tasks == TASKS
    inputs = rows(policy, [1])
    assert torch.equal(actions(again, inputs), actions(policy, inputs))


def test_what_has_no_task_is_refused_by_name(tiny_policy: Callable, tmp_path: Path) -> None:
    policy = conditioned(tiny_policy())
    with pytest.raises(ValueError, match=r"\['dance'\] are none of them; play these tasks, or"):
        rows(policy, [0], ("dance",))
    with pytest.raises(ValueError, match="the observations have no task; play these tasks"):
        policy.model_input({"state": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match="the observations have no task_id, but there are 2"):
        policy.model_input({"state": torch.zeros(1, 4)}, TASKS)
    with pytest.raises(ValueError, match=r"task_id=2, but the tasks are"):
        rows(policy, [2])
    plain = ModelInput(state=torch.zeros(1, 4), robot_state=torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"conditioned on the task .* have no task_id; make"):
        policy.encode(plain)
    spec = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=1, num_workers=0)).spec
    rl.check_fit(policy, spec)
    with pytest.raises(ValueError, match=r"'dance'\] are none of them"):
        rl.check_fit(policy, replace(spec, tasks=("dance",)))
    # demonstrations of another task
    demonstrations = rl.Demonstrations(
        obs={"state": torch.zeros(3, 4)},
        action=torch.zeros(3, 2),
        episode=torch.zeros(3, dtype=torch.int64),
        tasks=("dance",),
    )
    demonstrations.save(tmp_path / "demonstrations.safetensors")
    with pytest.raises(ValueError, match=r"'dance'\] are none of them"):
        demonstrations_for(policy, tmp_path / "demonstrations.safetensors")
    assert len(policy.encode(example_input(policy)).cache) > 0  # of the memory table


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tasks=.* without a condition on the task; set"):
        ConditioningConfig(tasks=TASKS)
    with pytest.raises(ValueError, match="has the same words twice"):
        ConditioningConfig(task=True, tasks=("a", "a"))
    sizes: dict[str, Any] = {"state_dim": 4, "action_dim": 2, "action_horizon": 2}
    with pytest.raises(ValueError, match=r"conditioning\.task=True has no tasks; name them"):
        policies.Pi0Config(
            **sizes,
            expert=policies.LAPTOP_EXPERT,
            options=NetworkOptions(conditioning=ConditioningConfig(task=True)),
        )
    for tasks in ((), ("", "reach")):
        with pytest.raises(ValueError, match=r"gym/Box has no words for each of its tasks"):
            with_tasks(ConditioningConfig(task=True), tasks, "gym/Box")
    assert with_tasks(ConditioningConfig(), (), "gym/Box").kinds == ()


@pytest.mark.slow
def test_pretraining_takes_the_tasks_of_its_environment_and_uses_them(tmp_path: Path) -> None:
    """A policy from the state alone, which holds both goals, cannot know which is meant."""
    success = {}
    for name in ("task", "plain"):
        config = PretrainConfig(
            env=envs.EnvConfig(
                id="mock/Reach",
                num_envs=50,
                num_workers=0,
                options=envs.MockOptions(num_tasks=2),
            ),
            num_demonstrations=300,
            gradient_steps=300,
            minibatch_size=128,
            learning_rate=3e-3,
            action_horizon=4,
            sampler=policies.SamplerConfig(flow_steps=4, execution_horizon=2),
            condition_dropout=0.1 if name == "task" else 0.0,
            network_options=NetworkOptions(conditioning=ConditioningConfig(task=name == "task")),
            out=tmp_path / name,
        )
        pretrain(config)
        policy = policies.load(tmp_path / name / "pretrained")
        assert policy.condition_tasks == (TASKS if name == "task" else ())
        env = envs.make(config.env)
        result = rl.evaluate(env, policies.Actor(policy), 100, seed=5)
        success[name] = result.success_rate
    plain, conditioned = success["plain"], success["task"]
    assert plain is not None
    assert conditioned is not None
    assert conditioned > plain + 0.2, success
