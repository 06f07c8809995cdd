"""Behavior cloning: flow matching on demonstrations, which gives the policy that RL improves.

As a registered algorithm it is also a control. Cloning for the time that RL takes measures the
benefit of more cloning. It uses no rollout. The loss is in `pitune.policies.policy`.
Letters: N rows, B minibatch rows, M scored flow steps (or loss draws), H action horizon, A model
action dim, d robot action dim.
Source: Black et al. 2024.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor, ModelInput, likelihood_config
from pitune.policies.conditions import check_dropout, with_drops
from pitune.policies.finetuning.ema import EMA
from pitune.policies.flow.immiscible import assigned_noise
from pitune.policies.flow.path import sample_flow_time
from pitune.policies.flow.real_time import clean_prefix
from pitune.policies.host_prefixes import fetched, on_device
from pitune.policies.network.context import stored_prefix
from pitune.policies.preprocessing.images import check_shift, shift_pictures
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.policies.recurrence import with_recalled_memory
from pitune.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveOrInfinite,
    Range,
    Share,
)
from pitune.rl.algorithm import Algorithm, AlgorithmConfig, Needs
from pitune.rl.cloning.config import LanguageLossConfig, StatusLossConfig
from pitune.rl.cloning.loop import clone
from pitune.rl.cloning.losses import AuxiliaryLosses
from pitune.rl.config import CloningDrawsConfig, MinibatchConfig
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.demonstrations import chunk_source
from pitune.rl.experience.demonstrations import without_padding
from pitune.rl.gradient_step import Metrics, gradient_step
from pitune.rl.optimizers import adamw
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class BCConfig(AlgorithmConfig, MinibatchConfig, CloningDrawsConfig):
    """Flow matching on demonstrations. The chunks of a minibatch are drawn with replacement.

    Example:
        >>> BCConfig(learning_rate=1e-3, warmup_steps=3).step_size(1)
        0.0005
    """

    demonstrations: Path = Path("demonstrations.safetensors")
    """File from `pitune.experiments.pretrain`, or a LeRobot dataset: its folder, or its name on
    the hub."""
    data: DataConfig = field(default_factory=DataConfig)
    """Features of a LeRobot dataset, and the memory for it."""
    learning_rate: PositiveFloat | None = None
    """AdamW's greatest step size [-]. The defaults of this and the next five fields are 1e-3, 0,
    2000, 0.01, 1e-4 and 0. A policy with a language model has openpi's: 2.5e-5, 1000, 30000, 0.1,
    1e-10 and 0.99."""
    warmup_steps: NonNegativeInt | None = None
    """Gradient steps of the linear warm-up of the step size."""
    decay_steps: NonNegativeInt | None = None
    """Gradient steps, with the warm-up, until the cosine decay of the step size ends."""
    final_fraction: Share | None = None
    """Step size after the decay, as a share of the greatest [-]."""
    weight_decay: NonNegativeFloat | None = None
    """AdamW's weight decay [-]."""
    ema_decay: Annotated[float, Range(low=0, high=1, high_open=True)] | None = None
    """Decay of the moving average of the weights for evaluation and saving, or 0 for none [-]."""
    gradient_steps: PositiveInt = 100
    """Gradient steps per update."""
    max_grad_norm: PositiveOrInfinite = 1.0
    """Gradients are scaled down to this norm [-]."""
    real_time_delay: NonNegativeInt | None = None
    """Longest clean beginning of a chunk [control steps], for real-time chunking with
    method="trained". Each chunk's is drawn from 0 to this. The policy's own by default."""
    language: LanguageLossConfig = field(default_factory=LanguageLossConfig)
    """Losses of the language head: FAST tokens and text."""
    status: StatusLossConfig = field(default_factory=StatusLossConfig)
    """Loss of the task-status head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps and self.decay_steps and self.warmup_steps > self.decay_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} must be at most decay_steps={self.decay_steps}, "
                "which counts the warm-up; 0 decay steps are none"
            )

    def with_defaults(self, policy: FlowPolicy) -> BCConfig:
        """Return the config with the defaults of a policy filled in. See `learning_rate`."""
        small = (1e-3, 0, 2000, 0.01, 1e-4, 0.0)
        pretrained = (2.5e-5, 1000, 30_000, 0.1, 1e-10, 0.99)
        defaults = small if policy.network.vlm is None else pretrained
        if policy.info.lora is not None:  # openpi has no moving average of adapters
            defaults = (*defaults[:-1], 0.0)
        optimizer = "learning_rate warmup_steps decay_steps final_fraction weight_decay ema_decay"

        # fields that are not set
        values: dict[str, Any] = dict(zip(optimizer.split(), defaults, strict=True))
        values["real_time_delay"] = policy.info.real_time_delay
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def step_size(self, step: int) -> float:
        """Return the step size of a gradient step (from 0) of a config with defaults."""
        peak, warmup = self.learning_rate or 0.0, self.warmup_steps or 0
        if step < warmup:
            return peak * (1 + step) / (1 + warmup)
        fraction = min(1.0, (step - warmup) / max(1, (self.decay_steps or 0) - warmup))
        final = self.final_fraction or 0.0
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fraction)))

    @property
    def policy_minibatch(self) -> int:
        return self.minibatch_size

    def with_demonstrations(self, file: Path) -> BCConfig:
        return replace(self, demonstrations=file)


class CloningStep:
    """The optimizer of flow matching, shared by all algorithms with cloning.

    Args:
        policy: Trained in place.
        config: Step sizes.

    Raises:
        ValueError: `real_time_delay` is not below the action horizon, there are several draws
            for each chunk too, or the policy acts by tokens and the loss leaves them out.

    Example:
        >>> step = CloningStep(policy, BCConfig())  # doctest: +SKIP
        >>> chunks = demonstrations.preprocess(policy).chunks(8)  # doctest: +SKIP
        >>> loss = step(chunks[:32])  # doctest: +SKIP
    """

    def __init__(self, policy: FlowPolicy, config: BCConfig) -> None:
        self.policy, self.config = policy, config.with_defaults(policy)
        horizon = policy.chunk_shape[0]
        delay, draws = self.config.real_time_delay or 0, config.draws_per_chunk
        if delay >= horizon:
            given = f"real_time_delay={delay} must be below action_horizon={horizon}"
            raise ValueError(f"{given}, because clean actions alone have nothing to learn")
        if delay and draws > 1:
            given = f"draws_per_chunk={draws} cannot be combined with real_time_delay={delay}"
            raise ValueError(f"{given}; leave one of them out")
        if policy.sampler.decoder == "fast" and not config.language.fast_weight:
            raise ValueError(
                "language.fast_weight=0 does not train the tokens that this policy acts by "
                "(sampler.decoder='fast'); set language.fast_weight=1, or take decoder='flow'"
            )
        check_shift(policy.preprocessor.config.pictures, config.picture_shift)
        check_dropout(policy.network, config.condition_dropout)
        self.parameters = [value for value in policy.parameters() if value.requires_grad]
        betas = (0.9, 0.999) if policy.network.vlm is None else (0.9, 0.95)
        self.optimizer = adamw(
            self.parameters, betas=betas, weight_decay=self.config.weight_decay or 0.0
        )
        self.ema = EMA(policy, self.config.ema_decay) if self.config.ema_decay else None
        self.auxiliary = AuxiliaryLosses(policy, config.language, config.status)
        self.num_steps = 0

    def __call__(self, chunks: TensorDictBase) -> float:
        """Take one gradient step on observations with `action` (B, H, d) and return the loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        config, num, policy = self.config, len(chunks), self.policy
        for group in self.optimizer.param_groups:
            group["lr"] = config.step_size(self.num_steps)

        # random draws of the whole minibatch
        batch = fetched(on_device(chunks, self.policy.device))
        draws = config.draws_per_chunk
        noise = policy.draw_noise(num * draws)
        flow_time = sample_flow_time(num * draws, policy.device)
        if draws > 1:  # (B, M, H, A) and (B, M)
            noise, flow_time = noise.unflatten(0, (num, draws)), flow_time.view(num, draws)
        if config.immiscible_noise:
            noise = assigned_noise(policy.normalized_chunk(batch), noise)
        batch["noise"], batch["flow_time"] = noise, flow_time
        batch = with_drops(policy.network, policy.sampler.guidance, batch, config.condition_dropout)
        if config.real_time_delay:
            delay = torch.randint(config.real_time_delay + 1, (num,), device=policy.device)
            batch.update(clean_prefix(batch["flow_time"], delay, policy.chunk_shape[0]))
        if config.picture_shift:
            images = batch[MODEL_INPUT, "images"]
            batch[MODEL_INPUT, "images"] = shift_pictures(images, config.picture_shift)
        batch.update(self.auxiliary.draws(batch))

        metrics, _ = gradient_step(
            self.optimizer,
            self.loss,
            batch,
            name="flow-matching",
            step=f"step {self.num_steps}",
            max_grad_norm=config.max_grad_norm,
            num_parts=config.num_parts,
        )
        if self.ema is not None:
            self.ema.update()
        self.num_steps += 1
        self.auxiliary.count(metrics)
        return float(metrics["flow_loss"])

    def loss(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return the loss of chunks (B) with the random draws of a minibatch, and its metrics.

        Args:
            batch: Chunks with `noise` (B, H, A) and `flow_time` (B), or (B, H) with a weight of
                each step, `step_weight` (B, H). Or noise (B, M, H, A) and `flow_time` (B, M) with M
                draws for each chunk.
        """
        noise, flow_time = batch["noise"], batch["flow_time"]
        batch = with_recalled_memory(self.policy, batch, self.config.memory_decisions - 1)
        inputs, prefix = ModelInput.of(batch), stored_prefix(batch)
        if prefix is None and self.auxiliary.language.is_on:  # shared by all losses
            prefix = self.policy.encode_prefix(inputs, with_null=False)
        loss, hidden = self.policy.loss_and_hidden(
            inputs, batch["action"], noise, flow_time, prefix
        )
        loss = without_padding(loss, batch)  # (B, H, A) or (B, M, H, A)
        if "step_weight" in batch.keys():
            loss = loss * batch["step_weight"][..., None]
        mean = self.auxiliary.weighted(loss, batch).mean()
        total, metrics = self.auxiliary(batch, mean, prefix, hidden)
        return total, {"flow_loss": mean, **metrics}


@register("bc", BCConfig, reads_demonstrations=True, memory=True)
class BehaviorCloning(Algorithm[BCConfig]):
    """Clones demonstrations, `gradient_steps` at a time.

    Example:
        >>> algorithm = BehaviorCloning(BCConfig(), policy)  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    needs = Needs(rollouts=False)
    decoders = ("flow", "fast")

    def __init__(self, config: BCConfig, policy: FlowPolicy) -> None:
        delay = config.real_time_delay
        if delay is not None:  # the checkpoint records it
            policy = policy.replace(info=replace(policy.info, real_time_delay=delay))
        likelihood = {"flow": "flow_sde", "fast": "fast"}[policy.sampler.decoder]
        super().__init__(config, LikelihoodActor(policy, likelihood_config(likelihood)))
        source, burn_in = config.demonstrations, config.memory_burn_in
        self.chunks = chunk_source(policy, source, config.data, burn_in)
        self.step = CloningStep(policy, config)
        self.step.auxiliary.check_entries(self.chunks.entries)
        self.optimizers["policy"] = self.step.optimizer
        self._averaged = ExitStack()
        """While it is open, the policy has the averaged weights and the EMA the raw ones."""

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        """Take `gradient_steps` steps on the demonstrations; the (empty) rollout is ignored."""
        self._averaged.close()
        losses = clone(self.step, self.chunks, self.config.gradient_steps)
        self._show_average()
        self.num_updates += 1
        metrics = {"flow_loss": losses, **self.step.auxiliary.means()}
        return {**metrics, "learning_rate": self.step.optimizer.param_groups[0]["lr"]}

    def _show_average(self) -> None:
        """Swap the averaged weights, if any, into the policy for evaluation and saving."""
        if self.step.ema is not None:
            self._averaged.enter_context(self.step.ema.swapped())

    @property
    def demonstrated_fps(self) -> float | None:
        return self.chunks.fps

    def extra_state(self) -> dict[str, Any]:
        ema = {} if self.step.ema is None else self.step.ema.state_dict()
        return {"num_steps": self.step.num_steps, "ema": ema, "chunks": self.chunks.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.step.num_steps = state["num_steps"]
        self.chunks.load_state(state.get("chunks", {}))
        if self.step.ema is not None:
            self._averaged.close()
            self.step.ema.load_state_dict(state["ema"])
            self._show_average()
