"""DSRL: reinforcement learning of the noise that a frozen flow policy starts from.

The policy's weights never change. A small noise actor chooses the starting noise, and the flow
turns it into a chunk; what was an action chunk is now decided in noise space.

`sac` learns values of noise directly. `noise_aliased` learns values of *actions* by temporal
differences, asking the frozen flow what its noise would do, and distils them into values of noise,
from which the actor learns: many noises that mean one action then share what is known of it.

Letters: E envs, T chunk decisions, B rows, N critics, h executed actions, d robot action dim, W
latent width, D width of the encoded observation.
Source: Wagenmaker et al. 2025. Differs: docs/dsrl.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies import FlowPolicy, SteeredActor, SteeredPolicy, SteeringConfig
from pitune.policies.steering import unpack
from pitune.rl.actor_critic.q_ensemble import QEnsemble, pessimistic
from pitune.rl.actor_critic.td import OffPolicy, OffPolicyConfig, means
from pitune.rl.algorithm import Algorithm, AlgorithmConfig
from pitune.rl.experience.demonstrations import Demonstrations, demonstrations_for
from pitune.rl.experience.replay import Replay
from pitune.rl.experience.transitions import in_parts, next_encoded, normalized_chunk, transitions
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class DSRLConfig(AlgorithmConfig):
    """Learn which noise to feed a frozen policy."""

    variant: Literal["noise_aliased", "sac"] = "noise_aliased"
    """Values of actions, distilled into values of noise; or values of noise directly."""
    steering: SteeringConfig = field(default_factory=SteeringConfig)
    """What of the noise is chosen, within which bound, by how large a network."""
    off_policy: OffPolicyConfig = field(default_factory=OffPolicyConfig)
    """Memory, critics and update-to-data ratio."""
    actor_every: int = 2
    """Rounds per step of the noise actor, its temperature and the distilled critic."""
    actor_learning_rate: float = 3e-4
    """Adam's step size for the noise actor [-]."""
    temperature_learning_rate: float = 3e-4
    """Adam's step size for the entropy's weight [-]."""
    initial_temperature: float = 0.005
    """Weight of the entropy at the start [reward per nat]. Where a sparse reward makes values
    differ by less than 0.1 between noises, a greater one keeps the actor near uniform for long."""
    target_entropy: float = 0.0
    """Entropy that the temperature holds, per entry of the latent [nats, in the latent's units]."""
    entropy_in_target: bool = False
    """Whether the value targets count the entropy of what follows."""
    keep_context: bool = True
    """Noise-aliased: keep each observation's keys and values, so that a frozen prefix is encoded
    once (30 MB per decision at π0's full size in bfloat16: its observation's and the next one's);
    otherwise observations, encoded in each round."""

    def __post_init__(self) -> None:
        for name in ("actor_every", "initial_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.variant == "sac" and self.off_policy.offline_share:
            raise ValueError(
                f"offline_share={self.off_policy.offline_share}: demonstrations have actions but "
                "no noise, which variant='sac' learns from; pass 0 or variant='noise_aliased'"
            )

    def with_demonstrations(self, file: Path) -> DSRLConfig:
        return replace(self, off_policy=replace(self.off_policy, demonstrations=file))


class Temperature(nn.Module):
    """The weight of the entropy, which rises while the entropy is below its target."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        return self.log.exp()


@register(
    "dsrl",
    DSRLConfig,
    variants={"sac": {"variant": "sac"}, "noise_aliased": {"variant": "noise_aliased"}},
    off_policy=True,
)
class DSRL(Algorithm[DSRLConfig]):
    """Soft actor-critic over the starting noise of a frozen flow policy."""

    actor: SteeredActor

    def __init__(self, config: DSRLConfig, policy: FlowPolicy) -> None:
        steered = SteeredPolicy(policy, config.steering)
        self.aliased = config.variant == "noise_aliased"
        super().__init__(config, SteeredActor(steered, self.aliased and config.keep_context))
        self.policy, device = steered, steered.device
        self.action_dim = steered.preprocessor.action_dim
        latent_dim = steered.noise_actor.latent_dim
        chunk_dim = steered.sampler.execution_horizon * self.action_dim
        decided_dim = chunk_dim if self.aliased else latent_dim
        self.off_policy = OffPolicy(config.off_policy, steered.input_dim + decided_dim, device)
        self.temperature = Temperature(config.initial_temperature).to(device)
        self.networks |= {
            "critic": self.off_policy.critic,
            "target_critic": self.off_policy.target,
            "temperature": self.temperature,
        }
        adam = torch.optim.Adam
        self.optimizers = {
            "critic": self.off_policy.optimizer,
            "actor": adam(steered.noise_actor.parameters(), lr=config.actor_learning_rate),
            "temperature": adam(self.temperature.parameters(), lr=config.temperature_learning_rate),
        }
        if self.aliased:
            settings = config.off_policy
            self.noise_critic = QEnsemble(
                steered.input_dim + latent_dim + 1, settings.num_critics, settings.hidden
            ).to(device)
            self.networks["noise_critic"] = self.noise_critic
            self.optimizers["noise_critic"] = adam(
                self.noise_critic.parameters(), lr=settings.critic_learning_rate
            )
        self.num_rounds = 0
        self._demonstrations: Demonstrations | None = None
        if config.off_policy.offline_share:
            self._demonstrations = demonstrations_for(policy, config.off_policy.demonstrations)

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        rollout = rollout.to(self.policy.device)
        if self._demonstrations is not None and self.off_policy.demonstrations is None:
            # not before there is an environment: its tasks are the words of the prompt
            rows = self.demonstration_rows(self._demonstrations)
            self.off_policy.demonstrations = Replay(len(rows), self.policy.device)
            self.off_policy.demonstrations.push(rows)
        self.off_policy.replay.push(self.rows(rollout))
        self.num_updates += 1
        rounds = self.off_policy.rounds_due(rollout.numel())
        history = [self.round() for _ in range(rounds)]
        if self.num_rounds >= self.config.actor_every:
            self.policy.steered.fill_(True)
        metrics = {"replay_size": float(len(self.off_policy.replay)), "rounds": float(rounds)}
        return {**metrics, "steered": float(self.policy.steered), **means(history)}

    def rows(self, rollout: TensorDictBase) -> TensorDictBase:
        """Return what the memory keeps of a rollout (E, T), one row per valid decision (B)."""
        before = {
            "encoded": rollout["encoded"],
            "latent": rollout["latent"],
            "chunk": normalized_chunk(self.policy, rollout),
        }
        after = {"encoded": next_encoded(rollout, rollout["encoded"], self.actor.encode)}
        if self.aliased and not self.config.keep_context:
            obs = self.actor.in_keys
            before["obs"], after["obs"] = rollout.select(*obs), rollout["next"].select(*obs)
        return transitions(rollout, before, after)

    @torch.no_grad()
    def demonstration_rows(self, demonstrations: Demonstrations) -> TensorDictBase:
        """Return demonstrations as rows (N) like those of `rows`; their latents mean nothing."""
        rows = demonstrations.transitions(self.policy.sampler.execution_horizon)
        rows = rows.to(self.policy.device)
        booked = rows.exclude("action", *demonstrations.obs).clone()
        booked["next"] = rows["next"].select("elapsed")
        encoded = in_parts(rows, self.actor.encode)
        following = demonstrations.following(self.policy.sampler.execution_horizon)
        booked["encoded"], booked["next", "encoded"] = encoded, encoded[following]
        if not self.config.keep_context:
            for place, seen in ((booked, rows), (booked["next"], rows["next"])):
                place["obs"] = seen.select(*self.actor.in_keys)
        latent_dim = self.policy.noise_actor.latent_dim
        booked["latent"] = torch.zeros(len(rows), latent_dim, device=self.policy.device)
        return booked.set("chunk", normalized_chunk(self.policy, rows))

    def round(self) -> dict[str, float]:
        """Take one step of the critics, and every `actor_every` one of what learns from them."""
        self.num_rounds += 1
        batch = self.off_policy.sample()
        metrics = self.critic_step(batch)
        if self.num_rounds % self.config.actor_every == 0:
            if self.aliased:
                metrics |= self.distil_step(batch)
            metrics |= self.actor_step(batch)
        return metrics

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a temporal-difference step on the critics and return its metrics."""
        read, next_read = batch["encoded", "input"], batch["next", "encoded", "input"]
        with torch.no_grad():
            latent, log_prob = self.policy.noise_actor.sample(next_read)
            decided = self.chunk_of(batch["next"], latent) if self.aliased else latent
            value = self.off_policy.next_value(batch, next_read, decided)
            if self.config.entropy_in_target:
                value = value - self.temperature() * log_prob
        took = batch["chunk"] if self.aliased else batch["latent"]
        return self.off_policy.critic_step(batch, value, read, took)

    def distil_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a step of the noise critic towards the action critic's value of what noise does."""
        read, time = batch["encoded", "input"], self.off_policy.time(batch)
        with torch.no_grad():
            latent = self.distillation_noise(read)
            target = self.off_policy.value(batch, read, self.chunk_of(batch, latent))
        loss = (self.noise_critic(read, latent, time) - target).square().mean(1).sum()
        self._descend("noise_critic", loss)
        return {"distillation_loss": float(loss.detach())}

    def actor_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a step of the noise actor and of its temperature and return their metrics."""
        read, config = batch["encoded", "input"], self.config
        critic = self.noise_critic if self.aliased else self.off_policy.critic
        latent, log_prob = self.policy.noise_actor.sample(read)
        values = critic(read, latent, self.off_policy.time(batch))
        value = pessimistic(values, config.off_policy.pessimism)
        alpha = self.temperature()
        self._descend("actor", (alpha.detach() * log_prob - value).mean())
        entropy = -log_prob.detach().mean()
        target = config.target_entropy * self.policy.noise_actor.latent_dim
        self._descend("temperature", alpha * (entropy - target))
        bound = self.config.steering.magnitude
        return {
            "steered_value": float(value.detach().mean()),
            "entropy": float(entropy) / self.policy.noise_actor.latent_dim,
            "temperature": float(alpha.detach()),
            "saturation": float((latent.detach().abs() > 0.95 * bound).float().mean()),
        }

    def distillation_noise(self, read: Tensor) -> Tensor:
        """Return latents (B, W): half from the noise actor, half standard normal inside the bound.

        Values are learned where the actor may go, and only there.
        """
        bound = self.config.steering.magnitude
        own, _ = self.policy.noise_actor.sample(read)
        share = 2 * torch.rand_like(own) - 1
        normal = math.sqrt(2) * torch.erfinv(share * math.erf(bound / math.sqrt(2)))
        from_actor = torch.rand(len(own), 1, device=own.device) < 0.5
        return torch.where(from_actor, own, normal)

    def chunk_of(self, rows: TensorDictBase, latent: Tensor) -> Tensor:
        """Return the actions (B, h * d) [normalized] that the frozen flow makes of latents."""
        if self.config.keep_context:
            context = unpack(rows["encoded", "context"])
        else:
            context = self.policy.encode(rows["obs"])
        return self.policy.decode(context, latent)[..., : self.action_dim].flatten(1)

    def extra_state(self) -> dict[str, Any]:
        return {"off_policy": self.off_policy.state(), "num_rounds": self.num_rounds}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.off_policy.load_state(state["off_policy"])
        self.num_rounds = state["num_rounds"]

    def _descend(self, name: str, loss: Tensor) -> None:
        """Take an optimizer's step on a loss; no other network gets a gradient from it.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{name} loss is {loss.item()} after {self.num_rounds} rounds; lower its learning "
                "rate or resume from the last checkpoint"
            )
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()
