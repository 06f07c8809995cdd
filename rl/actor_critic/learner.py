"""An off-policy actor-critic whose actor is the flow policy itself.

The critics estimate the values of executed chunks. The actor follows their gradient through its
flow steps, from fresh noise each time, so the policy stays a distribution. The caller chooses any
further exploration noise: none, Gaussian, or fitted to demonstrations.

`wsrl` and `dgn` share this learner. Their papers use soft actor-critic, but the entropy of a flow
is not available. Here the starting noise provides the exploration.
Letters: N rows, B minibatch rows, E envs, T chunk decisions, H action horizon, h executed actions,
A model action dim, d robot action dim.
Sources: Fujimoto et al. 2018 (TD3), Fujimoto & Gu 2021 (the scale of a cloning term), Ball et al.
2023 (RLPD), Park et al. 2025 (FQL, the distance to a pretrained flow from the same noise).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune.policies import FlowPolicy, ModelInput
from pitune.policies.flow.path import sample_flow_time
from pitune.rl.actor_critic.critic_input import (
    chunk_distance,
    critic_input,
    encode_rows,
    executed_chunk,
    stored_prefix,
)
from pitune.rl.actor_critic.learner_config import ActorCriticConfig
from pitune.rl.actor_critic.memory_plan import learner_plan
from pitune.rl.actor_critic.q_ensemble import mean_size
from pitune.rl.actor_critic.stored_rows import LearnerRows
from pitune.rl.actor_critic.td import OffPolicy, means
from pitune.rl.algorithm import Progress, no_progress
from pitune.rl.datasets.demonstrations import demonstrations_for
from pitune.rl.experience.demonstrations import (
    WITHOUT_DELAY,
    Demonstrations,
    check_no_delay,
    without_padding,
)
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import Metrics, gradient_step, split_rows, to_floats
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.reference import frozen_copy


class FlowActorCritic:
    """Critics, memory and the policy's optimizer.

    Args:
        policy: Trained in place.
        config: Settings.
        demonstrations: Demonstrations, or None to load them from the config's file if needed.

    Example:
        >>> learner = FlowActorCritic(policy, ActorCriticConfig())  # doctest: +SKIP
        >>> learner.push(rollout)  # doctest: +SKIP
        >>> metrics = learner.learn(rounds=100)  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: FlowPolicy,
        config: ActorCriticConfig,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        self.policy, self.config = policy, config
        self.chunk_dim = policy.num_planned * policy.preprocessor.action_dim
        self.input_dim = policy.critic_state_dim + policy.feature_dim
        trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = adam(trained, lr=config.actor_learning_rate)
        self.num_rounds = 0
        self.anchor = frozen_copy(policy) if config.anchor_coefficient else None
        needed = config.off_policy.offline_share or config.cloning_coefficient
        if demonstrations is None and needed:
            memory = config.off_policy
            demonstrations = demonstrations_for(policy, memory.demonstrations, memory.data)

        if config.off_policy.offline_share:
            check_no_delay(policy, "offline_share", WITHOUT_DELAY)
        stored = demonstrations if config.off_policy.offline_share else None
        num_stored = 0 if stored is None else len(stored.action)
        self.plan = learner_plan(policy, config, self.chunk_dim, num_stored)
        self.keep_prefix = self.plan.encoded
        self.rows = LearnerRows(policy, self.keep_prefix, demonstrations)
        self.off_policy = OffPolicy(
            config.off_policy, self.input_dim + self.chunk_dim, policy.device, self.plan.capacity
        )

    @cached_property
    def cloned(self) -> TensorDict | None:
        """Demonstrated chunks (N) of all H actions, for `cloning_coefficient`."""
        if self.rows.demonstrations is None:
            return None
        return self.rows.demonstrated(self.policy.chunk_shape[0])

    @property
    def demonstrated_reward(self) -> str | None:
        """Definition of the rewards of demonstrations in the minibatches, None without any."""
        table = self.rows.demonstrations
        if table is None or not self.config.off_policy.offline_share:
            return None
        return table.reward_definition

    @property
    def demonstrated_fps(self) -> float | None:
        """Frame rate of a dataset with the demonstrations [Hz], None if it is unknown."""
        return None if self.rows.demonstrations is None else self.rows.demonstrations.fps

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks of a checkpoint besides the policy."""
        return {"critic": self.off_policy.critic, "target_critic": self.off_policy.target}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers of critics and policy."""
        return {"critic": self.off_policy.optimizer, "actor": self.optimizer}

    def push(self, rollout: TensorDictBase) -> None:
        """Store a rollout (E, T). Before the first one, store the demonstrations too."""
        memory = self.off_policy
        if memory.config.offline_share and memory.demonstrations is None:
            memory.store_demonstrations(self.rows.of_demonstrations())
        memory.push(self.rows.of_rollout(rollout))

    def learn(
        self, rounds: int, train_actor: bool = True, on_progress: Progress = no_progress
    ) -> dict[str, float]:
        """Take rounds of gradient steps and return the means of their metrics.

        Args:
            rounds: Steps of the critics.
            train_actor: Whether rounds train the policy, if the rewards are informative.
            on_progress: Called after each round.
        """
        train_actor = train_actor and self.off_policy.informative
        history = []
        for _ in range(rounds):
            self.num_rounds += 1
            batch = self._sample()
            metrics = self.critic_step(batch)
            if train_actor and self.num_rounds % self.config.actor_every == 0:
                metrics |= self.actor_step(batch)
            history.append(metrics)
            on_progress("learning", len(history), rounds)
        return means(history)

    def _sample(self) -> TensorDictBase:
        """Return rows (B) of the memory. A frozen prefix that is not stored is encoded here."""
        batch = self.off_policy.sample()
        if self.policy.prefix_is_frozen and not self.keep_prefix:
            for obs in (sub_dict(batch, "obs"), sub_dict(batch, ("next", "obs"))):
                obs["prefix"] = self.rows.encode_prefix(obs)
        return batch

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a temporal-difference step on the critics and return its metrics."""
        policy = self.policy
        with torch.no_grad():
            obs = critic_input(policy, sub_dict(batch, "obs"))
            # value of the next observation, with the policy's own next chunk
            next_rows = sub_dict(batch, ("next", "obs"))
            next_context = encode_rows(policy, next_rows)
            next_obs = critic_input(policy, next_rows, next_context)
            next_chunk = executed_chunk(policy, next_context, policy.draw_noise(len(batch)))
            value = self.off_policy.next_value(batch, next_obs, next_chunk)
        return self.off_policy.critic_step(batch, value, obs, batch["chunk"])

    def actor_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take one gradient step of the policy towards higher values, and return the metrics.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        config, num_parts = self.config, self.config.off_policy.num_parts
        # random draws and value scale of the whole minibatch
        batch = self._with_draws(batch)
        scale = self._value_scale(batch, num_parts) if num_parts > 1 else None

        metrics, grad_norm = gradient_step(
            self.optimizer,
            lambda part: self.actor_loss(part, scale),
            batch,
            name="actor",
            step=f"round {self.num_rounds}",
            max_grad_norm=config.max_grad_norm,
            num_parts=num_parts,
        )
        if "anchor_distance" in metrics:
            metrics["anchor_distance"] = metrics["anchor_distance"].sqrt()
        return {**to_floats(metrics), "grad_norm": grad_norm}

    def actor_loss(
        self, batch: TensorDictBase, value_scale: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """Return the policy's loss on rows (B) with random draws, and its metrics.

        Args:
            batch: Rows with `noise` (B, H, A), and `cloned` demonstrations (B) if they are used.
            value_scale: Mean absolute value of the whole minibatch. The default is that of `batch`.
        """
        policy, config = self.policy, self.config

        # value
        value, chunk = self._value(batch)
        scale = mean_size(value) if value_scale is None else value_scale
        loss = -value.mean() / scale
        metrics = {"policy_value": value.mean()}

        # cloning of demonstrations
        if "cloned" in batch.keys():
            rows = sub_dict(batch, "cloned")
            cloning = policy.loss(
                ModelInput.of(rows),
                rows["action"],
                rows["noise"],
                rows["flow_time"],
                stored_prefix(rows),
            )
            cloning = without_padding(cloning, rows).mean()
            metrics["cloning_loss"] = cloning
            loss = loss + config.cloning_coefficient * cloning

        # distance to the pretrained policy
        if self.anchor is not None:
            distance = chunk_distance(self.anchor, sub_dict(batch, "obs"), batch["noise"], chunk)
            metrics["anchor_distance"] = distance
            loss = loss + config.anchor_coefficient * distance
        return loss, metrics

    def _with_draws(self, batch: TensorDictBase) -> TensorDictBase:
        """Return rows (B) with all random draws that `actor_loss` needs."""
        policy, num = self.policy, len(batch)
        rows = batch.select("obs", "elapsed").set("noise", policy.draw_noise(num))
        if self.config.cloning_coefficient and self.cloned is not None:
            cloned_rows = torch.randint(len(self.cloned), (num,), device=policy.device)
            cloned = sub_dict(self.cloned, cloned_rows)
            cloned["noise"] = policy.draw_noise(num)
            cloned["flow_time"] = sample_flow_time(num, policy.device)
            rows["cloned"] = cloned
        return rows

    def _value(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the critics' mean values (B) of the policy's chunks, and the chunks (B, h * d)."""
        rows = sub_dict(batch, "obs")
        context = encode_rows(self.policy, rows)
        chunk = executed_chunk(self.policy, context, batch["noise"])
        obs = critic_input(self.policy, rows, context)
        value = self.off_policy.critic(obs, chunk, self.off_policy.time(batch)).mean(0)
        return value, chunk

    @torch.no_grad()
    def _value_scale(self, batch: TensorDictBase, num_parts: int) -> Tensor:
        """Return the mean absolute value of a whole minibatch (B), computed in parts."""
        parts = split_rows(batch, num_parts)
        return mean_size(torch.cat([self._value(part)[0] for part in parts]))

    def state(self) -> dict[str, Any]:
        """Return the state for resuming, without networks and optimizers."""
        return {"off_policy": self.off_policy.state(), "num_rounds": self.num_rounds}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""
        self.off_policy.load_state(state["off_policy"])
        self.num_rounds = state["num_rounds"]
