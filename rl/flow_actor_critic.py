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

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn

from policies import FlowActor, FlowPolicy, LikelihoodConfig
from policies.ode import integrate
from policies.pi0 import Context
from rl.demonstrations import Demonstrations
from rl.off_policy import OffPolicy, OffPolicyConfig, means
from rl.reference import frozen_copy
from rl.replay import Replay
from rl.transitions import normalised_chunk, transitions

LARGEST_STATE = 5.0
"""Critics and noise models read states cut here [normalised]. A dimension that hardly moved in a
few demonstrations is 80 where it does move, and its gradients keep Adam from fitting the rest."""

Perturbation = Callable[[Tensor], Tensor]
"""From what a critic reads (N, D) to noise on the executed actions (N, h * d) [normalised]."""


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
    same noise, mean over executed entries [1 / normalised action squared]. It bounds how far the
    policy follows critics that are wrong; 0 lets go, and saves a copy of what is trained."""

    def with_demonstrations(self, file: Path) -> ActorCriticConfig:
        """Return the same settings with this file of demonstrations."""
        return replace(self, off_policy=replace(self.off_policy, demonstrations=file))

    def __post_init__(self) -> None:
        if self.actor_every < 1:
            raise ValueError(f"actor_every={self.actor_every} must be at least 1")
        if self.anchor_coefficient < 0:
            raise ValueError(f"anchor_coefficient={self.anchor_coefficient} must be at least 0")


class ExploringActor(FlowActor):
    """Acts as deployed, and in `ExplorationType.RANDOM` adds noise to the finished chunk.

    Args:
        policy: The flow policy.
    """

    perturb: Perturbation | None = None
    """The noise; None for that of the flow's starting points alone."""

    def __init__(self, policy: FlowPolicy) -> None:
        super().__init__(policy, LikelihoodConfig())
        self.out_keys = ["action"]

    @torch.no_grad()
    def forward(self, td: TensorDictBase) -> TensorDictBase:
        policy = self.policy
        if interaction_type() == InteractionType.DETERMINISTIC or self.perturb is None:
            return td.set("action", policy.sample_actions(td, td.get("noise", None)))
        context = policy.encode(td)
        chunk = decide(policy, context, policy.draw_noise(len(td)))
        chunk = chunk + self.perturb(read(policy, td, context))
        shape = (policy.sampler.execution_horizon, policy.preprocessor.action_dim)
        return td.set("action", policy.executed(chunk.unflatten(-1, shape), td))


def read(policy: FlowPolicy, obs: TensorDictBase, context: Context | None = None) -> Tensor:
    """Return what critics read of observations (N, D); no gradient reaches the encoder.

    The state, within `LARGEST_STATE`, and the pooled features where the policy sees more than
    the state; these are encoded here where no context is passed.
    """
    state = policy.preprocessor.normalize_state(obs["state"].to(policy.device))
    state = state.clamp(-LARGEST_STATE, LARGEST_STATE)
    if not policy.feature_dim:
        return state
    context = policy.encode(obs) if context is None else context
    return torch.cat([state, context.features.detach().float()], dim=-1)


def decide(policy: FlowPolicy, context: Context, noise: Tensor) -> Tensor:
    """Return the executed actions (N, h * d) [normalised] of noise (N, H, A), with gradients."""
    point = integrate(policy.field(context), noise, policy.grid, policy.sampler.solver)
    executed = point[:, : policy.sampler.execution_horizon, : policy.preprocessor.action_dim]
    return executed.flatten(1)


