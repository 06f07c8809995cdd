"""A set of texts that the language head learns or is measured on.

In shapes, `answer` is the number of tokens of the longest answer.
Letters: N rows, L prompt tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.by_tokens import language_tower
from pitune.policies.network.options.language_head import text_of, token_loss
from pitune.policies.preprocessing.prompt import tokenize

END = "\n"
"""The text after an answer."""


@dataclass(frozen=True)
class Question:
    """A prompt and its answer.

    Example:
        >>> Question("what color is the goal of: reach the red goal", "red").answer
        'red'
    """

    prompt: str
    answer: str


def read_texts(file: Path) -> list[Question]:
    """Read a set of texts.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is no JSON object with a prompt and an answer, or there is none.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"no texts at {file}; write a JSON object on each line, such as "
            '{"prompt": "which color has the goal?", "answer": "red"}'
        )
    questions = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            values = json.loads(line)
            question = Question(values["prompt"], values["answer"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"line {number} of {file} is no JSON object with `prompt` and `answer` ({error!r})"
            ) from error
        if not all(isinstance(text, str) and text.strip() for text in vars(question).values()):
            raise ValueError(f"line {number} of {file} has an empty prompt or answer; fill it in")
        questions.append(question)
    if not questions:
        raise ValueError(f"{file} holds no text; write a JSON object on each line")
    return questions


def text_rows(policy: FlowPolicy, questions: list[Question]) -> TensorDict:
    """Return texts as rows (N).

    They have `prompt` and `prompt_mask` (N, L), and `answer` and `answer_mask` (N, answer).

    Raises:
        ValueError: the policy has no language head or tokenizer.
    """
    language_tower(policy)
    config, tokenizer = policy.preprocessor.config.prompt, policy.info.tokenizer
    if config is None or tokenizer is None:
        raise ValueError("the policy has no tokenizer, so it reads no text; take one with words")
    # the prompt of a text holds no state
    config = replace(config, discrete_state=False)
    prompt, mask = tokenize(
        [q.prompt for q in questions], torch.zeros(len(questions), 0), config, tokenizer
    )
    answers = [tokenizer.encode(q.answer + END, bos=False) for q in questions]
    # answers of different lengths, padded on the right to (N, answer)
    width = max(map(len, answers))
    answer = torch.zeros(len(answers), width, dtype=torch.int64)
    answer_mask = torch.zeros(len(answers), width, dtype=torch.bool)
    for number, row in enumerate(answers):
        answer[number, : len(row)] = torch.tensor(row)
        answer_mask[number, : len(row)] = True
    values = {"prompt": prompt, "prompt_mask": mask, "answer": answer, "answer_mask": answer_mask}
    return TensorDict(values, batch_size=[len(answers)])


def text_loss(policy: FlowPolicy, rows: TensorDictBase) -> Tensor:
    """Return the mean next-token loss of each answer (N,) [nats].

    A policy with cameras reads them as missing.

    Args:
        policy: Its language head predicts the answers.
        rows: The result of `text_rows`.
    """
    rows = rows.to(policy.device)
    network, images, image_mask = policy.network, None, None
    pictures = policy.preprocessor.config.pictures
    if pictures is not None:
        # pictures of zeros, which the mask leaves out (N, cameras, 3, size, size)
        shape = (len(rows), len(pictures.cameras), 3, pictures.size, pictures.size)
        images = torch.zeros(shape, device=policy.device)
        image_mask = torch.zeros(shape[:2], dtype=torch.bool, device=policy.device)
    prefix = network.encode_prefix(images, image_mask, rows["prompt"], rows["prompt_mask"])
    tower = language_tower(policy)
    return token_loss(tower, text_of(prefix), rows["answer"], rows["answer_mask"])


@torch.no_grad()
def held_out_loss(policy: FlowPolicy, file: Path) -> float:
    """Return the mean next-token loss of a set of texts [nats], for the drift of a language model.

    Args:
        policy: Its language head predicts the answers.
        file: See `read_texts`.
    """
    return float(text_loss(policy, text_rows(policy, read_texts(file))).mean())
