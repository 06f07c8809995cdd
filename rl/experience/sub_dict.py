"""Typed access to the TensorDicts inside a TensorDict.

Letters: B rows.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies.host_prefixes import select_rows

Entry: TypeAlias = Tensor | TensorDictBase
"""A tensor, or a nested entry."""
Index: TypeAlias = str | tuple[str, ...] | int | slice | Tensor | tuple[int | slice | Tensor, ...]
"""A key, or a selection of rows."""


def sub_dict(td: TensorDictBase, index: Index) -> TensorDictBase:
    """Return `td[index]`, a nested entry or some of the rows, as a TensorDict.

    For a type checker `td[index]` may be a tensor too. This function excludes that.

    Args:
        td: Rows (B).
        index: Key of a nested entry, or the rows.

    Raises:
        TypeError: the entry is a tensor.

    Example:
        >>> from tensordict import TensorDict
        >>> td = TensorDict({"next": {"reward": torch.zeros(3, 1)}}, batch_size=[3])
        >>> sub_dict(td, "next")["reward"].shape, len(sub_dict(td, slice(2)))
        (torch.Size([3, 1]), 2)
    """
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        index = index.nonzero(as_tuple=True)  # once, and not for each entry
    value = select_rows(td, index)
    if not isinstance(value, TensorDictBase):
        raise TypeError(
            f"entry {index!r} is a {type(value).__name__}, not a TensorDict; read a tensor with "
            "`td[key]`"
        )
    return value
