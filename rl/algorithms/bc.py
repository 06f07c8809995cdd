"""Behavior cloning: flow matching on demonstrations. It makes the policy that RL then improves.

As a registered algorithm it is also a control: continuing it for the time that RL took shows what
more cloning would have brought. It learns from no rollout.
Source: Black et al. 2024; the loss is in `pitune.policies.policy`.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune.policies import FlowPolicy, LikelihoodActor, LikelihoodConfig
from pitune.policies.finetuning.ema import EMA
from pitune.rl.algorithm import Algorithm, AlgorithmConfig, Needs
from pitune.rl.experience.demonstrations import demonstrations_for
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class BCConfig(AlgorithmConfig):
    """Flow matching on demonstrations."""

    demonstrations: Path = Path("demonstrations.safetensors")
    """File that `pitune.experiments.pretrain` wrote."""
    learning_rate: float | None = None
    """AdamW's greatest step size [-]. This and the next five: 1e-3, 0, 2000, 0.01, 1e-4 and 0 by
    default; openpi's 2.5e-5, 1000, 30000, 0.1, 1e-10 and 0.99 for a policy with a language model.
    """
    warmup_steps: int | None = None
    """Gradient steps in which the step size rises linearly."""
    decay_steps: int | None = None
    """Gradient steps in which the step size then falls by a cosine to its final fraction."""
    final_fraction: float | None = None
    """Step size at the end of the decay, as a share of the greatest [-]."""
    weight_decay: float | None = None
    """AdamW's weight decay [-]."""
    ema_decay: float | None = None
    """Decay of the moving average of the weights that is evaluated and saved; 0 for none [-]."""
    minibatch_size: int = 512
    """Chunks per gradient step, drawn with replacement."""
    gradient_steps: int = 100
    """Gradient steps per update."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm [-]."""

    def resolved(self, policy: FlowPolicy) -> BCConfig:
        """Return the config with the defaults for a policy; see `learning_rate`."""
        small = (1e-3, 0, 2000, 0.01, 1e-4, 0.0)
        pretrained = (2.5e-5, 1000, 30_000, 0.1, 1e-10, 0.99)
        defaults = small if policy.network.vlm is None else pretrained
        if policy.lora is not None:  # as in openpi, adapters are not averaged
            defaults = (*defaults[:-1], 0.0)
        names = (
            "learning_rate",
            "warmup_steps",
            "decay_steps",
            "final_fraction",
            "weight_decay",
            "ema_decay",
        )
        missing = {
            name: value
            for name, value in zip(names, defaults, strict=True)
            if getattr(self, name) is None
        }
        return replace(self, **missing)  # type: ignore[arg-type]

    def step_size(self, step: int) -> float:
        """Return the step size of a gradient step, counted from 0, of a resolved config."""
        peak, warmup = self.learning_rate or 0.0, self.warmup_steps or 0
        if step < warmup:
            return peak * (1 + step) / (1 + warmup)
        fraction = min(1.0, (step - warmup) / max(1, (self.decay_steps or 0) - warmup))
        final = self.final_fraction or 0.0
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fraction)))

    def with_demonstrations(self, file: Path) -> BCConfig:
        return replace(self, demonstrations=file)


class CloningStep:
    """One policy's optimizer for flow matching; shared by all that clones.

    Args:
        policy: Trained in place.
        config: Step sizes.
    """

    def __init__(self, policy: FlowPolicy, config: BCConfig) -> None:
        self.policy, self.config = policy, config.resolved(policy)
        self.parameters = [value for value in policy.parameters() if value.requires_grad]
        betas = (0.9, 0.999) if policy.network.vlm is None else (0.9, 0.95)
        self.optimizer = torch.optim.AdamW(
            self.parameters, betas=betas, weight_decay=self.config.weight_decay or 0.0
        )
        self.ema = EMA(policy, self.config.ema_decay) if self.config.ema_decay else None
        self.num_steps = 0

    def __call__(self, obs: TensorDictBase, action: Tensor) -> float:
        """Take one gradient step on observations (B) and chunks (B, H, d); return the loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.step_size(self.num_steps)
        loss = self.policy.loss(obs, action).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"flow-matching loss is {loss.item()} after {self.num_steps} steps; check the "
                "demonstrations' scale, or lower learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.num_steps += 1
        return float(loss.detach())


@register("bc", BCConfig, reads_demonstrations=True)
class BehaviorCloning(Algorithm[BCConfig]):
    """Clones demonstrations, `gradient_steps` at a time."""

    needs = Needs(rollouts=False)

    def __init__(self, config: BCConfig, policy: FlowPolicy) -> None:
        super().__init__(config, LikelihoodActor(policy, LikelihoodConfig()))
        self.chunks = demonstrations_for(policy, config.demonstrations).chunks(
            policy.chunk_shape[0]
        )
        self.step = CloningStep(policy, config)
        self.optimizers["policy"] = self.step.optimizer

        self._averaged = ExitStack()
        """While it is open, the policy has the averaged weights and the average the raw ones."""

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        """Take `gradient_steps` steps on the demonstrations; the (empty) rollout is ignored."""
        self._averaged.close()
        losses = clone(self.step, self.chunks, self.config.gradient_steps)
        self._show_average()
        self.num_updates += 1
        return {"flow_loss": losses, "learning_rate": self.step.optimizer.param_groups[0]["lr"]}

    def _show_average(self) -> None:
        """Put the average where evaluation and saving see it, if there is one."""
        if self.step.ema is not None:
            self._averaged.enter_context(self.step.ema.swapped())

    def extra_state(self) -> dict[str, Any]:
        ema = {} if self.step.ema is None else self.step.ema.state_dict()
        return {"num_steps": self.step.num_steps, "ema": ema}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.step.num_steps = state["num_steps"]
        if self.step.ema is not None:
            self._averaged.close()
            self.step.ema.load_state_dict(state["ema"])
            self._show_average()


def clone(step: CloningStep, chunks: TensorDict, num_steps: int) -> float:
    """Take steps on random chunks (N) with `action` (N, H, d), and return the mean loss."""
    total = 0.0
    size = min(step.config.minibatch_size, len(chunks))
    for _ in range(num_steps):
        batch = chunks[torch.randint(len(chunks), (size,))]
        total += step(batch, batch["action"])
    return total / num_steps
