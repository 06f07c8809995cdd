"""Encoded observations: for the flow steps, and as rows of a replay memory.

In shapes, `prefix` is the number of tokens of pictures and prompt.
Letters: B rows, R steps of a remainder, A model action dim, D width.
"""

from __future__ import annotations

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
    """Pooled features of the observation (B, D)."""
    valid: Tensor | None = None
    """False for padding tokens of the cache (B, prefix + state token). None without padding."""
    remainder: Tensor | None = None
    """Rest of the chunk that is being executed (B, R, A), under a decision delay."""
    delay: Tensor | None = None
    """Its actions that are executed before the new chunk arrives (B,), -1 without an old chunk."""
    last: Tensor | None = None
    """Hidden state of the prompt's last token (B, D), with a language head."""
    language: Cache | None = None
    """Keys and values of the prefix for the language head, which insulation leaves a gradient."""


def pack(context: Context) -> TensorDict:
    """Return the tensors of a context (N); the keys and values of the layers side by side."""
    keys, values = (torch.stack(part, 1) for part in zip(*context.cache, strict=True))
    caches = ("cache", "language")  # a packed prefix has no other keys and values
    rest = {name: value for name, value in context._asdict().items() if name not in caches}
    tensors = {name: value for name, value in rest.items() if value is not None}
    return TensorDict({"keys": keys, "values": values} | tensors, batch_size=[len(keys)])


def unpack(packed: TensorDictBase) -> Context:
    """Return the context that `pack` took apart."""
    cache = list(zip(packed["keys"].unbind(1), packed["values"].unbind(1), strict=True))
    return Context(cache=cache, **dict(packed.exclude("keys", "values").items()))


def stored_prefix(rows: TensorDictBase) -> Context | None:
    """Return the encoded prefixes of rows (N), or None if the rows hold pictures and tokens."""
    packed = rows.get("prefix", None)
    return unpack(packed) if isinstance(packed, TensorDictBase) else None
