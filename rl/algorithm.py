"""What an algorithm is: an actor that gathers experience, and an update that learns from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from tensordict import TensorDictBase
from torch import nn

from pitune.policies import Actor, FlowPolicy, LikelihoodActor


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """Settings of an algorithm. Subclasses give every field a default."""

    def with_demonstrations(self, file: Path) -> AlgorithmConfig:
        """Return the same settings with this file of demonstrations, where they read one."""
        return self

    @property
    def policy_minibatch(self) -> int:
        """Observations in one gradient step on the policy's weights."""
        return int(getattr(self, "minibatch_size", 1))


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an algorithm asks of the environment; checked when the two are put together."""

    rollouts: bool = True
    """Whether it learns from the environment at all; behavior cloning does not."""
    group_size: int = 1
    """Neighboring environments that must start alike."""
    num_shares: int = 1
    """Equal shares that the environments are split into; their number is a multiple of it."""
    whole_episodes: bool = False
    """Whether every rollout begins new episodes and each environment plays equally many to their
    end, as many as surely fit in; then it waits."""
    success_signal: bool = False
    """Whether it must be told which episodes succeeded."""


ConfigType = TypeVar("ConfigType", bound=AlgorithmConfig)


class Algorithm(ABC, Generic[ConfigType]):
    """Owns the actor, its critics, optimizers and memory, and all state that resuming needs.

    Subclasses enter every network besides the policy in `networks`, every optimizer in
    `optimizers`, and anything else in `extra_state`: what is not there is lost on resuming.

    Args:
        config: Settings.
        actor: The policy behind TorchRL's actor interface.
    """

    needs = Needs()

    def __init__(self, config: ConfigType, actor: Actor) -> None:
        self.config, self.actor = config, actor
        self.networks: dict[str, nn.Module] = {}
        if isinstance(actor, LikelihoodActor) and actor.likelihood.head is not None:
            self.networks["noise_network"] = actor.likelihood.head
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.num_updates = 0

    @abstractmethod
    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        """Learn from a rollout (E, T) and return metrics. The rollout is not changed."""

    def notes(self) -> list[str]:
        """Return what a user should know of these settings, for a script to print at the start."""
        return []

    def deployed_policy(self) -> FlowPolicy:
        """Return the policy to save and deploy, complete by itself."""
        return self.actor.policy

    def training_state(self) -> dict[str, Any]:
        """Return what resuming needs besides the policy's weights, which are saved apart."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "num_updates": self.num_updates,
            "extra": self.extra_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned; the policy's weights are loaded by the caller.

        Raises:
            ValueError: the state is another algorithm's.
        """
        for kind, own in (("networks", self.networks), ("optimizers", self.optimizers)):
            if state[kind].keys() != own.keys():
                raise ValueError(
                    f"the saved training state has {kind} {sorted(state[kind])}, "
                    f"{type(self).__name__} has {sorted(own)}; resume with the algorithm that saved"
                )
            for name, part in own.items():
                part.load_state_dict(state[kind][name])
        self.num_updates = state["num_updates"]
        self.load_extra_state(state["extra"])

    def extra_state(self) -> dict[str, Any]:
        """Return further state that is neither a network nor an optimizer (tensors, numbers)."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""
