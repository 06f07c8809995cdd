"""Success: its one definition, and the strict reading of it from an environment's `info`.

An environment reports at every step whether the task is solved at that step. The success of an
episode follows from these flags by one of two rules. `once` is success at any executed step.
`at_end` is the flag of the last executed step. An environment that ends its episodes at success
has no difference between them.

`info` reports success under `success` or `is_success`, at its top, in `final_info` (Gymnasium's
vector environments, ManiSkill) or in `episode` (there also `success_once`). A flag is one boolean:
True or False, 0 or 1, or a 0-d array of these. Anything else is an error, because Python's own
conversion calls `[False]`, `"False"`, nan and -1 true.

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

SuccessRule = Literal["once", "at_end"]
"""`once`: solved at any executed step of the episode. `at_end`: solved at its last one."""
SUCCESS_RULES: tuple[SuccessRule, ...] = ("once", "at_end")
NAMES = ("success", "is_success")
MAX_PROBE_STEPS = 1000
"""Longest episode that is played to find out whether success is reported."""
EPISODE_NAMES = (*NAMES, "success_once")
"""Names inside `info["episode"]`."""


class EpisodeSuccess:
    """The success of the running episodes (E,) by both rules.

    Example:
        >>> success = EpisodeSuccess(2, torch.device("cpu"))
        >>> active = torch.tensor([True, True])
        >>> success.add(torch.tensor([True, False]), active)
        >>> success.add(torch.tensor([False, False]), active)
        >>> success.flags("once")["success"].tolist(), success.at_end.tolist()
        ([True, False], [False, False])

    Args:
        num_envs: E.
        device: Device of the flags.
    """

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.once = torch.zeros(num_envs, dtype=torch.bool, device=device)
        """Solved at any step so far (E,)."""
        self.at_end = torch.zeros_like(self.once)
        """Solved at the last step so far (E,)."""

    def start(self, env_idx: Tensor) -> None:
        """Begin new episodes in some environments (N,)."""
        self.once = self.once.index_fill(0, env_idx, False)
        self.at_end = self.at_end.index_fill(0, env_idx, False)

    def add(self, solved: Tensor, active: Tensor) -> None:
        """Add a step of the active environments (E,), whose flags are `solved` (E,)."""
        self.once = self.once | (solved & active)
        self.at_end = torch.where(active, solved, self.at_end)

    def flags(self, rule: SuccessRule) -> dict[str, Tensor]:
        """Return the entries (E,) of a decision: `success` by the rule, and both definitions."""
        chosen = self.once if rule == "once" else self.at_end
        return {"success": chosen, "success_once": self.once, "success_at_end": self.at_end}


def check_rule(rule: str) -> None:
    """Reject an unknown rule.

    Raises:
        ValueError: the rule is not one of `SUCCESS_RULES`.
    """
    if rule not in SUCCESS_RULES:
        raise ValueError(
            f"success={rule!r} must be 'once' (solved at any step of the episode) or 'at_end' "
            "(solved at its last step)"
        )


def find_success(info: Any) -> tuple[str, Any] | None:
    """Return the key and the raw value of the success in one environment's `info`, or None.

    Example:
        >>> find_success({"final_info": {"is_success": 1}})
        ('final_info.is_success', 1)
    """
    for prefix, part, names in _parts(info):
        for name in names:
            if name in part:
                return f"{prefix}{name}", part[name]
    return None


def parse_success(value: Any, key: str, env_id: str) -> bool:
    """Return a raw success value as a bool.

    Example:
        >>> parse_success(np.float32(1.0), "success", "gym/Push-v0")
        True

    Args:
        value: A bool, 0 or 1, or a 0-d array of these.
        key: Its name in `info`, for the message.
        env_id: The environment, for the message.

    Raises:
        ValueError: the value is anything else.
    """
    item = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(item, bool | int | float) and item in (0, 1):
        return bool(item)
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    raise ValueError(
        f"{env_id}: info[{key!r}]={shown} of type {type(value).__name__} is not a success flag; "
        "valid are True and False, 0 and 1, and 0-d arrays of these; report whether the task is "
        "solved at this step as one boolean"
    )


def read_success(info: Any, env_id: str) -> bool | None:
    """Return the success flag in one environment's `info`, or None if it reports none.

    Raises:
        ValueError: the value is not a flag.
    """
    found = find_success(info)
    return None if found is None else parse_success(found[1], found[0], env_id)


def read_successes(info: Any, num_envs: int, env_id: str) -> np.ndarray | None:
    """Return the success flags (E,) bool in a vector environment's `info`, or None without any.

    `_<key>` masks of Gymnasium mark the environments that reported the key. A flag of the final
    info belongs to the episode that has just ended, so it has priority over the flag of the start
    that followed. Environments without a flag get False.

    Example:
        >>> read_successes({"success": np.array([1, 0]), "_success": np.array([1, 1])}, 2, "x")
        array([ True, False])

    Raises:
        ValueError: a value is not a flag.
    """
    flags, reported = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
    for key, values, mask in _vector_parts(info, num_envs, env_id):
        for row in np.flatnonzero(mask & ~reported).tolist():
            flags[row] = parse_success(values[row], f"{key}[{row}]", env_id)
        reported |= mask
    return flags if reported.any() else None


def _parts(info: Any) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, ...]]]:
    """Yield the mappings of an `info` that may report success: prefix, mapping and its names."""
    if not isinstance(info, Mapping):
        return
    yield "", info, NAMES
    final = info.get("final_info")
    if isinstance(final, Mapping):
        yield "final_info.", final, NAMES
    for prefix, outer in (("", info), ("final_info.", final)):
        if isinstance(outer, Mapping) and isinstance(outer.get("episode"), Mapping):
            yield f"{prefix}episode.", outer["episode"], EPISODE_NAMES


def _vector_parts(info: Any, num_envs: int, env_id: str) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Yield the key, the values (E,) and the mask (E,) of each report of success."""
    final = info.get("final_info") if isinstance(info, Mapping) else None
    if isinstance(final, list | tuple | np.ndarray):  # Gymnasium before 1.0: one info a row
        found = [find_success(row) for row in final]
        keys = {row[0] for row in found if row is not None}
        for key in sorted(keys):
            mask = np.array([row is not None and row[0] == key for row in found])
            yield f"final_info.{key}", [row[1] if row else None for row in found], mask

    # the final info first
    for prefix, part, names in sorted(_parts(info), key=lambda row: "final_info" not in row[0]):
        name = next((name for name in names if name in part), None)
        if name is not None:
            values = _as_rows(part[name], num_envs, f"{prefix}{name}", env_id)
            mask = _mask(part, name, num_envs)
            outer = prefix.removesuffix(".")
            if outer in ("final_info", "episode"):
                mask &= _mask(info, outer, num_envs)
            elif outer:
                mask &= _mask(info, "final_info", num_envs) & _mask(final, "episode", num_envs)
            yield f"{prefix}{name}", values, mask


def _as_rows(value: Any, num_envs: int, key: str, env_id: str) -> Any:
    """Return the values of E environments as something with E items."""
    value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    rows = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=object)
    if rows.ndim == 0 and num_envs == 1:
        return rows[None]
    if rows.shape[:1] != (num_envs,):
        raise ValueError(
            f"{env_id}: info[{key!r}] of type {type(value).__name__} and shape {rows.shape} must "
            f"hold one success flag for each of the {num_envs} environments; return a boolean "
            f"array ({num_envs},)"
        )
    return rows


def _mask(part: Any, name: str, num_envs: int) -> np.ndarray:
    """Return Gymnasium's mask (E,) of the environments that reported an entry, all without one."""
    mask = part.get(f"_{name}") if isinstance(part, Mapping) else None
    if mask is None:
        return np.ones(num_envs, bool)
    mask = mask.detach().cpu().numpy() if hasattr(mask, "detach") else mask
    return np.array(mask, dtype=bool)
