"""`options.critic_input.last_action`: critics read the last executed action of the episode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from pitune import envs, policies, rl
from pitune.policies import FlowPolicy, ModelInput, NetworkOptions, SamplerConfig, SteeringConfig
from pitune.policies.network.options.critic_input import CriticInputConfig
from pitune.rl.actor_critic.critic_input import critic_input
from pitune.rl.experience.sub_dict import sub_dict
from settings import changed

ON = NetworkOptions(critic_input=CriticInputConfig(last_action=True))


def policy(options: NetworkOptions = ON, **sampler: Any) -> FlowPolicy:
    torch.manual_seed(0)
    states, actions = torch.rand(50, 4), 2 * torch.rand(50, 2) - 1
    settings = SamplerConfig(**{"flow_steps": 2, "execution_horizon": 2, **sampler})
    return policies.small_policy(
        states, actions, action_horizon=4, sampler=settings, options=options
    )


def gathered(algorithm: rl.Algorithm[Any], num: int = 6) -> TensorDictBase:
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=5)
    torch.manual_seed(0)
    return rl.Rollouts(envs.make(config), algorithm, num, seed=0).collect()


def ppo(made: FlowPolicy) -> rl.PPO:
    torch.manual_seed(0)
    config = changed(rl.PPOConfig(), critic_warmup=0, minibatch_size=8, num_epochs=1)
    return rl.PPO(config, made)


def test_the_last_executed_action_is_recorded_and_reset_with_the_episode() -> None:
    made = policy()
    rollout = gathered(ppo(made))
    last = rollout["model_input", "last_action"]  # (E, T, d)
    after = rollout["next", "model_input", "last_action"]
    assert torch.equal(last[:, 0], torch.zeros(4, 2))
    num_ends = 0
    for env in range(4):
        for t in range(6):
            row = sub_dict(rollout, (env, t))
            executed = int(row["next", "duration"])
            action = row["action"][executed - 1][None, None]
            state = row["next", "model_input", "robot_state"][None]
            expected = made.preprocessor.normalize_action(action, state)[0, 0, :2]
            assert torch.allclose(after[env, t], expected, atol=1e-6)
            if t < 5:
                ended = bool(row["next", "done"])
                num_ends += ended and executed < 2
                assert torch.equal(last[env, t + 1], 0 * expected if ended else after[env, t])
    assert num_ends > 0  # an episode of 5 steps ends in the midst of a chunk


def test_the_critic_reads_it_and_the_policy_does_not() -> None:
    algorithm = ppo(policy())
    rollout = gathered(algorithm).flatten()
    assert algorithm.critic.net[0].in_features == 4 + 2 + 1
    other = rollout.clone()
    other["model_input", "last_action"] += 1
    assert not torch.allclose(algorithm.critic.value(other), algorithm.critic.value(rollout))
    noise = torch.ones(len(rollout), 4, 2)
    acted = [
        algorithm.actor.policy.sample_actions(ModelInput.of(rows), noise)
        for rows in (rollout, other)
    ]
    assert torch.equal(*acted)
    metrics = algorithm.update(gathered(algorithm))
    assert metrics["ratio_deviation"] < 1e-4


def test_without_the_option_nothing_is_recorded() -> None:
    rollout = gathered(ppo(policy(NetworkOptions())))
    assert "last_action" not in sub_dict(rollout, "model_input").keys()


def test_a_delayed_robot_records_what_it_executed() -> None:
    made = policy().with_delay(policies.DelayConfig(steps=1))
    rollout = gathered(ppo(made), 3)
    after = rollout["next", "model_input", "last_action"]
    assert after.shape == (4, 3, 2)
    assert after.abs().max() > 0


def test_demonstrations_have_the_action_before() -> None:
    made = policy()
    demonstrations = rl.Demonstrations(
        obs={"state": torch.rand(5, 4)},
        action=2 * torch.rand(5, 2) - 1,
        episode=torch.tensor([0, 0, 0, 1, 1]),
    )
    rows = demonstrations.preprocess(made).obs["model_input"]
    assert isinstance(rows, TensorDictBase)
    normalized = made.preprocessor.normalize_action(demonstrations.action[:, None])[:, 0]
    expected = torch.stack([torch.zeros(2), *normalized[:2], torch.zeros(2), normalized[3]])
    assert torch.allclose(rows["last_action"], expected, atol=1e-6)


def test_off_policy_critics_read_it() -> None:
    made = policy()
    rollout = gathered(ppo(made)).flatten()
    found = critic_input(made, rollout)
    assert found.shape[-1] == made.critic_state_dim == 6
    assert torch.equal(found[:, 4:], rollout["model_input", "last_action"].clamp(-5, 5))


def test_rows_without_it_and_a_noise_actor_are_refused() -> None:
    made = policy()
    inputs = made.model_input({"state": torch.rand(3, 4)})
    message = r"options\.critic_input\.last_action=True, but the rows have no last_action; take r"
    with pytest.raises(ValueError, match=message):
        made.critic_input(inputs, None)
    assert made.sample_actions(inputs).shape == (3, 2, 2)  # deployed without critics
    with pytest.raises(
        ValueError, match=r"a noise actor reads the critics' input, and a robot's o"
    ):
        made.with_noise_source(SteeringConfig())
