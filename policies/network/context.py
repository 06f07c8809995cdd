"""Encoded observations as rows of a replay memory."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase

from pitune.policies.network.pi0 import Context


def pack(context: Context) -> TensorDict:
    """Return the tensors of a context (N); the keys and values of the layers side by side."""
    keys, values = (torch.stack(part, 1) for part in zip(*context.cache, strict=True))
    rest = {name: value for name, value in context._asdict().items() if name != "cache"}
    tensors = {name: value for name, value in rest.items() if value is not None}
    return TensorDict({"keys": keys, "values": values} | tensors, batch_size=[len(keys)])


def unpack(packed: TensorDictBase) -> Context:
    """Return the context that `pack` took apart."""
    cache = list(zip(packed["keys"].unbind(1), packed["values"].unbind(1), strict=True))
    return Context(cache=cache, **dict(packed.exclude("keys", "values").items()))
