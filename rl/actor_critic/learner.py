"""An off-policy actor-critic whose actor is the flow policy itself.

The critics judge executed chunks; the actor follows their gradient through its flow steps, from
fresh noise each time, so the policy stays a distribution. The noise that it explores with beyond
that is the caller's: none, Gaussian, or shaped by demonstrations.

What `wsrl` and `dgn` share. Their papers learn with soft actor-critic, whose entropy a flow does
not have: the starting noise takes its place.
Letters: E envs, T chunk decisions, B rows, h executed actions, d robot action dim, H action
horizon, D width of what a critic reads.
Sources: Fujimoto et al. 2018 (TD3), Fujimoto & Gu 2021 (the scale of a cloning term), Ball et al.
2023 (RLPD), Park et al. 2025 (FQL, the distance to a pretrained flow from the same noise).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune.policies import FlowPolicy
from pitune.policies.steering import pack
from pitune.rl.actor_critic.actor import decide, encode, kept_prefix, read
from pitune.rl.actor_critic.td import OffPolicy, OffPolicyConfig, means
from pitune.rl.experience.demonstrations import Demonstrations, demonstrations_for
from pitune.rl.experience.replay import Replay
from pitune.rl.experience.transitions import in_parts, next_encoded, normalized_chunk, transitions
from pitune.rl.policy_gradient.reference import frozen_copy


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig:
    """Critics of chunks, and a flow policy that follows their gradient."""

    off_policy: OffPolicyConfig = field(
        default_factory=lambda: OffPolicyConfig(
            minibatch_size=128, num_critics=10, critic_subset=2, warmup_rounds=1000
        )
    )
    """Memory, critics, warm-up and update-to-data ratio."""
    actor_every: int = 4
    """Rounds per step of the policy."""
    actor_learning_rate: float = 1e-4
    """Adam's step size for the policy [-]."""
    max_grad_norm: float = 1.0
    """The policy's gradients are scaled down to this norm [-]."""
    cloning_coefficient: float = 0.0
    """Weight of flow matching on the demonstrations beside the value, which is scaled to 1 [-]."""
    anchor_coefficient: float = 3.0
    """Weight of the squared distance between what the policy and the pretrained one make of the
    same noise, mean over executed entries [1 / normalized action squared]. It bounds how far the
    policy follows critics that are wrong; 0 lets go, and saves a copy of what is trained."""

    keep_prefix: bool = True
    """Where nothing that encodes pictures and prompt is trained: keep their keys and values, so
    that each is encoded once. At π0's full size in bfloat16 that is 30 MB per decision, 15 for
    its observation and 15 for the next; otherwise pictures are kept and encoded in each round."""

    def with_demonstrations(self, file: Path) -> ActorCriticConfig:
        """Return the same settings with this file of demonstrations."""
        return replace(self, off_policy=replace(self.off_policy, demonstrations=file))

    def __post_init__(self) -> None:
        if self.actor_every < 1:
            raise ValueError(f"actor_every={self.actor_every} must be at least 1")
        if self.anchor_coefficient < 0:
            raise ValueError(f"anchor_coefficient={self.anchor_coefficient} must be at least 0")


