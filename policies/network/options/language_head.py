"""The language head: text and FAST tokens that the vision-language model predicts.

The predicted tokens are a block of their own after pictures and prompt. A predicted token attends
to the prefix and to the predicted tokens before it. The action expert attends to the prefix alone,
because the block's keys and values are never in its cache. So the flow does not depend on predicted
tokens, and their logits do not depend on actions.

    [pictures, prompt] -> [predicted text or FAST tokens]
    [pictures, prompt] -> [state] -> [actions]

The head is the transposed token embedding, as in PaliGemma, so it has no parameters of its own.
In shapes, `prefix` is the number of tokens of pictures and prompt, `before` that of all tokens so
far, and `vocabulary` that of possible tokens.
Letters: B rows, L tokens of a block, D width of the language model.
Source: Beyer et al. 2024 (PaliGemma); Driess et al. 2025 (knowledge insulation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pitune.policies.network.options.option import OptionConfig
from pitune.policies.network.options.tokens.gated_tokens import Extra

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config
    from pitune.policies.network.context import Context
    from pitune.policies.network.gemma import Cache, Gemma
    from pitune.policies.network.options.config import NetworkOptions


@dataclass(frozen=True, kw_only=True)
class LanguageHeadConfig(OptionConfig):
    """Settings of the language head.

    Example:
        >>> LanguageHeadConfig(enabled=True).is_on
        True
    """

    enabled: bool = False
    """Whether the language model predicts tokens: text, and the FAST tokens of actions."""

    def check(self, network: Pi0Config) -> None:
        if not network.vocab_size:
            raise ValueError(
                "options.language_head.enabled=True needs the embeddings of a vocabulary, but "
                "vocab_size is 0; make a policy that reads words (pitune pretrain --words)"
            )


class Text(NamedTuple):
    """The tokens so far, from which the language model goes on.

    Example:
        >>> keys = values = torch.zeros(2, 1, 5, 4)  # (B, kv heads, before, head dim)
        >>> valid = torch.ones(2, 5, dtype=torch.bool)
        >>> Text([(keys, values)], valid, torch.zeros(2, 8)).last.shape
        torch.Size([2, 8])
    """

    cache: Cache
    """Keys and values of pictures, prompt and predicted tokens."""
    valid: Tensor
    """False for padding (B, before)."""
    last: Tensor
    """Hidden state of the last token (B, D), which predicts the next one."""
    registers: Cache | None = None
    """Keys and values of the prefix's registers, which predicted tokens read through gates."""


def text_of(context: Context) -> Text:
    """Return the beginning of the text after an encoded observation, or after its prefix.

    Raises:
        ValueError: the network has no language head.
    """
    if context.last is None:
        raise ValueError(
            "this network has no language head, so it predicts no tokens; switch it on with "
            "options.language_head.enabled=True (--load.options.language-head.enabled)"
        )
    cache = context.cache if context.language is None else context.language
    keys = cache[0][0]  # (B, kv heads, prefix, head dim)
    valid = context.valid
    if valid is None:
        valid = torch.ones(len(keys), keys.shape[2], dtype=torch.bool, device=keys.device)
    return Text(cache, valid[:, : keys.shape[2]], context.last, context.registers)


def last_hidden(hidden: Tensor, valid: Tensor) -> Tensor:
    """Return the hidden state of the last valid token (B, D) of a prefix (B, prefix, D).

    Args:
        hidden: Hidden states.
        valid: False for padding (B, prefix).
    """
    place = torch.arange(valid.shape[1], device=valid.device)
    last = (valid * place).argmax(1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def prompt_end(hidden: Tensor, valid: Tensor, options: NetworkOptions) -> Tensor | None:
    """Return the hidden state of a prompt's last token (B, D), None without a language head.

    See `last_hidden` for the arguments.
    """
    return last_hidden(hidden, valid) if options.language_head.is_on else None


def extend(tower: Gemma, text: Text, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Text]:
    """Return the hidden states of further tokens (B, L, D), and the text with them.

    The tokens attend to the text and causally to each other.

    Args:
        tower: The language model.
        text: The tokens so far.
        tokens: Further tokens (B, L) int64.
        mask: False for padding (B, L), which is at a row's end.
    """
    num = tokens.shape[1]
    # embeddings (B, L, D), which Gemma scales by the root of the width
    words = tower.embed_tokens(tokens) * math.sqrt(tower.config.width)
    # padding takes no position
    positions = text.valid.sum(1, keepdim=True) + mask.cumsum(1) - 1  # (B, L)
    # the mask (B, L, before + L): all of the text, and own tokens up to the present one
    causal = torch.ones(num, num, dtype=torch.bool, device=tokens.device).tril()
    own = causal & mask[:, None]  # (B, L, L)
    seen = torch.cat([text.valid[:, None].expand(-1, num, -1), own], dim=2)
    extra = None if text.registers is None else Extra(side={"registers": text.registers})
    hidden, cache = tower(
        words.to(text.last.dtype),
        positions.clamp(min=0),
        seen[:, None],
        text.cache,
        extra=extra,
    )
    last = last_hidden(hidden, mask)
    # a row of padding alone keeps its last token
    last = torch.where(mask.any(1)[:, None], last, text.last)
    return hidden, Text(cache, torch.cat([text.valid, mask], 1), last, text.registers)


def text_logits(tower: Gemma, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the logits (..., vocabulary) of the next token after hidden states (..., D).

    Args:
        tower: The language model.
        hidden: Its hidden states.
        rows: Tokens to score (vocabulary,), all by default.
    """
    weight = tower.embed_tokens.weight if rows is None else tower.embed_tokens.weight[rows]
    return hidden.float() @ weight.float().t()


def predicted_hidden(tower: Gemma, text: Text, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the hidden states (B, L, D), each of which predicts one of the tokens (B, L).

    The first is the prompt's last one. See `extend` for the arguments.
    """
    if tokens.shape[1] == 1:
        return text.last[:, None]
    hidden, _ = extend(tower, text, tokens[:, :-1], mask[:, :-1])
    return torch.cat([text.last[:, None], hidden], dim=1)


def token_loss(tower: Gemma, text: Text, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean next-token loss of each row's predicted tokens (B,) [nats].

    A row without tokens has a loss of 0.

    Args:
        tower: The language model.
        text: Encoded pictures and prompts.
        tokens: The tokens to predict (B, L) int64.
        mask: False for padding (B, L), which has no loss.
    """
    hidden = predicted_hidden(tower, text, tokens, mask)
    # only tokens with a loss, because the logits of a large vocabulary are large
    logits = text_logits(tower, hidden[mask])  # (tokens, vocabulary)
    losses = hidden.new_zeros(mask.shape, dtype=torch.float32)
    losses[mask] = cross_entropy(logits, tokens[mask], reduction="none")
    return losses.sum(1) / mask.sum(1).clamp(min=1)
