from __future__ import annotations

import threading

import numpy as np
import pytest

from pitune.policies.real_time.action_queue import ActionQueue, seam_jerk

RAMP = np.arange(6.0)[:, None]  # action i is the number i


def test_each_time_gets_the_action_of_that_time() -> None:
    queue = ActionQueue(0.1)
    assert queue.get(0.0) is None
    assert queue.put(RAMP, observed_at=1.0, now=1.0)
    assert [queue.get(1 + 0.1 * i)[0] for i in range(6)] == [0, 1, 2, 3, 4, 5]  # type: ignore[index]
    assert queue.report().num_underruns == 0


def test_actions_that_came_too_late_are_skipped_and_counted() -> None:
    queue = ActionQueue(0.1)
    assert queue.put(RAMP, observed_at=1.0, now=1.25)
    assert queue.get(1.25) == 2.0  # step 2 began at 1.2
    assert queue.report().num_late == 3


def test_after_the_chunks_end_the_last_action_is_held_and_counted() -> None:
    queue = ActionQueue(0.1)
    queue.put(RAMP, observed_at=0.0, now=0.0)
    assert queue.get(0.59) == 5.0
    assert queue.report().num_underruns == 0
    assert queue.get(0.6) == 5.0
    assert queue.get(9.0) == 5.0
    assert queue.report().num_underruns == 2


@pytest.mark.parametrize(("observed_at", "now"), [(0.9, 1.2), (1.0, 1.2), (1.1, 1.7)])
def test_a_stale_chunk_is_dropped(observed_at: float, now: float) -> None:
    queue = ActionQueue(0.1)
    queue.put(RAMP, observed_at=1.0, now=1.0)
    assert not queue.put(RAMP + 100, observed_at=observed_at, now=now)
    assert queue.get(1.3) == 3.0
    assert queue.report().num_stale == 1


def test_a_newer_chunk_replaces_the_rest_of_the_old_one() -> None:
    queue = ActionQueue(0.1)
    queue.put(RAMP, observed_at=0.0, now=0.0)
    queue.put(RAMP + 100, observed_at=0.2, now=0.3)
    assert queue.get(0.3) == 101.0


