"""The queue between a policy that is slow and a robot that must not wait.

Action i of a chunk belongs to the time of its observation plus i steps. The robot asks for the
action of the present time, so the actions that came too late are skipped, never executed late.
Letters: H action horizon, d robot action dim.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class QueueReport:
    """Counts since the start of a queue.

    Example:
        >>> QueueReport(num_actions=100, num_chunks=25).num_underruns
        0
    """

    num_actions: int = 0
    """Actions that the robot took."""
    num_chunks: int = 0
    """Chunks that were accepted."""
    num_underruns: int = 0
    """Actions that were held because the chunk had ended before the next one came."""
    num_stale: int = 0
    """Chunks that were dropped: a chunk of a later observation was there already, the queue was
    cleared after their observation, or all their actions were over."""
    num_late: int = 0
    """Actions of accepted chunks whose time was over at the chunk's arrival."""


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Actions (H, d) from a time on."""

    actions: np.ndarray
    start: float
    """Time of the observation [s]."""
    arrival: float
    """Time from which on the chunk is in force [s]."""
    before: _Chunk | None = None
    """The chunk that the robot passes over from, which may still pass over from another one."""


class ActionQueue:
    """Hands a robot the action of the present time. All methods may be called by any thread.

    Args:
        step_seconds: Time between two actions of a chunk [s].
        blend_steps: Steps over which the robot passes from the old chunk to the new one, linearly.
            0 changes at once.
        interpolate: Whether an action between two steps is their linear interpolation, for robots
            that run faster than the policy's steps. Otherwise each action is held for its step.

    Raises:
        ValueError: a setting is out of range, or a chunk has another shape or is not finite.

    Example:
        >>> queue = ActionQueue(step_seconds=0.1)
        >>> queue.put([[0.0], [1.0], [2.0]], observed_at=10.0, now=10.1)
        True
        >>> queue.get(now=10.1).tolist(), queue.get(now=10.2).tolist()
        ([1.0], [2.0])
        >>> queue.get(now=10.3).tolist(), queue.report().num_underruns
        ([2.0], 1)
    """

    def __init__(
        self, step_seconds: float, *, blend_steps: int = 0, interpolate: bool = False
    ) -> None:
        if not 0 < step_seconds < float("inf"):
            raise ValueError(f"step_seconds={step_seconds} must be positive and finite")
        if blend_steps < 0:
            raise ValueError(f"blend_steps={blend_steps} must be at least 0")
        self.step_seconds, self.blend_steps = step_seconds, blend_steps
        self.interpolate = interpolate
        self._lock = threading.Lock()
        self._chunk: _Chunk | None = None
        self._cleared = -float("inf")
        self._counts = dict.fromkeys(QueueReport.__dataclass_fields__, 0)

    def put(self, actions: np.ndarray | list[list[float]], observed_at: float, now: float) -> bool:
        """Take a chunk over, and return whether it was accepted.

        Args:
            actions: (H, d) [robot units], of which the first belongs to the observation's time.
            observed_at: Time of the observation [s], by the clock of `now`.
            now: Present time [s], such as `time.monotonic()`.
        """
        with self._lock:
            # the robot may be in the middle of a passage to the present chunk
            before = self._needed(self._chunk, now)
            chunk = _Chunk(self._checked(actions), observed_at, now, before)
            late = max(0, int(np.ceil(self._position(chunk, now) - 1e-9)))
            outdated = self._chunk is not None and observed_at <= self._chunk.start
            outdated = outdated or observed_at < self._cleared
            if outdated or late >= len(chunk.actions):
                self._counts["num_stale"] += 1
                return False
            self._counts["num_chunks"] += 1
            self._counts["num_late"] += late
            self._chunk = chunk
            return True

    def get(self, now: float) -> np.ndarray | None:
        """Return the action (d,) of the present time [robot units], or None before any chunk.

        After a chunk's end its last action is held, and the underrun is counted.
        """
        with self._lock:
            if self._chunk is None:
                return None
            self._counts["num_actions"] += 1
            # the last action lasts one step
            if self._position(self._chunk, now) >= len(self._chunk.actions) - 1e-9:
                self._counts["num_underruns"] += 1
            return self._planned(self._chunk, now)

    def remainder(self, now: float) -> np.ndarray | None:
        """Return the actions (rest, d) of the present chunk from now on, or None before any chunk.

        They condition the next chunk in real-time chunking, see `policies.flow.real_time`.
        """
        with self._lock:
            if self._chunk is None:
                return None
            index = max(0, int(np.floor(self._position(self._chunk, now) + 1e-9)))
            return self._chunk.actions[index:].copy()

    def clear(self, now: float | None = None) -> None:
        """Drop all actions, at the end of an episode. The counts go on.

        Args:
            now: Present time [s]. Chunks of earlier observations, which the policy may still
                compute, are then dropped as stale.
        """
        with self._lock:
            self._chunk = None
            self._cleared = self._cleared if now is None else now

    def report(self) -> QueueReport:
        """Return the counts since the start."""
        with self._lock:
            return QueueReport(**self._counts)

    def _position(self, chunk: _Chunk, now: float) -> float:
        """Return the time since the chunk's observation [steps]."""
        return (now - chunk.start) / self.step_seconds

    def _progress(self, chunk: _Chunk, now: float) -> float:
        """Return the share of the passage to a chunk that is over, 1 without a passage."""
        if chunk.before is None or not self.blend_steps:
            return 1.0
        # a robot may have read its clock before the chunk arrived
        since = max(0.0, now - chunk.arrival)
        return min(1.0, since / (self.blend_steps * self.step_seconds))

    def _needed(self, chunk: _Chunk | None, now: float) -> _Chunk | None:
        """Return a chunk with those before it that the robot still passes over from."""
        if chunk is None or chunk.before is None:
            return chunk
        if self._progress(chunk, now) >= 1:
            return replace(chunk, before=None)
        return replace(chunk, before=self._needed(chunk.before, now))

    def _planned(self, chunk: _Chunk, now: float) -> np.ndarray:
        """Return the action (d,) on the way from the chunks before to a chunk."""
        action, progress = self._at(chunk, now), self._progress(chunk, now)
        if chunk.before is None or progress >= 1:
            return action
        # the passage from the chunk before may itself be under way
        return progress * action + (1 - progress) * self._planned(chunk.before, now)

    def _at(self, chunk: _Chunk, now: float) -> np.ndarray:
        """Return the chunk's action (d,) of a time, its last one after its end."""
        last = len(chunk.actions) - 1
        # the small number keeps the rounding of `now` from selecting the action before
        position = min(max(self._position(chunk, now) + 1e-9, 0.0), float(last))
        index = int(position)
        action = chunk.actions[index]
        if self.interpolate and index < last:
            share = position - index
            return (1 - share) * action + share * chunk.actions[index + 1]
        return action.copy()

    def _checked(self, actions: np.ndarray | list[list[float]]) -> np.ndarray:
        """Return a chunk (H, d) as float64."""
        chunk = np.array(actions, dtype=np.float64)
        if chunk.ndim != 2 or not chunk.size:
            raise ValueError(f"a chunk must be (H, d) with at least one action, not {chunk.shape}")
        if self._chunk is not None and chunk.shape[1] != self._chunk.actions.shape[1]:
            raise ValueError(
                f"the chunk's actions have {chunk.shape[1]} dimensions, the chunk before had "
                f"{self._chunk.actions.shape[1]}"
            )
        if not np.isfinite(chunk).all():
            raise ValueError("the chunk holds actions that are not finite; the robot keeps its own")
        return chunk


