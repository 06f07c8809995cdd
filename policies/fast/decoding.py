"""Autoregressive decoding of FAST tokens with a cache, and their probabilities.

In shapes, `choices` is the number of possible choices.
Letters: N rows, L tokens of a decision, D width of the language model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitune.policies.fast.vocabulary import PADDING, FastVocabulary
from pitune.policies.network.gemma import Gemma
from pitune.policies.network.options.language_head import (
    Text,
    extend,
    predicted_hidden,
    text_logits,
)


@torch.no_grad()
def decode(
    tower: Gemma, text: Text, vocabulary: FastVocabulary, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the choices (N, L) of decisions and their log-probabilities (N, L) [nats].

    Rows that have ended are padded, with a log-probability of 0.

    Args:
        tower: The language model.
        text: Encoded pictures and prompts (N).
        vocabulary: The possible choices.
        temperature: 0 takes the most likely choice.
    """
    num, device = len(text.last), text.last.device
    choices = torch.full((num, vocabulary.max_tokens), PADDING, device=device)
    log_prob = torch.zeros(num, vocabulary.max_tokens, device=device)
    written = torch.zeros(num, dtype=torch.int64, device=device)
    active = torch.ones(num, dtype=torch.bool, device=device)
    for step in range(vocabulary.max_tokens):
        scores = _log_probs(tower, text.last, vocabulary, written, temperature)  # (N, choices)
        # choice of each row, kept only in rows that have not ended
        best = scores.argmax(1)
        choice = torch.multinomial(scores.exp(), 1)[:, 0] if temperature else best
        choices[active, step] = choice[active]
        log_prob[active, step] = scores.gather(1, choice[:, None])[active, 0]
        written = written + vocabulary.written(choices[:, step])
        # rows that go on
        active = active & (choice != vocabulary.end)
        if vocabulary.decoding.constrained:  # the end of a whole chunk is certain
            active = active & (written < vocabulary.num_coefficients)
        if not active.any():
            break
        # the cache grows by one token (N, 1)
        tokens, _ = vocabulary.tokens(choices[:, step : step + 1])
        _, text = extend(tower, text, tokens, active[:, None])
    return choices, log_prob


def score(
    tower: Gemma, text: Text, vocabulary: FastVocabulary, choices: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (N, L) of choices and their entropies (N, L) [nats], in a pass.

    Both are 0 in padding.

    Args:
        tower: The language model.
        text: Encoded pictures and prompts (N).
        vocabulary: The possible choices.
        choices: The choices (N, L).
        temperature: That of `decode`, above 0.
    """
    tokens, mask = vocabulary.tokens(choices)
    hidden = predicted_hidden(tower, text, tokens, mask)  # (N, L, D)
    lengths = vocabulary.written(choices)
    written = lengths.cumsum(1) - lengths  # before each choice
    scores = _log_probs(tower, hidden, vocabulary, written, temperature)  # (N, L, choices)
    # probability of each choice. Padding (-1) reads entry 0 and is masked below
    log_prob = scores.gather(2, choices.clamp(min=0)[..., None])[..., 0]
    # a choice that is not allowed has a probability of 0 and no gradient
    terms = scores.masked_fill(scores.isinf(), 0.0) * scores.exp()
    return torch.where(mask, log_prob, 0.0), torch.where(mask, -terms.sum(-1), 0.0)


def _log_probs(
    tower: Gemma, hidden: Tensor, vocabulary: FastVocabulary, written: Tensor, temperature: float
) -> Tensor:
    """Return the log-probabilities (..., choices) of the next choice.

    It follows hidden states (..., D).
    """
    logits = text_logits(tower, hidden, vocabulary.rows.to(hidden.device))
    allowed = vocabulary.allowed(written)
    if allowed is not None:
        logits = torch.where(allowed, logits, -math.inf)
    return torch.log_softmax(logits / (temperature or 1.0), dim=-1)