class FlowActorCritic:
    """Critics, memory and the policy's optimizer.

    Args:
        policy: Trained in place.
        config: Settings.
    """

    def __init__(self, policy: FlowPolicy, config: ActorCriticConfig) -> None:
        self.policy, self.config = policy, config
        self.chunk_dim = policy.sampler.execution_horizon * policy.preprocessor.action_dim
        self.read_dim = policy.preprocessor.model_state_dim + policy.feature_dim
        self.off_policy = OffPolicy(
            config.off_policy, self.read_dim + self.chunk_dim, policy.device
        )
        learning = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=config.actor_learning_rate)
        self.num_rounds = 0
        self.anchor = frozen_copy(policy) if config.anchor_coefficient else None
        self.cloned: TensorDict | None = None
        settings = config.off_policy
        if settings.offline_share or config.cloning_coefficient:
            demonstrations = Demonstrations.load(settings.demonstrations)
            self.cloned = demonstrations.chunks(policy.chunk_shape[0]).to(policy.device)
            if settings.offline_share:
                rows = self.demonstration_rows(demonstrations)
                self.off_policy.demonstrations = Replay(len(rows), policy.device)
                self.off_policy.demonstrations.push(rows)

    def networks(self) -> dict[str, nn.Module]:
        """Return what a checkpoint must hold besides the policy."""
        return {"critic": self.off_policy.critic, "target_critic": self.off_policy.target}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers of critics and policy."""
        return {"critic": self.off_policy.optimizer, "actor": self.optimizer}

    def push(self, rollout: TensorDictBase) -> None:
        """Store a rollout (E, T)."""
        keys = self.policy.obs_keys
        before = {"obs": rollout.select(*keys), "chunk": normalised_chunk(self.policy, rollout)}
        after = {"obs": rollout["next"].select(*keys)}
        self.off_policy.replay.push(transitions(rollout, before, after))

    def demonstration_rows(self, demonstrations: Demonstrations) -> TensorDict:
        """Return demonstrations as rows (N) like those of `push`."""
        keys = self.policy.obs_keys
        rows = demonstrations.transitions(self.policy.sampler.execution_horizon)
        rows = rows.to(self.policy.device)
        after = TensorDict(
            {"obs": rows["next"].select(*keys), "elapsed": rows["next", "elapsed"]}, [len(rows)]
        )
        booked = rows.exclude("action", "next", "task_id", *keys)
        booked["obs"], booked["next"] = rows.select(*keys), after
        return booked.set("chunk", normalised_chunk(self.policy, rows))

    def learn(self, rounds: int, train_actor: bool = True) -> dict[str, float]:
        """Take rounds of gradient steps and return the means of their metrics."""
        history = []
        for _ in range(rounds):
            self.num_rounds += 1
            batch = self.off_policy.sample()
            metrics = self.critic_step(batch)
            if train_actor and self.num_rounds % self.config.actor_every == 0:
                metrics |= self.actor_step(batch)
            history.append(metrics)
        return means(history)

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a temporal-difference step on the critics and return its metrics."""
        policy = self.policy
        with torch.no_grad():
            seen = read(policy, batch["obs"])
            following = policy.encode(batch["next", "obs"])
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
        context = policy.encode(batch["obs"])
        noise = policy.draw_noise(len(batch))
        chunk = decide(policy, context, noise)
        seen = read(policy, batch["obs"], context)
        value = self.off_policy.critic(seen, chunk, self.off_policy.time(batch)).mean(0)
        loss = -value.mean() / value.detach().abs().mean().clamp(min=1e-6)
        metrics = {"policy_value": float(value.detach().mean())}
        if config.cloning_coefficient and self.cloned is not None:
            rows = torch.randint(len(self.cloned), (len(batch),), device=policy.device)
            demonstrated = self.cloned[rows]
            cloning = policy.loss(demonstrated, demonstrated["action"]).mean()
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
        with torch.no_grad():
            pretrained = decide(anchor, anchor.encode(obs), noise)
        return (chunk - pretrained).square().mean()

    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides networks and optimizers."""
        return {"off_policy": self.off_policy.state(), "num_rounds": self.num_rounds}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.off_policy.load_state(state["off_policy"])
        self.num_rounds = state["num_rounds"]