def seam_jerk(actions: np.ndarray, chunk_starts: list[int]) -> float:
    """Return the mean size of the second difference of actions at the seams, over that elsewhere.

    1 means that a seam is as smooth as the inside of a chunk.

    Args:
        actions: Executed actions (steps, d).
        chunk_starts: Steps at which a new chunk came into force.

    Raises:
        ValueError: there is no seam, or nothing but seams.
    """
    at_seam, elsewhere = second_differences(actions, chunk_starts)
    if not len(at_seam) or not len(elsewhere):
        raise ValueError(f"{len(chunk_starts)} chunk starts leave no seam or nothing else")
    return float(at_seam.mean() / max(elsewhere.mean(), 1e-12))


def second_differences(
    actions: np.ndarray, chunk_starts: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes of the second differences at the seams and those elsewhere.

    Args:
        actions: Executed actions (steps, d).
        chunk_starts: Steps at which a new chunk came into force.

    Example:
        >>> at_seam, elsewhere = second_differences(np.array([[0.0], [1], [2], [5]]), [3])
        >>> at_seam.tolist(), elsewhere.tolist()
        ([2.0], [0.0])
    """
    jump = np.linalg.norm(np.diff(actions, n=2, axis=0), axis=1)  # (steps - 2,), around step i + 1
    at_seam = np.zeros(len(jump), dtype=bool)
    for start in chunk_starts:
        # the differences that cross from step start - 1 to start
        at_seam[[i for i in (start - 2, start - 1) if 0 <= i < len(jump)]] = True
    return jump[at_seam], jump[~at_seam]
