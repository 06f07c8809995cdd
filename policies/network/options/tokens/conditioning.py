"""Conditions of the velocity that training drops at times: what guidance needs.

Each kind of condition has a learned value and a learned null, which stands for a dropped one:

- `advantage`: a vector for a negative and one for a positive advantage, added to the action tokens
  (RECAP).
- `return_bins`: a vector for each bin of the return in [-1, 0], added in the same way.
- `task`: a vector for each task, added in the same way. The tasks are known by their words.
- `instruction`: the words themselves. The null is one vector in the place of each word, so the
  language model encodes a second prefix for it.

The vectors of advantages, returns and tasks start at 0, so pretrained weights compute the same
numbers. A null has a gradient only from rows whose condition is dropped.
In shapes, `kinds` is the number of kinds of conditions.
Letters: B rows, M scored flow steps, H action horizon, L prompt tokens, D width of a tower.
Sources: Ho & Salimans 2022 (dropped conditions); Physical Intelligence 2025 (π*0.6), which writes
the advantage into the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from pitune.policies.network.extensions import Extension
from pitune.policies.network.options.option import OptionConfig
from pitune.ranges import NonNegativeInt

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config

Kind = Literal["advantage", "return", "task", "instruction"]
INSTRUCTION_NULL = "options.conditioning.nulls.instruction"
"""Name of the network's parameter that the encoder of prompts reads."""
DROPPED, NEGATIVE, POSITIVE = -1, 0, 1
"""Index of a dropped condition of any kind, and those of the two advantages."""


@dataclass(frozen=True, kw_only=True)
class ConditioningConfig(OptionConfig):
    """Conditions with a learned null.

    Example:
        >>> ConditioningConfig(advantage=True, return_bins=11).kinds
        ('advantage', 'return')
    """

    group: ClassVar[str | None] = "conditioning"

    advantage: bool = False
    """Whether the velocity is conditioned on a negative or positive advantage."""
    return_bins: NonNegativeInt = 0
    """Bins of the return that the velocity is conditioned on, 0 for none."""
    task: bool = False
    """Whether the velocity is conditioned on the task of an observation."""
    tasks: tuple[str, ...] = ()
    """The tasks, each by its words. `pitune pretrain` takes those of its environment or dataset."""
    instruction: bool = False
    """Whether the instruction has a null, so that it can be dropped."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of conditions in the order of the columns of a condition (B, kinds)."""
        sizes: dict[Kind, int] = {
            "advantage": int(self.advantage),
            "return": self.return_bins,
            "task": int(self.task),
            "instruction": int(self.instruction),
        }
        return tuple(kind for kind, size in sizes.items() if size)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tasks", tuple(self.tasks))  # JSON has lists
        if self.tasks and not self.task:
            raise ValueError(
                f"options.conditioning.tasks={self.tasks} without a condition on the task; set "
                "options.conditioning.task=True, or leave them out"
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"options.conditioning.tasks={self.tasks} has the same words twice, so they do not "
                "determine the task; name each task in other words"
            )

    def check(self, network: Pi0Config) -> None:
        if self.task and not self.tasks:
            raise ValueError(
                "options.conditioning.task=True has no tasks; name them in words "
                "(options.conditioning.tasks). pitune pretrain takes those of its environment"
            )
        if not self.instruction:
            return
        if not network.vocab_size:
            raise ValueError(
                "options.conditioning.instruction=True, but the network reads no instruction; "
                "leave it out, or take a policy with words (pitune pretrain --words)"
            )
        if network.family == "pi05":
            raise ValueError(
                "options.conditioning.instruction=True drops the whole prompt, and π0.5 has its "
                "state there; leave it out, or take π0"
            )

    def module(self, network: Pi0Config) -> Conditioning:
        return Conditioning(self, network)


