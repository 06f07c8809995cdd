"""The prompt of each observation belongs to its own task."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from pitune.policies import NormStats, PreprocessorConfig
from pitune.policies.preprocessing.model_input import ObservationPreprocessor
from pitune.policies.preprocessing.preprocessor import Preprocessor
from pitune.policies.preprocessing.prompt import PromptConfig


class Letters:
    """A tokenizer with one token per letter."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [2] * bos + [ord(letter) for letter in text]


def new_preprocessor(
    *tasks: str, discrete_state: bool = False, default: str | None = None
) -> ObservationPreprocessor:
    stats = NormStats.identity(2)
    config = PreprocessorConfig(
        state=stats,
        action=stats,
        normalization="none",
        prompt=PromptConfig(max_tokens=4, discrete_state=discrete_state, default=default),
    )
    return ObservationPreprocessor(Preprocessor(config, 2, 2), Letters(), tasks)


def rows(*task_ids: int) -> TensorDict:
    tensors = {"state": torch.zeros(len(task_ids), 2), "task_id": torch.tensor(task_ids)}
    return TensorDict(tensors, batch_size=[len(task_ids)])


def test_each_row_has_the_tokens_of_its_task() -> None:
    tokens = new_preprocessor("a", "b")(rows(1, 0, 1))["model_input", "tokens"]
    a, b = ([2, ord(letter), ord("\n"), 0] for letter in "ab")
    assert tokens.tolist() == [b, a, b]


@pytest.mark.parametrize("discrete_state", [False, True])
@pytest.mark.parametrize("task_id", [-1, 2])
def test_a_task_that_the_environment_does_not_have_is_refused(
    task_id: int, discrete_state: bool
) -> None:
    preprocess = new_preprocessor("a", "b", discrete_state=discrete_state)
    with pytest.raises(ValueError, match=rf"task_id={task_id}, but the tasks are \('a', 'b'\)"):
        preprocess(rows(0, task_id))


def test_rows_without_a_task_take_the_only_one_and_never_the_first_of_several() -> None:
    unnumbered = rows(0).exclude("task_id")
    tokens = new_preprocessor("a")(unnumbered)["model_input", "tokens"]
    assert tokens.tolist() == [[2, ord("a"), ord("\n"), 0]]
    with pytest.raises(ValueError, match=r"no task_id, but there are 2 tasks, \('a', 'b'\); add"):
        new_preprocessor("a", "b")(unnumbered)


@pytest.mark.parametrize("discrete_state", [False, True])
@pytest.mark.parametrize("words", ["", "  "])
def test_an_instruction_without_words_is_refused_or_the_default(
    words: str, discrete_state: bool
) -> None:
    with pytest.raises(ValueError, match=r"needs a prompt, but the instructions are .*instruction"):
        new_preprocessor("a", words, discrete_state=discrete_state)
    with_default = new_preprocessor("a", words, default="b")(rows(0, 1))
    assert torch.equal(
        with_default["model_input", "tokens"],
        new_preprocessor("a", "b")(rows(0, 1))["model_input", "tokens"],
    )
