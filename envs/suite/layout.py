"""The check that the members of a suite have one layout of states, actions and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pitune.envs.vector_env import EnvSpec


def check_same_spaces(
    suite_id: str,
    first: tuple[str, Mapping[str, Any]],
    other: tuple[str, Mapping[str, Any]],
) -> None:
    """Reject a member whose parts have other shapes than those of the first one.

    Example:
        >>> from gymnasium.spaces import Box
        >>> small, large = {"state": Box(-1, 1, (2,))}, {"state": Box(-1, 1, (3,))}
        >>> check_same_spaces("gym/[a,b]", ("a", small), ("b", large))
        Traceback (most recent call last):
        ValueError: gym/[a,b]: its tasks must share one layout, but a has {'state': (2,)} and b \
has {'state': (3,)}; leave one of them out

    Args:
        suite_id: Name for messages.
        first: Name of the first member, and its spaces by the names of the parts.
        other: Those of another member.

    Raises:
        ValueError: they differ.
    """
    layouts = [{key: space.shape for key, space in parts.items()} for _, parts in (first, other)]
    _compare(suite_id, (first[0], layouts[0]), (other[0], layouts[1]))


def check_same_specs(suite_id: str, first: EnvSpec, other: EnvSpec) -> None:
    """Reject a member whose spec has another layout than that of the first one.

    Args:
        suite_id: Name for messages.
        first: Spec of the first member.
        other: Spec of another member.

    Raises:
        ValueError: states, actions, cameras, control rates or devices differ.
    """
    layouts = [
        {
            "state": (spec.state_dim,),
            "action": (spec.action_low, spec.action_high),
            **{f"image/{name}": shape for name, shape in spec.cameras.items()},
            "control_hz": spec.control_hz,
            "device": str(spec.device),
        }
        for spec in (first, other)
    ]
    _compare(suite_id, (first.id, layouts[0]), (other.id, layouts[1]))


def _compare(
    suite_id: str, first: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]
) -> None:
    names = [*dict.fromkeys([*first[1], *other[1]])]
    different = [name for name in names if first[1].get(name) != other[1].get(name)]
    if different:
        texts = [
            f"{name} has { {key: layout.get(key) for key in different} }"
            for name, layout in (first, other)
        ]
        raise ValueError(
            f"{suite_id}: its tasks must share one layout, but {' and '.join(texts)}; leave one of "
            "them out"
        )
