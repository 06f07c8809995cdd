"""The tokens of a prompt: an instruction, and for π0.5 the state as whole numbers.

Letters: N rows, L prompt tokens, s robot state dim.
Source: openpi `models/tokenizer.py`, lerobot `processor_pi05.py`.
"""

from __future__ import annotations

import warnings
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
    """L. Shorter prompts are padded. Of longer ones the end is cut, and with the state in the
    prompt the end of the instruction. Both give a warning."""
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

    Raises:
        ValueError: an instruction is empty, or a state has more than L tokens.
    """
    # states as they are written into the prompts (N, state_padding), or unchanged if that is less
    written: list[Tensor | None] = [None] * len(instructions)
    if config.discrete_state:
        written = list(pad(state, (0, max(0, config.state_padding - state.shape[-1]))))

    # tokens, computed once per distinct text
    encoded: dict[str, list[int]] = {}
    texts = []
    for instruction, row in zip(instructions, written, strict=True):
        check_instruction(instruction, config)
        text = prompt_text(instruction, row, config)
        if text not in encoded:
            encoded[text] = _encode(instruction, row, config, encoder)
        texts.append(text)

    tokens = torch.zeros(len(texts), config.max_tokens, dtype=torch.int64)
    mask = torch.zeros(len(texts), config.max_tokens, dtype=torch.bool)
    for i, text in enumerate(texts):
        length = len(encoded[text])
        tokens[i, :length] = torch.tensor(encoded[text])
        mask[i, :length] = True
    return tokens, mask


def check_instruction(instruction: str, config: PromptConfig) -> None:
    """Reject an instruction without words, unless it is the policy's default.

    Raises:
        ValueError: it is empty or blank.
    """
    if not instruction.strip() and instruction != config.default:
        raise ValueError(
            f"the instruction {instruction!r} has no words, but this policy acts on them; pass "
            "those that it was trained with"
        )


def _encode(
    instruction: str, state: Tensor | None, config: PromptConfig, encoder: Encoder
) -> list[int]:
    """Return at most L tokens of a prompt (L). A state in it stays whole."""
    limit = config.max_tokens
    tokens = encoder.encode(prompt_text(instruction, state, config))
    if len(tokens) <= limit:
        return tokens
    if state is None:
        _warn_once(instruction, len(tokens), limit, "its end is cut, as in the references")
        return tokens[:limit]

    # the longest start of the instruction that leaves room for the state
    low, high = 0, len(instruction)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(encoder.encode(prompt_text(instruction[:middle], state, config))) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    if not instruction[:low].strip():
        num_least = len(encoder.encode(prompt_text("", state, config)))
        raise ValueError(
            f"a prompt with the state of {len(state)} dimensions has {num_least} tokens without "
            f"any word, and max_tokens={limit} leaves no room for words; a cut state would be "
            "another one, so take a longer prompt (`prompt_tokens` of the pipeline)"
        )
    action = f"only its first {low} characters are used, so that the state stays whole"
    _warn_once(instruction, len(tokens), limit, action)
    return encoder.encode(prompt_text(instruction[:low], state, config))


_WARNED: set[tuple[str, int]] = set()
"""Instructions and limits that a warning was given for. A state changes with every observation,
and the warnings' own filter would let each of them through."""


def _warn_once(instruction: str, num_tokens: int, limit: int, action: str) -> None:
    if (instruction, limit) in _WARNED:
        return
    _WARNED.add((instruction, limit))
    warnings.warn(
        f"the prompt of {instruction[:60]!r} has {num_tokens} tokens, but max_tokens={limit}: "
        f"{action}; shorten the instruction",
        stacklevel=2,
    )
