"""`prompt`: prompts that are too long, and instructions without words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from pitune.policies import NormStats, PreprocessorConfig
from pitune.policies.preprocessing import prompt as prompts
from pitune.policies.preprocessing.prompt import PromptConfig, prompt_text, tokenize


class Letters:
    """One token per character, after the beginning of the sequence."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [2] * bos + [ord(letter) for letter in text]


@pytest.fixture(autouse=True)
def _nothing_was_warned_of() -> Iterator[None]:
    before = set(prompts._WARNED)
    prompts._WARNED.clear()
    yield
    prompts._WARNED.update(before)


def text_of(tokens: torch.Tensor, mask: torch.Tensor) -> str:
    return "".join(chr(token) for token in tokens[mask].tolist()[1:])


LONG = "pick up the bowl " * 20


@pytest.mark.parametrize("dim", [1, 3, 8])
@pytest.mark.parametrize("limit", [60, 64, 80, 200])
def test_a_long_instruction_loses_words_and_never_a_number_of_the_state(
    dim: int, limit: int
) -> None:
    config = PromptConfig(max_tokens=limit, discrete_state=True)
    state = torch.linspace(-1, 1, dim)[None]
    with pytest.warns(UserWarning, match=rf"tokens, but max_tokens={limit}: only its first \d+ ch"):
        tokens, mask = tokenize([LONG], state, config, Letters())
    text = text_of(tokens[0], mask[0])
    whole = prompt_text("", state[0], config).removeprefix("Task: ")
    assert text.endswith(whole)
    words = text.removeprefix("Task: ").removesuffix(whole)
    assert words
    assert LONG.startswith(words)
    # the longest start that fits
    kept = max(n for n in range(len(LONG)) if fits(LONG[:n], state[0], config))
    assert words == LONG[:kept].strip()


def fits(words: str, state: torch.Tensor, config: PromptConfig) -> bool:
    return len(Letters().encode(prompt_text(words, state, config))) <= config.max_tokens


@pytest.mark.parametrize("dim", [54, 100])
def test_a_state_that_fills_the_prompt_is_refused(dim: int) -> None:
    config = PromptConfig(max_tokens=200, discrete_state=True)
    state = torch.ones(1, dim)
    with pytest.raises(ValueError, match=rf"the state of {dim} dimensions has \d+ tokens .*=200 l"):
        tokenize(["pick"], state, config, Letters())


def test_padding_counts_as_the_state() -> None:
    config = PromptConfig(max_tokens=100, discrete_state=True, state_padding=32)
    with pytest.raises(ValueError, match="the state of 32 dimensions has"):
        tokenize(["pick"], torch.ones(1, 8), config, Letters())


def test_without_the_state_the_end_is_cut_as_in_the_references() -> None:
    config = PromptConfig(max_tokens=48)
    with pytest.warns(UserWarning, match="has 341 tokens, but max_tokens=48: its end is cut"):
        tokens, mask = tokenize([LONG], torch.zeros(1, 8), config, Letters())
    assert text_of(tokens[0], mask[0]) == LONG[:47]
    assert mask.all()


@pytest.mark.parametrize("discrete_state", [False, True])
def test_each_instruction_is_warned_of_once_whatever_the_state(discrete_state: bool) -> None:
    config = PromptConfig(max_tokens=60, discrete_state=discrete_state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(5):
            state = torch.full((2, 3), number / 5)
            tokenize([LONG, LONG + "again"], state, config, Letters())
    assert len(caught) == 2


def test_a_prompt_that_fits_exactly_is_whole_and_silent() -> None:
    text = prompt_text("pick", None, PromptConfig())
    config = PromptConfig(max_tokens=1 + len(text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens, mask = tokenize(["pick"], torch.zeros(1, 1), config, Letters())
    assert text_of(tokens[0], mask[0]) == text


@pytest.mark.parametrize("words", ["", " ", "\n", "\t \n"])
def test_an_instruction_without_words_is_refused_unless_it_is_the_default(words: str) -> None:
    with pytest.raises(ValueError, match="has no words, but this policy acts on them"):
        tokenize([words], torch.zeros(1, 1), PromptConfig(default="push"), Letters())
    if words:
        tokenize([words], torch.zeros(1, 1), PromptConfig(default=words), Letters())
    else:
        with pytest.raises(ValueError, match="default='' must not be empty"):
            PromptConfig(default=words)


@pytest.mark.parametrize("changes", [{"max_tokens": 0}, {"max_tokens": -1}, {"state_padding": -1}])
def test_lengths_without_a_meaning_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))}={next(iter(changes.values()))} m"):
        PromptConfig(**changes)


def test_a_blank_default_of_an_older_checkpoint_is_none() -> None:
    stats = NormStats.identity(2)
    config = PreprocessorConfig(state=stats, action=stats, prompt=PromptConfig(default="push"))
    values = asdict(config)
    assert PreprocessorConfig.from_dict(values).prompt == config.prompt
    values["prompt"]["default"] = ""
    assert PreprocessorConfig.from_dict(values).prompt == PromptConfig()
