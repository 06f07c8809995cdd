"""Blocks of additional tokens around those of the published network.

Letters: B rows, M scored flow steps, H action horizon, L prompt tokens, S model
state dim, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from einops import rearrange
from torch import Tensor

from pitune.policies.network.context import Context
from pitune.policies.network.options.tokens.conditioning import Conditioning
from pitune.policies.network.options.tokens.gated_tokens import Extra
from pitune.policies.network.options.tokens.registers import Registers
from pitune.policies.network.options.tokens.state_tokens import StateTokens

if TYPE_CHECKING:
    from pitune.policies.network.pi0 import Pi0


def with_state_tokens(network: Pi0, context: Context, state: Tensor) -> Context:
    """Return a context with the keys and values of the option's state tokens, if it is on.

    Args:
        network: Its expert encodes the tokens.
        context: Of the published network.
        state: Normalized states (B, S).
    """
    if "state_tokens" not in network.options:
        return context
    module = cast(StateTokens, network.options["state_tokens"])
    tokens = module(state)  # (B, parts, D)
    cache = encoded_block(network, context, tokens, module.condition(len(state)))
    return context._replace(side={**(context.side or {}), "state_tokens": cache})


def encoded_block(
    network: Pi0, context: Context, tokens: Tensor, condition: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Return the expert's keys and values of a block of tokens, per layer.

    The block attends to the context and to itself. Its positions follow the context's.

    Args:
        network: Its expert encodes the tokens.
        context: The blocks before.
        tokens: (B, parts, D).
        condition: Of adaptive norms (B, 1, D).
    """
    b, t, _ = tokens.shape
    before, valid = context.cache[0][0].shape[2], context.valid
    steps = torch.arange(t, device=tokens.device)
    # positions (B, parts), and the mask (B, 1, parts, before + parts) over rows with padding
    if valid is None:
        positions, mask = (before + steps).expand(b, -1), None
    else:
        positions = valid.sum(1, keepdim=True) + steps
        every = torch.cat([valid, valid.new_ones(b, t)], dim=1)  # (B, before + parts)
        mask = every[:, None, None].expand(-1, -1, t, -1)
    dtype = network.compute_dtype
    condition = None if condition is None else condition.to(dtype)
    extra = Extra(side=context.side or {})
    _, cache = network.expert(tokens.to(dtype), positions, mask, context.cache, condition, extra)
    # only the block's own keys and values (B, kv heads, parts, head dim)
    return [(keys[:, :, before:], values[:, :, before:]) for keys, values in cache]


def drop_words(network: Pi0, words: Tensor, dropped: Tensor | None) -> Tensor:
    """Return words (B, L, D) with the option's null in the place of some rows' words.

    Args:
        network: Has the null.
        words: Embedded prompts.
        dropped: These rows (B,) bool, None for no row.
    """
    if dropped is None:
        return words
    return cast(Conditioning, network.options["conditioning"]).drop_words(words, dropped)


def with_registers(
    network: Pi0, context: Context, tokens: Tensor, condition: Tensor | None, m: int
) -> tuple[Extra, Tensor, Tensor | None]:
    """Return the additional tokens, and tokens and condition of the block with its registers.

    The vectors of conditions are added to the action tokens, if that option is on.

    Args:
        network: Has the registers and the vectors, if the options are on.
        context: Has the other additional tokens and the conditions.
        tokens: Action tokens (B, M * H, D).
        condition: Of adaptive norms (B, M, D) or (B, M * H, D).
        m: M.
    """
    if "conditioning" in network.options:
        tokens = network.options["conditioning"](tokens, context.condition)
    extra = Extra(side=context.side or {}, groups=m)
    if "registers" not in network.options:
        return extra, tokens, condition
    registers = cast(Registers, network.options["registers"])
    # registers behind the H actions of each of the M flow times
    tokens = registers(rearrange(tokens, "b (m h) d -> b m h d", m=m))
    condition = None if condition is None else registers.condition(condition, m)
    extra = extra._replace(registers=len(registers))
    return extra, rearrange(tokens, "b m l d -> b (m l) d"), condition
