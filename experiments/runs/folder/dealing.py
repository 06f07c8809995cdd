"""The own state of some ranks, dealt out to another number of ranks.

Entries named `replay` hold the memory of a rank, and entries named `pending` its decisions that
wait for an update. All others are the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Rows = dict[str, Tensor]


def dealt(states: list[Any], rank: int, world: int) -> Any:
    """Return the state of a rank among `world`, from those of all ranks that saved.

    Args:
        states: Of the ranks that saved, in their order.
        rank: This rank.
        world: Number of ranks now.

    Example:
        >>> states = [{"pending": [{"episode": torch.tensor([0, 0, 1])}], "num": 3}]
        >>> dealt(states, rank=1, world=2)
        {'pending': [{'episode': tensor([1])}], 'num': 3}
    """
    first = states[0]
    if not isinstance(first, dict):
        return first
    return {
        key: _DEALERS[key]([state[key] for state in states], rank, world)
        if key in _DEALERS
        else dealt([state[key] for state in states], rank, world)
        for key in first
    }


def _dealt_replay(states: list[Any], rank: int, world: int) -> dict[str, Any]:
    """Return every `world`-th row of the memories, the oldest first."""
    parts = [_oldest_first(state) for state in states]
    return {"rows": _joined([_every(rows, rank, world) for rows in parts if rows]), "writer": None}


def _oldest_first(state: Mapping[str, Any]) -> Rows:
    """Return the rows of a ring buffer in the order in which they were pushed."""
    rows: Rows = state["rows"]
    if not rows:
        return rows
    num, writer = len(next(iter(rows.values()))), state["writer"]
    start = writer["_cursor"] if writer["_write_count"] > num else 0
    order = torch.arange(start, start + num) % num
    return {key: value[order] for key, value in rows.items()}


def _dealt_pending(states: list[Any], rank: int, world: int) -> list[Rows]:
    """Return every `world`-th episode of the decisions of each rollout."""
    parts = [rows for state in states for rows in state]
    chosen = [rows["episode"] % world == rank for rows in parts]
    return [
        {key: value[mask] for key, value in rows.items()}
        for rows, mask in zip(parts, chosen, strict=True)
    ]


def _every(rows: Rows, rank: int, world: int) -> Rows:
    return {key: value[rank::world].clone() for key, value in rows.items()}


def _joined(parts: list[Rows]) -> Rows:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]} if parts else {}


_DEALERS: Mapping[str, Callable[[list[Any], int, int], Any]] = {
    "replay": _dealt_replay,
    "pending": _dealt_pending,
}
