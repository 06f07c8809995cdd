"""The prompt: an instruction in words, for π0.5 with the state written into it, as tokens.

Letters: N rows, L tokens, S state dim.
Source: openpi `models/tokenizer.py`, lerobot `processor_pi05.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

NUM_BINS = 256
"""Levels of a discretized state between -1 and 1."""


class Encoder(Protocol):
    """What is asked of a tokenizer; `pitune.policies.preprocessing.tokenizer` has it."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the pieces of a text, after the token of a beginning where `bos`."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How an instruction becomes tokens."""

    max_tokens: int = 48
    """L. Longer prompts are cut, shorter ones padded."""
    clean: bool = True
    """Whether space around the words is removed and underscores and newlines become spaces:
    openpi does it, lerobot does for π0.5 only."""
    discrete_state: bool = False
    """Whether the normalized state stands in the prompt, in whole numbers (π0.5)."""
    state_padding: int = 0
    """Width to which the state is padded with zeros before that (lerobot 0.4 did, 32); 0 for none.
    """
    default: str | None = None
    """The instruction where the environment or the robot gives none."""


def prompt_text(instruction: str, state: Tensor | None, config: PromptConfig) -> str:
    """Return the text that is tokenized.

    Args:
        instruction: What the robot is told.
        state: One normalized state (S), for `discrete_state`.
        config: Whether the instruction is cleaned.
    """
    if config.clean:
        instruction = instruction.strip().replace("_", " ").replace("\n", " ")
    if state is None:
        return instruction if instruction.endswith("\n") else instruction + "\n"
    numbers = " ".join(str(number) for number in discretize(state).tolist())
    return f"Task: {instruction}, State: {numbers};\nAction: "


def discretize(state: Tensor) -> Tensor:
    """Return the bin of each number (int64): 0 .. 255 between -1 and 1, -1 below, 255 above."""
    edges = torch.linspace(-1, 1, NUM_BINS + 1, dtype=torch.float64)[:-1]
    return torch.bucketize(state.double().cpu(), edges, right=True) - 1


def tokenize(
    instructions: list[str], state: Tensor, config: PromptConfig, encoder: Encoder
) -> tuple[Tensor, Tensor]:
    """Return tokens (N, L) int64 and which are no padding (N, L).

    Args:
        instructions: One per row.
        state: Normalized states without padding (N, S).
        config: How.
        encoder: The tokenizer.
    """
    if config.discrete_state:
        written = pad(state, (0, max(0, config.state_padding - state.shape[-1])))
        texts = [
            prompt_text(instruction, row, config)
            for instruction, row in zip(instructions, written, strict=True)
        ]
    else:
        texts = [prompt_text(instruction, None, config) for instruction in instructions]
    known = {text: encoder.encode(text)[: config.max_tokens] for text in dict.fromkeys(texts)}
    tokens = torch.zeros(len(texts), config.max_tokens, dtype=torch.int64)
    mask = torch.zeros(len(texts), config.max_tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        pieces = known[text]
        tokens[row, : len(pieces)] = torch.tensor(pieces)
        mask[row, : len(pieces)] = True
    return tokens, mask
