"""`critic_input`: every learner's critics read states cut at the same bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict

from pitune.policies import FlowPolicy, ModelInput, SteeringConfig
from pitune.policies.preprocessing.critic_input import LARGEST_STATE, critic_input
from pitune.rl.actor_critic import critic_input as actor_critic
from pitune.rl.algorithms.dsrl_actor import NoiseSourceActor
from pitune.rl.policy_gradient.value import ValueCritic

FAR = torch.tensor([[3707.0, -80.0, 4.9, 0.0]])
CUT = torch.tensor([[5.0, -5.0, 4.9, 0.0]])


def rows(state: torch.Tensor) -> TensorDict:
    inputs = ModelInput(state=state, robot_state=state).tensordict()
    return TensorDict({"model_input": inputs, "elapsed": torch.zeros(1, 1)}, batch_size=[1])


def test_the_order_is_state_time_features_and_no_gradient_reaches_the_features() -> None:
    features = torch.ones(1, 2, requires_grad=True)
    joined = critic_input(FAR, features, torch.full((1, 1), 0.5))
    assert joined.tolist() == [[5.0, -5.0, pytest.approx(4.9), 0.0, 0.5, 1.0, 1.0]]
    assert not joined.requires_grad
    assert LARGEST_STATE == 5.0


def test_a_far_state_is_cut_for_every_critic_and_for_the_noise_actor(
    tiny_policy: Callable[..., FlowPolicy],
) -> None:
    policy = tiny_policy()
    # value critic of ppo, fpo and epo
    critic = ValueCritic(4)
    assert torch.equal(critic.value(rows(FAR)), critic.value(rows(CUT)))
    inside = torch.tensor([[4.0, -5.0, 4.9, 0.0]])
    assert not torch.equal(critic.value(rows(inside)), critic.value(rows(CUT)))
    # critics and noise model of wsrl and dgn
    assert torch.equal(actor_critic.critic_input(policy, rows(FAR)), CUT)
    # critics and noise actor of dsrl
    actor = NoiseSourceActor(policy.with_noise_source(SteeringConfig()), keep_context=False)
    assert torch.equal(actor.encode(rows(FAR))["critic_input"][:, :4], CUT)
