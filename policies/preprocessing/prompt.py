"""The tokens of a prompt: an instruction, and for π0.5 the state as whole numbers.

Letters: N rows, L prompt tokens, s robot state dim.
Source: openpi `models/tokenizer.py`, lerobot `processor_pi05.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from pitune.ranges import NonNegativeInt, PositiveInt, Settings

NUM_BINS = 256
"""Levels of a discretized state between -1 and 1."""


class Encoder(Protocol):
    """Interface of a tokenizer, see `pitune.policies.preprocessing.tokenizer.Tokenizer`.

    Example:
        >>> class Letters:
        ...     def encode(self, text, bos=True):
        ...         return [2] * bos + [ord(letter) for letter in text]
        >>> Letters().encode("a")
        [2, 97]
    """

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the tokens of a text, after the beginning-of-sequence token if `bos`."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Settings):
    """Settings of the prompt's text and tokens.

    Example:
        >>> PromptConfig(max_tokens=200, discrete_state=True).clean
        True
    """

    max_tokens: PositiveInt = 48
    """L. Longer prompts are truncated, shorter ones padded."""
    clean: bool = True
    """Whether to strip the instruction and replace underscores and newlines by spaces, as openpi
    does always and lerobot for π0.5 only."""
    discrete_state: bool = False
    """Whether the prompt contains the normalized state as whole numbers (π0.5)."""
    state_padding: NonNegativeInt = 0
    """Width to which that state is padded with zeros (32 in lerobot 0.4), or 0 for no padding."""
    default: str | None = None
    """Instruction for environments and robots that give none."""


def prompt_text(instruction: str, state: Tensor | None, config: PromptConfig) -> str:
    """Return the text of a prompt.

    Args:
        instruction: The task in words.
        state: One normalized state (s), for `discrete_state`.
        config: Settings.
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
    """Return tokens (N, L) int64 and their mask (N, L) bool, False in padding.

    Args:
        instructions: One per row.
        state: Normalized states without padding (N, s).
        config: Settings.
        encoder: The tokenizer.
    """
    # text of each row
    if config.discrete_state:
        # (N, s) -> (N, state_padding), or unchanged if that is smaller
        written = pad(state, (0, max(0, config.state_padding - state.shape[-1])))
        texts = [
            prompt_text(instruction, row, config)
            for instruction, row in zip(instructions, written, strict=True)
        ]
    else:
        texts = [prompt_text(instruction, None, config) for instruction in instructions]

    # tokens, computed once per distinct text
    encoded = {text: encoder.encode(text)[: config.max_tokens] for text in dict.fromkeys(texts)}
    tokens = torch.zeros(len(texts), config.max_tokens, dtype=torch.int64)
    mask = torch.zeros(len(texts), config.max_tokens, dtype=torch.bool)
    for row, text in enumerate(texts):
        length = len(encoded[text])
        tokens[row, :length] = torch.tensor(encoded[text])
        mask[row, :length] = True
    return tokens, mask
