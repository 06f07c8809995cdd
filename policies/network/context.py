"""Encoded observations: for the flow steps, and as rows of a replay memory.

In shapes, `prefix` is the number of tokens of pictures and prompt, `memory` that of a memory.
Letters: B rows, R steps of a remainder, A model action dim, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies.network.gemma import Cache


class Context(NamedTuple):
    """An encoded observation, read by the flow steps and by the critics.

    Example:
        >>> keys = values = torch.zeros(2, 1, 5, 4)  # (B, kv heads, prefix, head dim)
        >>> context = Context(cache=[(keys, values)], features=torch.zeros(2, 8))
        >>> len(context.cache), context.features.shape
        (1, torch.Size([2, 8]))
    """

    cache: Cache
    """Keys and values of the blocks before the actions."""
    features: Tensor
    """Pooled features of the observation (B, D). (B, 0) of one that was encoded without them."""
    valid: Tensor | None = None
    """False for padding tokens of the cache (B, prefix + state token). None without padding."""
    remainder: Tensor | None = None
    """Rest of the chunk that is being executed (B, R, A), under a decision delay."""
    delay: Tensor | None = None
    """Its actions that are executed before the new chunk arrives (B,), -1 without an old chunk."""
    memory: Tensor | None = None
    """Memory that the decision reads (B, memory, D), of a network with one. By default it is that
    of an episode's beginning."""
    written: Tensor | None = None
    """Memory that it writes, for the next decision (B, memory, D)."""
    side: Mapping[str, Cache] | None = None
    """Keys and values of additional tokens by kind, which are read through gates."""
    condition_offset: Tensor | None = None
    """Added to the flow-time condition of π0.5 (B, D) or (1, D), e.g. a gene of a population."""
    last: Tensor | None = None
    """Hidden state of the prompt's last token (B, D), with a language head."""
    registers: Cache | None = None
    """Keys and values of the prefix's registers, which its own tokens and predicted ones read."""
    language: Cache | None = None
    """Keys and values of the prefix for the language head, which insulation leaves a gradient."""
    condition: Tensor | None = None
    """Conditions of the velocity (B, kinds) int64, -1 where one is dropped. None without any. Of a
    prefix, those that it was encoded for, if its words can be dropped."""
    null: Context | None = None
    """The same observation without its instruction, for guidance."""


def pack(context: Context) -> TensorDict:
    """Return the tensors of a context (N); the keys and values of the layers side by side."""
    # the cache of the language head is that of the prefix
    left_out = ("cache", "registers", "side", "language", "null")
    rest = {k: v for k, v in context._asdict().items() if k not in left_out}
    tensors = {name: value for name, value in rest.items() if value is not None}
    td = TensorDict(_stacked(context.cache) | tensors, batch_size=[len(context.features)])
    if context.registers is not None:
        td["registers"] = TensorDict(_stacked(context.registers), batch_size=td.batch_size)
    for kind, cache in (context.side or {}).items():
        td["side", kind] = TensorDict(_stacked(cache), batch_size=td.batch_size)
    if context.null is not None:
        td["null"] = pack(context.null)
    return td


def unpack(packed: TensorDictBase) -> Context:
    """Return the context that `pack` took apart."""
    rest = dict(packed.exclude("keys", "values", "registers", "side", "null").items())
    registers = packed.get("registers", None)
    if isinstance(registers, TensorDictBase):
        rest["registers"] = _unstacked(registers)
    side = packed.get("side", None)
    if side is not None:
        rest["side"] = {kind: _unstacked(part) for kind, part in side.items()}
    null = packed.get("null", None)
    if isinstance(null, TensorDictBase):
        rest["null"] = unpack(null)
    return Context(cache=_unstacked(packed), **rest)


def _stacked(cache: Cache) -> dict[str, Tensor]:
    keys, values = (torch.stack(part, 1) for part in zip(*cache, strict=True))
    return {"keys": keys, "values": values}


def _unstacked(packed: TensorDictBase) -> Cache:
    return list(zip(packed["keys"].unbind(1), packed["values"].unbind(1), strict=True))


def stored_prefix(rows: TensorDictBase) -> Context | None:
    """Return the encoded prefixes of rows (N), or None if the rows hold pictures and tokens."""
    packed = rows.get("prefix", None)
    return unpack(packed) if isinstance(packed, TensorDictBase) else None
