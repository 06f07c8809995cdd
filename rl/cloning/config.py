"""Weights of the losses beside the flow's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pitune.ranges import NonNegativeFloat, Settings, Share
from pitune.rl.datasets.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class LanguageLossConfig(Settings):
    """Next-token losses of the language head, beside the flow-matching loss.

    Example:
        >>> LanguageLossConfig(fast_weight=1.0).is_on
        True
    """

    flow_weight: NonNegativeFloat = 1.0
    """Weight of the flow-matching loss [-]."""
    fast_weight: NonNegativeFloat = 0.0
    """Weight of the loss on the FAST tokens of the chunks [-]."""
    text_weight: NonNegativeFloat = 0.0
    """Weight of the loss on the answers of a set of texts [-]."""
    text: Path | None = None
    """Set of texts: a file with a JSON object on each line, with a `prompt` and an `answer`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text is None) != (self.text_weight == 0):
            raise ValueError(
                f"text={self.text} and text_weight={self.text_weight} belong together; pass a file "
                "with a weight above 0, or neither"
            )
        if not (self.flow_weight or self.fast_weight or self.text_weight):
            raise ValueError("all weights of the losses are 0, so nothing would be learned")

    @property
    def is_on(self) -> bool:
        """Whether there is a loss of the language head."""
        return self.fast_weight > 0 or self.text_weight > 0


@dataclass(frozen=True, kw_only=True)
class LanguageRegularizationConfig(Settings):
    """Next-token losses beside a policy gradient, so that the language model keeps its knowledge.

    Example:
        >>> LanguageRegularizationConfig(text_weight=1.0, text=Path("text.jsonl")).is_on
        True
    """

    text_weight: NonNegativeFloat = 0.0
    """Weight of the loss on the answers of a set of texts [-]."""
    text: Path | None = None
    """Set of texts: a file with a JSON object on each line, with a `prompt` and an `answer`."""
    fast_weight: NonNegativeFloat = 0.0
    """Weight of the loss on the FAST tokens of demonstrated chunks [-]."""
    demonstrations: Path | None = None
    """File of demonstrations, or a LeRobot dataset, all in memory."""
    data: DataConfig = field(default_factory=DataConfig)
    """Features of a LeRobot dataset, and the memory for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for weight, source in (("text_weight", "text"), ("fast_weight", "demonstrations")):
            value, path = getattr(self, weight), getattr(self, source)
            if (path is None) != (value == 0):
                raise ValueError(
                    f"language.{source}={path} and language.{weight}={value} belong together; pass "
                    "a file with a weight above 0, or neither"
                )

    @property
    def is_on(self) -> bool:
        """Whether there is a loss."""
        return self.text_weight > 0 or self.fast_weight > 0


@dataclass(frozen=True, kw_only=True)
class StatusLossConfig(Settings):
    """Loss of the task-status head.

    Example:
        >>> StatusLossConfig(weight=0.1).invalid_share
        0.2
    """

    weight: NonNegativeFloat = 0.0
    """Weight of the cross entropy [-]. Above 0 it needs a network with the status option."""
    invalid_share: Share = 0.2
    """Probability that a row gets the instruction of another task. It is labelled as invalid, and
    its actions are not cloned."""