class FlowActorCritic:
    """Critics, memory and the policy's optimizer.

    Args:
        policy: Trained in place.
        config: Settings.
        demonstrations: Where the caller reads them too; otherwise they are loaded if needed.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        config: ActorCriticConfig,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        self.policy, self.config = policy, config
        self.chunk_dim = policy.sampler.execution_horizon * policy.preprocessor.action_dim
        self.read_dim = policy.preprocessor.model_state_dim + policy.feature_dim
        self.off_policy = OffPolicy(
            config.off_policy, self.read_dim + self.chunk_dim, policy.device
        )
        learning = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=config.actor_learning_rate)
        self.num_rounds = 0
        self.keep_prefix = config.keep_prefix and policy.prefix_is_frozen
        self.anchor = frozen_copy(policy) if config.anchor_coefficient else None
        needed = config.off_policy.offline_share or config.cloning_coefficient
        if demonstrations is None and needed:
            demonstrations = demonstrations_for(policy, config.off_policy.demonstrations)
        self._demonstrations = demonstrations

    @cached_property
    def cloned(self) -> TensorDict | None:
        """Demonstrated chunks of all H actions (N) for `cloning_coefficient`."""
        return self.demonstrated(self.policy.chunk_shape[0]) if self._demonstrations else None

    @cached_property
    def _demonstrated_prefix(self) -> TensorDict:
        """The prefix of each demonstrated observation (N), encoded once."""
        return self._encode_prefix(self._table.chunks(1))

    @property
    def _table(self) -> Demonstrations:
        if self._demonstrations is None:  # __init__ has loaded them wherever they are asked for
            raise ValueError("there are no demonstrations")
        return self._demonstrations

    def networks(self) -> dict[str, nn.Module]:
        """Return what a checkpoint must hold besides the policy."""
        return {"critic": self.off_policy.critic, "target_critic": self.off_policy.target}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers of critics and policy."""
        return {"critic": self.off_policy.optimizer, "actor": self.optimizer}

    def push(self, rollout: TensorDictBase) -> None:
        """Store a rollout (E, T); the demonstrations too, before the first."""
        memory = self.off_policy
        if memory.config.offline_share and memory.demonstrations is None:
            # not before there is an environment: its tasks are the words of the prompt
            rows = self._demonstration_rows()
            memory.demonstrations = Replay(len(rows), self.policy.device)
            memory.demonstrations.push(rows)
        seen, then = self._kept(rollout), self._kept(rollout["next"])
        if self.keep_prefix:
            seen["prefix"] = rollout["prefix"]
            then["prefix"] = next_encoded(rollout, rollout["prefix"], self._encode_prefix)
        before = {"obs": seen, "chunk": normalized_chunk(self.policy, rollout)}
        memory.replay.push(transitions(rollout, before, {"obs": then}))

    def demonstrated(self, num_steps: int) -> TensorDict:
        """Return what was seen and the next `num_steps` actions at each demonstrated step (N)."""
        rows = self._table.chunks(num_steps).to(self.policy.device)
        seen = self._kept(rows).set("action", rows["action"])
        return seen.set("prefix", self._demonstrated_prefix) if self.keep_prefix else seen

    def _demonstration_rows(self) -> TensorDict:
        """Return the demonstrations as rows (N) like those of a rollout."""
        table, horizon = self._table, self.policy.sampler.execution_horizon
        rows = table.transitions(horizon).to(self.policy.device)
        seen, then = self._kept(rows), self._kept(rows["next"])
        if self.keep_prefix:
            prefix = self._demonstrated_prefix
            seen["prefix"], then["prefix"] = prefix, prefix[table.following(horizon)]
        after = TensorDict({"obs": then, "elapsed": rows["next", "elapsed"]}, [len(rows)])
        booked = rows.exclude("action", "next", *table.obs)
        booked["obs"], booked["next"] = seen, after
        return booked.set("chunk", normalized_chunk(self.policy, rows))

    def _kept(self, rows: TensorDictBase) -> TensorDictBase:
        """Return what a memory keeps of observations, without their prefix."""
        return rows.select("state") if self.keep_prefix else rows.select(*self.policy.obs_keys)

    @torch.no_grad()
    def _encode_prefix(self, rows: TensorDictBase) -> TensorDict:
        """Return the prefixes of observations (N), as a memory keeps them."""
        return in_parts(rows, lambda part: pack(self.policy.encode_prefix(part)))

    def learn(self, rounds: int, train_actor: bool = True) -> dict[str, float]:
        """Take rounds of gradient steps and return the means of their metrics."""
        history = []
        for _ in range(rounds):
            self.num_rounds += 1
            batch = self._sample()
            metrics = self.critic_step(batch)
            if train_actor and self.num_rounds % self.config.actor_every == 0:
                metrics |= self.actor_step(batch)
            history.append(metrics)
        return means(history)

    def _sample(self) -> TensorDictBase:
        """Return rows (B) of the memory; a frozen prefix that was not kept is encoded here."""
        batch = self.off_policy.sample()
        if self.policy.prefix_is_frozen and not self.keep_prefix:
            for seen in (batch["obs"], batch["next", "obs"]):
                seen["prefix"] = self._encode_prefix(seen)
        return batch

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a temporal-difference step on the critics and return its metrics."""
        policy = self.policy
        with torch.no_grad():
            seen = read(policy, batch["obs"])
            following = encode(policy, batch["next", "obs"])
            next_seen = read(policy, batch["next", "obs"], following)
            chunk = decide(policy, following, policy.draw_noise(len(batch)))
            value = self.off_policy.next_value(batch, next_seen, chunk)
        return self.off_policy.critic_step(batch, value, seen, batch["chunk"])

    def actor_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Move the policy up the critics' values of what it does, and return the metrics.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        policy, config = self.policy, self.config
        context = encode(policy, batch["obs"])
        noise = policy.draw_noise(len(batch))
        chunk = decide(policy, context, noise)
        seen = read(policy, batch["obs"], context)
        value = self.off_policy.critic(seen, chunk, self.off_policy.time(batch)).mean(0)
        loss = -value.mean() / value.detach().abs().mean().clamp(min=1e-6)
        metrics = {"policy_value": float(value.detach().mean())}
        if config.cloning_coefficient and self.cloned is not None:
            rows = torch.randint(len(self.cloned), (len(batch),), device=policy.device)
            demonstrated = self.cloned[rows]
            prefix = kept_prefix(demonstrated)
            cloning = policy.loss(demonstrated, demonstrated["action"], prefix=prefix).mean()
            metrics["cloning_loss"] = float(cloning.detach())
            loss = loss + config.cloning_coefficient * cloning
        if self.anchor is not None:
            distance = self._distance(self.anchor, batch["obs"], noise, chunk)
            metrics["anchor_distance"] = float(distance.detach().sqrt())
            loss = loss + config.anchor_coefficient * distance
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the policy's loss is {loss.item()} after {self.num_rounds} rounds; lower "
                "actor_learning_rate, or resume from the last checkpoint"
            )
        parameters = self.optimizer.param_groups[0]["params"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        metrics["grad_norm"] = float(nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        self.optimizer.step()
        return metrics

    def _distance(
        self, anchor: FlowPolicy, obs: TensorDictBase, noise: Tensor, chunk: Tensor
    ) -> Tensor:
        """Return the mean squared distance of chunks from what the anchor makes of their noise."""
        anchor.tasks = self.policy.tasks  # of the environment, which came after the copy
        with torch.no_grad():
            pretrained = decide(anchor, encode(anchor, obs), noise)
        return (chunk - pretrained).square().mean()

    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides networks and optimizers."""
        return {"off_policy": self.off_policy.state(), "num_rounds": self.num_rounds}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.off_policy.load_state(state["off_policy"])
        self.num_rounds = state["num_rounds"]
