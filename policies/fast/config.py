"""Settings of acting by FAST tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pitune.ranges import NonNegativeFloat, PositiveInt, Settings

Failure = Literal["flow", "error"]


@dataclass(frozen=True, kw_only=True)
class FastDecodingConfig(Settings):
    """How a policy decodes its FAST tokens.

    Example:
        >>> FastDecodingConfig(constrained=False, on_failure="error").temperature
        0.0
    """

    temperature: NonNegativeFloat = 0.0
    """Temperature of the deployed policy's tokens [-]. 0 takes the most likely one."""
    constrained: bool = True
    """Whether only tokens that can still become a chunk of H * d coefficients are allowed, so that
    every decision can be decoded. It needs a tokenizer whose tokens are whole coefficients, which
    the published one's are not."""
    max_tokens: PositiveInt | None = None
    """Greatest number of tokens of a decision. H * d, and one for the end, by default."""
    on_failure: Failure = "flow"
    """What is executed if tokens cannot be decoded: the chunk of the flow, with a warning and a
    mark at the decision, or nothing, by an error."""