def test_the_seam_is_blended_linearly() -> None:
    queue = ActionQueue(0.1, blend_steps=4)
    queue.put(np.zeros((9, 1)), observed_at=0.0, now=0.0)
    queue.put(np.ones((9, 1)), observed_at=0.1, now=0.2)
    taken = [queue.get(0.2 + 0.1 * i)[0] for i in range(6)]  # type: ignore[index]
    np.testing.assert_allclose(taken, [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-9)


def test_a_third_chunk_in_the_middle_of_a_blend_does_not_jump() -> None:
    """The robot passes over from where it is, not from the second chunk's plan."""
    queue = ActionQueue(0.1, blend_steps=4)
    queue.put([[0.0]] * 20, observed_at=0.0, now=0.0)
    queue.put([[8.0]] * 20, observed_at=0.1, now=0.2)
    assert queue.get(0.4) == pytest.approx(4.0)  # half of the way from 0 to 8
    queue.put([[-8.0]] * 20, observed_at=0.3, now=0.4)
    assert queue.get(0.4) == pytest.approx(4.0)  # no jump; from the second chunk it were 8
    # half of the way to -8, from the end of the first passage
    assert queue.get(0.6) == pytest.approx(0.0)
    assert queue.get(0.8) == pytest.approx(-8.0)
    largest = 8 / 4 * 2 + 1e-6  # two passages at once, over one step
    fine = [float(queue.get(0.4 + 0.01 * step)[0]) for step in range(50)]  # type: ignore[index]
    assert np.abs(np.diff(fine)).max() < largest / 5


def test_chunks_that_come_faster_than_the_blend_are_forgotten() -> None:
    queue, blend = ActionQueue(0.1, blend_steps=4), 4
    for number in range(200):
        queue.put([[float(number)]] * 50, observed_at=0.1 * number, now=0.1 * number)
    depth, chunk = 0, queue._chunk
    while chunk is not None:
        depth, chunk = depth + 1, chunk.before
    assert depth <= blend + 2
    # the average of the last plans, which is behind the newest one
    assert 190 < float(queue.get(19.9)[0]) < 199  # type: ignore[index]


def test_a_faster_robot_gets_interpolated_actions() -> None:
    queue = ActionQueue(0.1, interpolate=True)
    queue.put(RAMP, observed_at=0.0, now=0.0)
    taken = [queue.get(0.025 * i)[0] for i in range(5)]  # type: ignore[index]
    np.testing.assert_allclose(taken, [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    held = ActionQueue(0.1)
    held.put(RAMP, observed_at=0.0, now=0.0)
    assert [held.get(0.025 * i)[0] for i in range(5)] == [0, 0, 0, 0, 1]  # type: ignore[index]


def test_the_remainder_begins_at_the_present_action() -> None:
    queue = ActionQueue(0.1)
    assert queue.remainder(0.0) is None
    queue.put(RAMP, observed_at=0.0, now=0.0)
    np.testing.assert_array_equal(queue.remainder(0.2), RAMP[2:])
    assert len(queue.remainder(5.0)) == 0  # type: ignore[arg-type]
    queue.clear()
    assert queue.remainder(0.0) is None


def test_a_chunk_of_the_last_episode_is_dropped_after_the_queue_was_cleared() -> None:
    queue = ActionQueue(0.1)
    queue.put(RAMP, observed_at=0.0, now=0.0)
    queue.clear(now=0.3)
    assert not queue.put(RAMP, observed_at=0.2, now=0.35)
    assert queue.get(0.35) is None
    assert queue.put(RAMP, observed_at=0.3, now=0.4)
    assert queue.report().num_stale == 1


def test_a_clock_that_was_read_before_the_chunk_came_gets_its_beginning() -> None:
    queue = ActionQueue(0.1, blend_steps=2)
    queue.put(RAMP, observed_at=0.0, now=0.0)
    queue.put(RAMP + 100, observed_at=0.2, now=0.3)
    assert queue.get(0.25) == 2.0  # the old plan's, not beyond it
    np.testing.assert_array_equal(queue.remainder(0.15), RAMP + 100)


def test_a_chunk_is_compared_with_the_one_before_under_the_lock() -> None:
    class Watched(ActionQueue):
        """A queue whose chunk may be read only by the thread that holds the lock."""

        def __getattribute__(self, name: str) -> object:
            if name == "_chunk":
                assert object.__getattribute__(self, "_lock").locked()
            return object.__getattribute__(self, name)

    queue = Watched(0.1)
    assert queue.put(RAMP, observed_at=0.0, now=0.0)
    assert queue.put(RAMP, observed_at=0.1, now=0.1)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros(3), r"must be \(H, d\)"),
        (np.zeros((0, 2)), r"must be \(H, d\)"),
        ([[np.nan]], "not finite"),
        (np.zeros((3, 2)), "2 dimensions, the chunk before had 1"),
    ],
)
def test_a_wrong_chunk_is_refused_and_the_old_one_goes_on(chunk: object, message: str) -> None:
    queue = ActionQueue(0.1)
    queue.put(RAMP, observed_at=0.0, now=0.0)
    with pytest.raises(ValueError, match=message):
        queue.put(chunk, observed_at=0.1, now=0.1)  # type: ignore[arg-type]
    assert queue.get(0.2) == 2.0


@pytest.mark.parametrize(
    "settings", [{"step_seconds": 0.0}, {"step_seconds": 1.0, "blend_steps": -1}]
)
def test_a_wrong_setting_is_refused(settings: dict[str, float]) -> None:
    name, value = list(settings.items())[-1]
    with pytest.raises(ValueError, match=f"{name}={value}"):
        ActionQueue(**settings)  # type: ignore[arg-type]


def test_two_threads_never_see_half_a_chunk() -> None:
    queue = ActionQueue(1e-3)
    queue.put(np.zeros((5, 64)), observed_at=0.0, now=0.0)
    torn = []

    def robot() -> None:
        for step in range(5000):
            action = queue.get(step * 1e-3)
            assert action is not None
            if len(set(action.tolist())) > 1:
                torn.append(action)

    thread = threading.Thread(target=robot)
    thread.start()
    for number in range(1, 2000):
        queue.put(np.full((5, 64), float(number)), observed_at=number * 1e-3, now=number * 1e-3)
    thread.join()
    assert not torn
    assert queue.report().num_actions == 5000


def test_seam_jerk_is_one_for_a_line_with_even_noise_and_large_for_jumps() -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(4000, 2)), axis=0)
    starts = list(range(10, 4000, 10))
    assert seam_jerk(smooth, starts) == pytest.approx(1.0, abs=0.1)
    jumps = smooth.copy()
    for start in starts:
        jumps[start:] += 20
    assert seam_jerk(jumps, starts) > 5
    with pytest.raises(ValueError, match="no seam"):
        seam_jerk(smooth, [])