class Conditioning(Extension):
    """The vectors of conditions.

    Args:
        config: Kinds of conditions.
        network: Sizes of the network.

    Example:
        >>> from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
        >>> sizes = Pi0Config(state_dim=4, action_dim=2, action_horizon=3, expert=LAPTOP_EXPERT)
        >>> module = Conditioning(ConditioningConfig(advantage=True), sizes)
        >>> module.offset(torch.tensor([[1], [-1]])).shape  # positive and dropped, (B, kinds)
        torch.Size([2, 64])
    """

    group = "conditioning"

    def __init__(self, config: ConditioningConfig, network: Pi0Config) -> None:
        super().__init__()
        self.kinds, self.width = config.kinds, network.expert.width
        sizes = {"advantage": 2, "return": config.return_bins, "task": len(config.tasks)}
        self.values, self.nulls = nn.ParameterDict(), nn.ParameterDict()
        for kind in self.kinds:
            if kind != "instruction":
                self.values[kind] = nn.Parameter(torch.empty(sizes[kind], self.width))
                self.nulls[kind] = nn.Parameter(torch.empty(self.width))
            elif network.vlm is not None:
                self.nulls[kind] = nn.Parameter(torch.empty(network.vlm.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for kind, null in self.nulls.items():
            # a word vector of the usual size, because the language model's norms divide by it
            nn.init.constant_(null, 1 / math.sqrt(len(null)) if kind == "instruction" else 0.0)
        for value in self.values.values():
            nn.init.zeros_(value)

    def offset(self, condition: Tensor) -> Tensor:
        """Return the sum of the vectors (B, D) of conditions (B, kinds) int64.

        Raises:
            ValueError: the condition has no column for each kind.
        """
        self._check(condition)
        total = torch.zeros(len(condition), self.width, device=condition.device)
        for column, kind in enumerate(self.kinds):
            if kind in self.values:
                # the null is the last one, which the index -1 of a dropped condition selects
                table = torch.cat([self.values[kind], self.nulls[kind][None]])
                total = total + table[condition[:, column]]
        return total

    def forward(self, tokens: Tensor, condition: Tensor | None) -> Tensor:
        """Return action tokens (B, M * H, D) with the vectors of conditions (B, kinds) added.

        Without a condition all of them are dropped.
        """
        if condition is None:
            condition = torch.full((len(tokens), len(self.kinds)), DROPPED, device=tokens.device)
        # (B, D) -> (B, 1, D), the same for all action tokens
        return tokens + self.offset(condition)[:, None].to(tokens.dtype)

    def drop_words(self, words: Tensor, dropped: Tensor) -> Tensor:
        """Return words (B, L, D) with the null in the place of those of some rows (B,) bool."""
        return torch.where(dropped[:, None, None], self.nulls["instruction"].to(words), words)

    def _check(self, condition: Tensor) -> None:
        if condition.ndim != 2 or condition.shape[1] != len(self.kinds):
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; it must be (B, {len(self.kinds)}), "
                f"with a column for each of {list(self.kinds)}"
            )


def condition_of(kinds: Sequence[Kind], num: int, values: Mapping[str, Tensor | int]) -> Tensor:
    """Return conditions (B, kinds) int64, in which instructions are kept, and others dropped.

    Args:
        kinds: Kinds of the network, in order.
        num: B.
        values: Condition of some kinds, of each row (B,) or of all.
    """
    usual = {"instruction": 0}
    # kinds columns (B,) -> (B, kinds)
    columns = [torch.as_tensor(values.get(kind, usual.get(kind, DROPPED))) for kind in kinds]
    return torch.stack([column.long().expand(num) for column in columns], dim=-1)


def with_tasks(config: ConditioningConfig, tasks: Sequence[str], source: str) -> ConditioningConfig:
    """Return the settings with the tasks of an environment or a dataset, if they have none.

    Args:
        config: Settings.
        tasks: Instructions, in the order of `task_id`.
        source: Name of the environment or dataset, for the error.

    Raises:
        ValueError: the velocity is conditioned on the task, and there are no words for it.
    """
    if not config.task:
        return config
    if not tasks or not all(words.strip() for words in tasks):
        raise ValueError(
            f"options.conditioning.task=True conditions on the task, but {source} has no words for "
            f"each of its tasks ({list(tasks)}); name them (--env.instruction), or leave it out"
        )
    return config if config.tasks else replace(config, tasks=tuple(tasks))


def drop_conditions(condition: Tensor, share: float) -> Tensor:
    """Return conditions (B, kinds) of which a random share of each column is dropped."""
    keep = torch.rand(condition.shape, device=condition.device) >= share
    return torch.where(keep, condition, DROPPED)
