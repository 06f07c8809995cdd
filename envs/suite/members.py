"""The members of suites: names such as `MT10`, lists such as `[reach-v3,push-v3]`.

A suite is one environment whose episodes have several tasks, which the instruction names. The seed
of an episode chooses its task (`EnvSpec.seeded_tasks`), so that tasks are dealt evenly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

Suites = Mapping[str, tuple[str, ...]]
"""Name of a suite, without the prefix -> names of its members, without the prefix."""


def members_of(env_id: str, suites: Suites) -> tuple[str, ...] | None:
    """Return the members of a suite, or None for the id of a single environment.

    Example:
        >>> members_of("metaworld/[reach-v3,push-v3]", {})
        ('reach-v3', 'push-v3')
        >>> members_of("metaworld/reach-v3", {"MT2": ("reach-v3", "push-v3")}) is None
        True

    Args:
        env_id: Prefix, slash, and the name of a suite or a list of members in brackets.
        suites: The suites of the prefix.

    Raises:
        ValueError: a list has no members, has one twice, or lacks its closing bracket.
    """
    prefix, _, name = env_id.partition("/")
    if name in suites:
        return suites[name]
    if not name.startswith("["):
        return None
    if not name.endswith("]"):
        raise ValueError(
            f"id={env_id!r} begins a list of tasks without its end; write {prefix}/[TASK,TASK], "
            "in quotes if your shell reads brackets"
        )
    members = tuple(member.strip().removeprefix(f"{prefix}/") for member in name[1:-1].split(","))
    if "" in members:
        raise ValueError(f"id={env_id!r} has an empty task; write {prefix}/[TASK,TASK]")
    twice = sorted(member for member, count in Counter(members).items() if count > 1)
    if twice:
        raise ValueError(f"id={env_id!r} lists {twice} twice; list every task once")
    return members


def check_members(env_id: str, members: Iterable[str], known: Iterable[str]) -> None:
    """Reject members that an adapter with a complete list of tasks does not have.

    Raises:
        ValueError: a member is unknown. The message has the nearest names.
    """
    prefix, names = env_id.partition("/")[0], tuple(known)
    for member in members:
        if member not in names:
            near = get_close_matches(member, names, n=3, cutoff=0.3)
            hint = f"did you mean {near}?" if near else f"valid: {sorted(names)[:20]}"
            raise ValueError(f"task={member!r} of id={env_id!r} is no task of {prefix}/; {hint}")
