"""One look at an environment before it is used: its spaces, its signals, and its starts.

The probe plays with an instance of its own, if possible in a process of its own, so that nothing of
it is left in the environments of a run. It looks for the success signal in a whole episode, because
some environments report it at the end only. It resets twice with one seed, to see whether the seed
fixes the start. And it collects the instructions of several episodes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium
import numpy as np

from pitune.envs.success import MAX_PROBE_STEPS, read_success
from pitune.envs.workers.observation import Arrays, ObsReader
from pitune.envs.workers.spaces import SubEnvSpec, control_rate, read_actions
from pitune.envs.workers.surroundings import BreakdownError

BREAKDOWNS = (BreakdownError, FloatingPointError)
"""Errors of one episode. All others concern every episode."""
SEEDS = 5
"""Seeds that are tried until an episode begins."""
MAX_SECONDS = 20.0
"""Time after which the search for a success signal, and that for instructions, ends [s]."""
SAME_WORDS = 8
"""Episodes with one instruction after which there is only this one."""
QUIET = 64
"""Episodes without a new instruction after which a varying one is known."""
PIXEL_TOLERANCE = 2.0
"""Mean difference of two pictures of one start, because renderers are not exact [levels]."""


class Episodes(Protocol):
    """The environments that a probe plays with.

    Example:
        >>> def steps(episodes: Episodes, action: np.ndarray) -> int:
        ...     episodes.begin(0, seed=0)
        ...     num = 1
        ...     while not episodes.advance(0, action)[2]:
        ...         num += 1
        ...     return num
    """

    reader: ObsReader

    def begin(self, row: int, seed: int) -> tuple[Any, Mapping[str, Any]]:
        """Start an episode and return the raw observation and its info."""

    def advance(self, row: int, action: np.ndarray) -> tuple[Any, ...]:
        """Take one step and return its five results."""

    def words(self, row: int, raw: Any, info: Mapping[str, Any]) -> str | None:
        """Return the instruction of the episode that `begin` has started, or None."""

    def env(self, row: int) -> gymnasium.Env:
        """Return the environment of a row, made again if it was discarded."""

    def discard(self, row: int) -> None:
        """Close and forget an environment."""


def describe(episodes: Episodes, env_id: str, *, verify: bool) -> SubEnvSpec:
    """Return the spec of environment 0.

    Args:
        episodes: Its first row is played with.
        env_id: Name for messages.
        verify: Whether to play a whole episode and to compare starts. Otherwise one step is taken.

    Raises:
        ValueError: a space, an observation or a result is not usable.
        BreakdownError: no episode could be begun.
        FloatingPointError: no start is finite.
    """
    env, reader = episodes.env(0), episodes.reader
    bounds = read_actions(env_id, env.action_space)
    middle = (np.array(bounds["action_low"]) + np.array(bounds["action_high"])) / 2

    # an episode with the middle of the bounds
    for seed in range(SEEDS):
        try:
            raw, info = episodes.begin(0, seed)
            first, words = _start(reader, raw), episodes.words(0, raw, info)
            has_success = _plays_with_success(episodes, env_id, info, middle, verify)
            break
        except BREAKDOWNS:
            episodes.discard(0)
            if seed == SEEDS - 1:
                raise

    seeded = not verify or _is_repeated(episodes, seed, first, words)
    env = episodes.env(0)  # a breakdown may have replaced it
    return SubEnvSpec(
        state_dim=reader.state_dim,
        cameras=reader.cameras,
        **bounds,
        max_episode_steps=env.spec.max_episode_steps if env.spec else None,
        control_hz=control_rate(env),
        success_signal=has_success,
        expert=env.has_wrapper_attr("expert_action"),
        num_tasks=int(reader.task_ids.n) if reader.task_ids is not None else 1,
        instructions=_instructions(episodes, words) if verify and words else (),
        seeded_starts=seeded,
    )


def _start(reader: ObsReader, raw: Any) -> Arrays:
    """Return a first observation, which must be finite."""
    obs = reader.read(raw)
    if not np.isfinite(obs["state"]).all():
        raise FloatingPointError("the first observation is not finite")
    return obs


def _plays_with_success(
    episodes: Episodes, env_id: str, info: Mapping[str, Any], action: np.ndarray, whole: bool
) -> bool:
    """Play one step, or until the end or a success report, and return whether there was one.

    A breakdown in the first step is raised. A later one is reported when an episode breaks down so.
    """
    begun, found = time.monotonic(), read_success(info, env_id) is not None
    for step in range(MAX_PROBE_STEPS):
        try:
            raw, _, terminated, truncated, info = episodes.advance(0, action)
        except BREAKDOWNS:
            if step == 0:
                raise
            episodes.discard(0)
            break
        with contextlib.suppress(FloatingPointError):
            episodes.reader.read(raw)
        found |= read_success(info, env_id) is not None
        late = time.monotonic() - begun > MAX_SECONDS
        if found or not whole or terminated or truncated or late:
            break
    return found


def _is_repeated(episodes: Episodes, seed: int, first: Arrays, words: str | None) -> bool:
    """Return whether a reset with the same seed gives the same first observation."""
    try:
        raw, info = episodes.begin(0, seed)
        again = episodes.reader.read(raw)
        if episodes.words(0, raw, info) != words:
            return False
    except BREAKDOWNS:
        return False
    return all(_same(key, value, again[key]) for key, value in first.items())


def _same(key: str, first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two first observations of one start are the same."""
    if key.startswith("image/"):
        difference = np.abs(first.astype(float) - second.astype(float)).mean()
        return bool(difference <= PIXEL_TOLERANCE)
    return bool(np.array_equal(first, second))


def _instructions(episodes: Episodes, words: str) -> tuple[str, ...]:
    """Return the instructions of several episodes, in alphabetical order."""
    known, quiet, begun = {words}, 0, time.monotonic()
    for seed in range(SEEDS, SEEDS + 100 * QUIET):
        try:
            raw, info = episodes.begin(0, seed)
            found = episodes.words(0, raw, info)
        except BREAKDOWNS:  # such a start has no instruction
            episodes.discard(0)
            continue
        quiet = 0 if found and found not in known else quiet + 1
        known |= {found} if found else set()
        enough = SAME_WORDS if len(known) == 1 else QUIET
        if quiet >= enough or time.monotonic() - begun > MAX_SECONDS:
            break
    return tuple(sorted(known))
