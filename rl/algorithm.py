"""The interface of an algorithm: an actor that collects experience, and an update.

Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies import Actor, FlowPolicy, LikelihoodActor
from pitune.policies.policy_config import Decoder
from pitune.ranges import Settings

Progress = Callable[[str, int, int], None]
"""`(work, done, total)`, called in an update that may take minutes."""


def no_progress(work: str, done: int, total: int) -> None:
    """Show nothing, the default where progress may be shown."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig(Settings):
    """Settings of an algorithm. Subclasses give every field a default.

    Example:
        >>> AlgorithmConfig().policy_minibatch
        1
    """

    def with_demonstrations(self, file: Path) -> AlgorithmConfig:
        """Return the settings with this file of demonstrations, if the algorithm uses one."""
        return self

    @property
    def policy_minibatch(self) -> int:
        """Observations in one gradient step on the policy's weights; 1 where these stay frozen."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Requirements of an algorithm on the environment, checked by `Rollouts`.

    Example:
        >>> Needs(group_size=4, success_signal=True).whole_episodes
        False
    """

    rollouts: bool = True
    """Whether the algorithm learns from the environment. Behavior cloning does not."""
    group_size: int = 1
    """Number of neighboring environments with the same start."""
    num_shares: int = 1
    """Number of equal shares of the environments, a divisor of their number."""
    whole_episodes: bool = False
    """Whether every rollout holds the same number of whole episodes from each environment. It is
    the number that fits even if every episode reaches the time limit."""
    success_signal: bool = False
    """Whether the environment must report the success of episodes."""


class Memory(Protocol):
    """Rows that are saved piece by piece, because all of them are many. `Replay` is one.

    Example:
        >>> from pitune.rl.experience.replay import Replay
        >>> memory: Memory = Replay(capacity=100)
        >>> memory.oldest, memory.num_pushed
        (0, 0)
    """

    @property
    def num_pushed(self) -> int:
        """Number of pushed rows, with the overwritten ones."""

    @property
    def oldest(self) -> int:
        """Number of the oldest stored row among all that were pushed."""

    def __len__(self) -> int: ...

    def push(self, rows: TensorDictBase) -> None:
        """Add rows (N). The oldest ones make room."""

    def rows_from(self, first: int) -> dict[str, Tensor]:
        """Return the stored rows from number `first` on, in their order."""

    def writer_state(self) -> dict[str, int]:
        """Return the place of the next row, and the number of pushed ones."""

    def restore(self, writer: dict[str, int], num: int, parts: Iterable[dict[str, Tensor]]) -> None:
        """Replace the memory by the rows of several `rows_from`, oldest first."""

    def state(self) -> dict[str, Any]:
        """Return all rows, as tensors and numbers."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""


ConfigType = TypeVar("ConfigType", bound=AlgorithmConfig)


class Algorithm(ABC, Generic[ConfigType]):
    """Owns the actor, critics, optimizers and memory, and all state that resuming needs.

    Subclasses add every network besides the policy to `networks`, every optimizer to `optimizers`
    and every replay memory to `memories`. They return all other state from `extra_state`.
    Everything else is lost on resuming.

    Args:
        config: Settings.
        actor: The policy behind TorchRL's actor interface.

    Example:
        >>> class Idle(Algorithm[AlgorithmConfig]):
        ...     def update(self, rollout):
        ...         self.num_updates += 1
        ...         return {"decisions": float(rollout.numel())}
        >>> algorithm = Idle(AlgorithmConfig(), Actor(policy))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    needs = Needs()
    decoders: ClassVar[tuple[Decoder, ...]] = ("flow",)
    """How the policies that it can train make their chunks, `SamplerConfig.decoder`."""

    def __init__(self, config: ConfigType, actor: Actor) -> None:
        self.config, self.actor = config, actor
        self.networks: dict[str, nn.Module] = {}
        if isinstance(actor, LikelihoodActor) and actor.likelihood.head is not None:
            self.networks["noise_network"] = actor.likelihood.head
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.memories: dict[str, Memory] = {}
        self.num_updates = 0
        self.on_progress: Progress = no_progress
        """Called in updates that may take minutes, to show their progress."""

    @abstractmethod
    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        """Learn from a rollout (E, T) and return metrics. The rollout is not modified."""

    @property
    def demonstrated_reward(self) -> str | None:
        """Definition of the rewards of demonstrations that are mixed with those of rollouts.

        None if there are none. `Rollouts` compares it with that of the environment.
        """
        return None

    @property
    def demonstrated_fps(self) -> float | None:
        """Frame rate of a dataset that the policy is trained on [Hz], None if it is unknown.

        `Rollouts` compares it with the control rate of the environment.
        """
        return None

    def plan_rollouts(self, num_decisions: int) -> list[str]:
        """Prepare for rollouts of E * T decisions, and return notes for the user.

        `Rollouts` calls this once, before the first rollout.
        """
        return []

    def notes(self) -> list[str]:
        """Return notes on the settings, which a script prints at a run's start."""
        return []

    def deployed_policy(self) -> FlowPolicy:
        """Return the policy to save and deploy."""
        return self.actor.policy

    def training_state(self, *, with_memories: bool = True) -> dict[str, Any]:
        """Return the state for resuming, without the policy's weights, which are saved apart.

        Args:
            with_memories: Whether the rows of `memories` are in it, or are saved apart too.
        """
        state = {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "num_updates": self.num_updates,
            "extra": self.extra_state(),
        }
        if with_memories:
            state["memories"] = {key: memory.state() for key, memory in self.memories.items()}
        return state

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `training_state`. The caller loads the policy's weights.

        Raises:
            ValueError: the state belongs to another algorithm.
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
        for name, memory in self.memories.items():
            if name in state.get("memories", {}):
                memory.load_state(state["memories"][name])
        self.load_extra_state(state["extra"])

    def extra_state(self) -> dict[str, Any]:
        """Return other state than networks and optimizers, as tensors and numbers."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `extra_state`."""
