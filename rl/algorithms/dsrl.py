"""DSRL: reinforcement learning of the noise that a frozen flow policy starts from.

The policy's weights never change. A small noise actor chooses the starting noise, which the flow
turns into a chunk. The decisions are made in noise space.

`sac` learns values of noise directly. `noise_aliased` learns values of *actions* by temporal
differences, with actions from the frozen flow, and distils them into values of noise for the actor.
All noises that give the same action then share its value.

Letters: B minibatch rows, E envs, T chunk decisions, Q critics, h executed actions, d robot
action dim, W latent width, D width of a critic's input.
Source: Wagenmaker et al. 2025. Differs: docs/algorithms/dsrl.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, ModelInput
from pitune.policies.network.context import unpack
from pitune.rl.actor_critic.q_ensemble import QEnsemble, reduce_ensemble
from pitune.rl.actor_critic.td import OffPolicy, means, regression_loss
from pitune.rl.actor_critic.temperature import Temperature
from pitune.rl.algorithm import Algorithm
from pitune.rl.algorithms.dsrl_actor import NoiseRows, NoiseSourceActor, noise_plan
from pitune.rl.algorithms.dsrl_config import DSRLConfig
from pitune.rl.datasets.demonstrations import demonstrations_for
from pitune.rl.experience.demonstrations import WITHOUT_DELAY, Demonstrations, check_no_delay
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import Loss, Metrics, Summary, gradient_step, to_floats
from pitune.rl.optimizers import adam
from pitune.rl.registry import register


@register(
    "dsrl",
    DSRLConfig,
    variants={"sac": {"variant": "sac"}, "noise_aliased": {"variant": "noise_aliased"}},
    off_policy=True,
    memory=True,
)
class DSRL(Algorithm[DSRLConfig]):
    """Soft actor-critic over the starting noise of a frozen flow policy.

    Example:
        >>> algorithm = DSRL(DSRLConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    actor: NoiseSourceActor

    def __init__(self, config: DSRLConfig, policy: FlowPolicy) -> None:
        # actor
        self.aliased = config.variant == "noise_aliased"
        steering = replace(config.steering, remainder_steps=policy.remainder_steps)
        self.policy = policy.with_noise_source(steering)
        self._demonstrations: Demonstrations | None = None
        if config.off_policy.offline_share:
            if policy.has_memory:
                raise ValueError(
                    f"offline_share={config.off_policy.offline_share} stores demonstrations beside "
                    "decisions, and those hold no memory (options.memory); set "
                    "off_policy.offline_share=0"
                )
            check_no_delay(policy, "offline_share", WITHOUT_DELAY)
            memory = config.off_policy
            self._demonstrations = demonstrations_for(policy, memory.demonstrations, memory.data)
        self.plan = noise_plan(self.policy, config, self._demonstrations)
        self.keep_context = self.plan.encoded
        actor = NoiseSourceActor(self.policy, self.keep_context)
        self.rows = NoiseRows(actor, stores_inputs=self.aliased and not self.keep_context)
        super().__init__(config, actor)
        self.source, device = actor.source, policy.device

        # critics
        self.action_dim = policy.preprocessor.action_dim
        latent_dim, input_dim = self.source.actor.latent_dim, self.source.input_dim
        chunk_dim = policy.num_planned * self.action_dim
        decision_dim = chunk_dim if self.aliased else latent_dim
        self.off_policy = OffPolicy(
            config.off_policy, input_dim + decision_dim, device, self.plan.capacity
        )
        self.temperature = Temperature(config.initial_temperature).to(device)
        self.networks |= {
            "critic": self.off_policy.critic,
            "target_critic": self.off_policy.target,
            "temperature": self.temperature,
        }
        self.memories = {"replay": self.off_policy.replay}

        # optimizers
        self.optimizers = {
            "critic": self.off_policy.optimizer,
            "actor": adam(self.source.actor.parameters(), lr=config.actor_learning_rate),
            "temperature": adam(self.temperature.parameters(), lr=config.temperature_learning_rate),
        }

        # noise critic
        if self.aliased:
            settings = config.off_policy
            shape = input_dim + latent_dim + 1, settings.num_critics, settings.hidden
            self.noise_critic = QEnsemble(*shape, settings.critic_distribution).to(device)
            self.networks["noise_critic"] = self.noise_critic
            self.optimizers["noise_critic"] = adam(
                self.noise_critic.parameters(), lr=settings.critic_learning_rate
            )

        self.num_rounds = 0

    def notes(self) -> list[str]:
        return list(self.plan.notes)

    @property
    def demonstrated_reward(self) -> str | None:
        return None if self._demonstrations is None else self._demonstrations.reward_definition

    @property
    def demonstrated_fps(self) -> float | None:
        return None if self._demonstrations is None else self._demonstrations.fps

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # experience
        rollout = rollout.to(self.policy.device)
        if self._demonstrations is not None and self.off_policy.demonstrations is None:
            self.off_policy.store_demonstrations(self.rows.of_demonstrations(self._demonstrations))
        self.off_policy.push(self.rows.of_rollout(rollout))
        self.num_updates += 1

        rounds = self.off_policy.rounds_due(rollout.numel())
        history = []
        for _ in range(rounds):
            history.append(self.round())
            self.on_progress("learning", len(history), rounds)
        if self.num_rounds >= self.config.actor_every and self.off_policy.informative:
            self.source.steered.fill_(True)
        metrics = {"replay_size": float(len(self.off_policy.replay)), "rounds": float(rounds)}
        metrics["informative"] = float(self.off_policy.informative)
        return {**metrics, "steered": float(self.source.is_steered), **means(history)}

    def round(self) -> dict[str, float]:
        """Take a step of the critics and, every `actor_every` rounds, of the other networks."""
        self.num_rounds += 1
        batch = self.off_policy.sample()
        metrics = self.critic_step(batch)
        if self.num_rounds % self.config.actor_every == 0:
            if self.aliased:
                metrics |= self.distil_step(batch)
            if self.off_policy.informative:
                metrics |= self.actor_step(batch)
        return metrics

    def critic_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a temporal-difference step on the critics and return its metrics."""
        # value of the next decision
        obs, next_obs = batch["critic_input"], batch["next", "critic_input"]
        with torch.no_grad():
            latent, log_prob = self.source.actor.sample(next_obs)
            next_action = self.chunk_of(sub_dict(batch, "next"), latent) if self.aliased else latent
            value = self.off_policy.next_value(batch, next_obs, next_action)
            if self.config.entropy_in_target:
                value = value - self.temperature() * log_prob

        # gradient step
        action = batch["chunk"] if self.aliased else batch["latent"]
        return self.off_policy.critic_step(batch, value, obs, action)

    def distil_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a step of the noise critic towards the action critics' values, and return metrics.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        obs, time = batch["critic_input"], self.off_policy.time(batch)
        with torch.no_grad():
            latent = self.distillation_noise(obs)
            target = self.off_policy.value(batch, obs, self.chunk_of(batch, latent))  # (B,)
        joined = torch.cat([obs, latent, time], dim=-1)  # (B, D + W + 1)
        rows = TensorDict({"input": joined, "target": target}, batch_size=[len(batch)])
        metrics = self._gradient_step(
            "noise_critic", partial(regression_loss, self.noise_critic), rows
        )
        return {"distillation_loss": float(metrics["q_loss"])}

    def actor_step(self, batch: TensorDictBase) -> dict[str, float]:
        """Take a step of the noise actor and of its temperature, and return their metrics.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        # noise actor
        obs, latent_dim = batch["critic_input"], self.source.actor.latent_dim
        noise = torch.randn(len(obs), latent_dim, device=obs.device)
        rows = {"input": obs, "time": self.off_policy.time(batch), "noise": noise}
        metrics = self._gradient_step(
            "actor",
            self.actor_loss,
            TensorDict(rows, batch_size=[len(batch)]),
            lambda found: {"log_prob_mean": found["log_prob"].mean()},
        )
        entropy = -float(metrics.pop("log_prob_mean")) / latent_dim

        # temperature
        log_prob = metrics.pop("log_prob")  # (B,)
        metrics |= self._gradient_step(
            "temperature",
            self.temperature_loss,
            TensorDict({"log_prob": log_prob}, batch_size=[len(batch)]),
        )
        return {**to_floats(metrics), "entropy": entropy}

    def actor_loss(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return the noise actor's loss on rows with `input` (B, D), `time` and `noise` (B, W)."""
        critic = self.noise_critic if self.aliased else self.off_policy.critic
        latent, log_prob = self.source.actor.sample(batch["input"], batch["noise"])
        values = critic(batch["input"], latent, batch["time"])  # (Q, B)
        value = reduce_ensemble(values, self.config.off_policy.pessimism)  # (B,)
        loss = (self.temperature().detach() * log_prob - value).mean()
        bound = 0.95 * self.config.steering.magnitude
        return loss, {
            "steered_value": value.mean(),
            "saturation": (latent.detach().abs() > bound).float().mean(),
            "log_prob": log_prob,
        }

    def temperature_loss(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return the temperature's loss on rows with `log_prob` (B,), and its metrics.

        Its minimum has the entropy at the target.
        """
        target = self.config.target_entropy * self.source.actor.latent_dim
        alpha = self.temperature()
        return alpha * (-batch["log_prob"].mean() - target), {"temperature": alpha}

    def distillation_noise(self, obs: Tensor) -> Tensor:
        """Return latents (B, W), half from the noise actor and half from a truncated normal.

        They cover the range of the actor, and only that.
        """
        # noise actor
        bound = self.config.steering.magnitude
        latent, _ = self.source.actor.sample(obs)

        # standard normal inside the bound
        share = 2 * torch.rand_like(latent) - 1
        normal = math.sqrt(2) * torch.erfinv(share * math.erf(bound / math.sqrt(2)))

        # one of the two per row
        from_actor = torch.rand(len(latent), 1, device=latent.device) < 0.5
        return torch.where(from_actor, latent, normal)

    def chunk_of(self, rows: TensorDictBase, latent: Tensor) -> Tensor:
        """Return the frozen flow's executed chunks (B, h * d) [normalized] for latents (B, W)."""
        if self.keep_context:
            context = unpack(sub_dict(rows, "context"))
        else:
            context = self.policy.encode(ModelInput.of(rows))
        chunk = self.actor.decode(context, latent)[..., : self.action_dim]
        return chunk.flatten(1)  # (B, h, d) -> (B, h * d)

    def extra_state(self) -> dict[str, Any]:
        return {"off_policy": self.off_policy.state(), "num_rounds": self.num_rounds}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.off_policy.load_state(state["off_policy"])
        self.num_rounds = state["num_rounds"]

    def _gradient_step(
        self, name: str, loss: Loss, batch: TensorDictBase, summarize: Summary | None = None
    ) -> Metrics:
        """Take a gradient step of one network on rows (B) and return the metrics."""
        metrics, _ = gradient_step(
            self.optimizers[name],
            loss,
            batch,
            name=name,
            step=f"round {self.num_rounds}",
            num_parts=self.config.off_policy.num_parts,
            summarize=summarize,
        )
        return metrics
