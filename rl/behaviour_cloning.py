"""Behaviour cloning: flow matching on demonstrations. It makes the policy that RL then improves.

As a registered algorithm it is also a control: continuing it for the time that RL took shows what
more cloning would have brought. It learns from no rollout.
Source: Black et al. 2024; the loss is in `policies.policy`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from policies import FlowActor, FlowPolicy, LikelihoodConfig
from rl.algorithm import Algorithm, AlgorithmConfig, Needs
from rl.demonstrations import Demonstrations
from rl.registry import register


@dataclass(frozen=True, kw_only=True)
class BCConfig(AlgorithmConfig):
    """Flow matching on demonstrations."""

    demonstrations: Path = Path("demonstrations.safetensors")
    """File that `experiments.pretrain` wrote."""
    learning_rate: float = 1e-3
    """AdamW's step size at the start [-]."""
    decay_steps: int = 2000
    """Gradient steps in which the step size falls by a cosine to its final fraction."""
    final_fraction: float = 0.01
    """Step size at the end of the decay, as a share of that at the start [-]."""
    weight_decay: float = 1e-4
    """AdamW's weight decay [-]."""
    minibatch_size: int = 512
    """Chunks per gradient step, drawn with replacement."""
    gradient_steps: int = 100
    """Gradient steps per update."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm [-]."""

    def with_demonstrations(self, file: Path) -> BCConfig:
        return replace(self, demonstrations=file)


class CloningStep:
    """One policy's optimizer for flow matching; shared by all that clones.

    Args:
        policy: Trained in place.
        config: Step sizes.
    """

    def __init__(self, policy: FlowPolicy, config: BCConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.num_steps = 0

    def __call__(self, obs: TensorDictBase, action: Tensor) -> float:
        """Take one gradient step on observations (B) and chunks (B, H, d); return the loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        fraction = min(1.0, self.num_steps / max(1, self.config.decay_steps))
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * fraction)).item())
        final = self.config.final_fraction
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * (final + (1 - final) * cosine)
        loss = self.policy.loss(obs, action).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"flow-matching loss is {loss.item()} after {self.num_steps} steps; check the "
                "demonstrations' scale, or lower learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.num_steps += 1
        return float(loss.detach())


@register("bc", BCConfig)
class BehaviourCloning(Algorithm[BCConfig]):
    """Clones demonstrations, `gradient_steps` at a time."""

    needs = Needs(rollouts=False)

    def __init__(self, config: BCConfig, policy: FlowPolicy) -> None:
        super().__init__(config, FlowActor(policy, LikelihoodConfig()))
        self.chunks = Demonstrations.load(config.demonstrations).chunks(policy.chunk_shape[0])
        self.step = CloningStep(policy, config)
        self.optimizers["policy"] = self.step.optimizer

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        """Take `gradient_steps` steps on the demonstrations; the (empty) rollout is ignored."""
        losses = clone(self.step, self.chunks, self.config.gradient_steps)
        self.num_updates += 1
        return {"flow_loss": losses}

    def extra_state(self) -> dict[str, int]:
        return {"num_steps": self.step.num_steps}

    def load_extra_state(self, state: dict[str, int]) -> None:
        self.step.num_steps = state["num_steps"]


def clone(step: CloningStep, chunks: TensorDict, num_steps: int) -> float:
    """Take steps on random chunks (N) with `action` (N, H, d), and return the mean loss."""
    total = 0.0
    size = min(step.config.minibatch_size, len(chunks))
    for _ in range(num_steps):
        batch = chunks[torch.randint(len(chunks), (size,))]
        total += step(batch, batch["action"])
    return total / num_steps
