"""Filtered behavior cloning: clone the policy's own successes.

It is the simplest algorithm that learns from success, also known as rejection fine-tuning or expert
iteration. It is a control: PPO's gain over it is the benefit of advantages.
Letters: E envs, T chunk decisions, B minibatch rows, H action horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from tensordict import TensorDict, TensorDictBase

from pitune.policies import FlowPolicy, FlowSDEConfig, LikelihoodActor, LikelihoodConfig, ModelInput
from pitune.policies.host_prefixes import on_device
from pitune.policies.recurrence import HISTORY
from pitune.rl import ranks
from pitune.rl.algorithm import Algorithm, AlgorithmConfig, Needs
from pitune.rl.algorithms.bc import BCConfig, CloningStep, clone
from pitune.rl.config import PrefixConfig
from pitune.rl.experience.history import with_history
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.prefixes import plan_prefixes
from pitune.rl.registry import register


@dataclass(frozen=True, kw_only=True)
class FilteredBCConfig(AlgorithmConfig, PrefixConfig):
    """Clone the policy's own successful episodes.

    Example:
        >>> FilteredBCConfig().cloning.learning_rate
        0.0003
    """

    likelihood: LikelihoodConfig = field(default_factory=FlowSDEConfig)
    """Exploration noise of the rollouts."""
    cloning: BCConfig = field(
        default_factory=lambda: BCConfig(learning_rate=3e-4, decay_steps=0, final_fraction=1.0)
    )
    """Step size, minibatch and gradient steps per update. Its demonstrations are not used, and
    weights are not averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cloning.ema_decay:
            raise ValueError(
                f"cloning.ema_decay={self.cloning.ema_decay} does not apply to filtered_bc, which "
                "deploys the weights that it trains; leave it out"
            )
        if self.cloning.status.weight:
            raise ValueError(
                f"cloning.status.weight={self.cloning.status.weight} does not apply to "
                "filtered_bc, whose decisions have no labels of the status; leave it out, or clone "
                "a demonstrations.safetensors (pitune pretrain, bc)"
            )

    @property
    def policy_minibatch(self) -> int:
        return self.cloning.policy_minibatch


@register("filtered_bc", FilteredBCConfig, memory=True)
class FilteredBC(Algorithm[FilteredBCConfig]):
    """Clones the chunks of the rollout's successful episodes.

    Example:
        >>> algorithm = FilteredBC(FilteredBCConfig(), policy)  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    needs = Needs(success_signal=True)
    actor: LikelihoodActor
    decoders = ("flow", "fast")

    def __init__(self, config: FilteredBCConfig, policy: FlowPolicy) -> None:
        super().__init__(config, LikelihoodActor(policy, config.likelihood))
        self.step = CloningStep(policy, replace(config.cloning, ema_decay=0.0))
        self.optimizers["policy"] = self.step.optimizer

    def plan_rollouts(self, num_decisions: int) -> list[str]:
        # each gradient step encodes other pictures, or leaves out other words
        if self.config.cloning.picture_shift or self.config.cloning.condition_dropout:
            return []
        return plan_prefixes(self.actor, num_decisions, self.config)

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # the same number on every rank, so that all or none of them clone
        chunks = ranks.balanced(self.successes(on_device(rollout, self.actor.policy.device)))
        self.num_updates += 1
        metrics = {"cloned_chunks": float(len(chunks))}
        if len(chunks):
            loss = clone(self.step, chunks, self.config.cloning.gradient_steps)
            metrics["flow_loss"] = loss
        return metrics

    def successes(self, rollout: TensorDictBase) -> TensorDictBase:
        """Return the decisions (B) of successful episodes that ended in the rollout (E, T).

        The target of cloning is the whole sampled chunk of H actions.
        """
        # success of each episode at its end, which a broken simulator takes back
        outcome = sub_dict(rollout, "next")
        done = outcome["done"].squeeze(-1)
        success = outcome["success"].squeeze(-1)
        if "invalid" in outcome.keys():
            success = success & ~outcome["invalid"].squeeze(-1)
        good = torch.zeros_like(success)
        succeeds = torch.zeros_like(success[:, 0])  # (E,)
        # backwards, because a success is known only at the end of its episode
        for t in reversed(range(success.shape[1])):
            succeeds = torch.where(done[:, t], success[:, t], succeeds)
            good[:, t] = succeeds

        # their chunks
        rollout = with_history(rollout, self.actor.policy, self.config.cloning.memory_decisions)
        kept: tuple[str, ...] = ("prefix",) if self.actor.keep_prefix else ()
        kept += (HISTORY,) if HISTORY in rollout.keys() else ()
        chosen = sub_dict(rollout.select(*self.actor.in_keys, "chain", *kept), good)
        # (B, H, A) -> (B, H, d)
        action = self.actor.policy.preprocessor.unnormalize_action(
            chosen["chain"][:, -1], ModelInput.of(chosen).robot_state
        )
        entries = {**chosen.exclude("chain"), "action": action}
        return TensorDict(entries, batch_size=[len(chosen)], device=chosen.device)

    def extra_state(self) -> dict[str, int]:
        return {"num_steps": self.step.num_steps}

    def load_extra_state(self, state: dict[str, int]) -> None:
        self.step.num_steps = state["num_steps"]
