"""`WorkerEnv`: its results, and the faults that it survives."""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from pitune.envs.workers.env import WorkerEnv
from pitune.envs.workers.pool import Timeouts
from pitune.envs.workers.process import Worker

MAX_FAILURES = 3
"""Set for the environments of these tests."""
GO, RAISE, NAN, KILL, HANG = 0.0, 1.0, 0.5, -1.0, -0.5
"""Actions of `Clock` and their effects."""


class Clock(gymnasium.Env):
    """State (seed, time). Ends at time `seed % 10` (0: never), with success if the seed >= 100."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, reports_success: bool = True) -> None:
        self.reports_success = reports_success
        self.state = np.zeros(2)  # one buffer, returned at every step

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.state[:] = seed, 0
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if action[0] == RAISE:
            raise RuntimeError("the gripper fell off")
        if action[0] == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if action[0] == HANG:
            time.sleep(600)
        self.state[1] = np.nan if action[0] == NAN else self.state[1] + 1
        end = bool(self.state[1] == self.state[0] % 10)
        info = {"success": np.bool_(end and self.state[0] >= 100)} if self.reports_success else {}
        return self.state, float(self.state[1]), end, False, info

    def expert_action(self) -> np.ndarray:
        return np.array([self.state[1] / 10])

    def render(self) -> np.ndarray:
        return np.full((2, 3, 3), self.state[1], np.uint8)


class WithPictures(gymnasium.Env):
    """Observes a state, a picture with one bright pixel, and a task."""

    observation_space = spaces.Dict(
        {
            "state": spaces.Box(-1, 1, (2, 2), np.float32),
            "image/wrist": spaces.Box(0, 255, (4, 5, 3), np.uint8),
            "task_id": spaces.Discrete(7),
        }
    )
    action_space = spaces.Box(-1, 1, (2, 3), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        picture = np.zeros((4, 5, 3), np.uint8)
        picture[1, 2, 0] = 200
        return {"state": np.eye(2), "image/wrist": picture, "task_id": int(seed or 0) % 7}, {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        obs, info = self.reset()
        obs["state"] = action[:, :2]
        return obs, 0.0, False, False, {**info, "is_success": True}


class WithSpaces(Clock):
    """A clock with other spaces."""

    def __init__(self, **wrong: spaces.Space) -> None:
        super().__init__()
        for name, space in wrong.items():
            setattr(self, name, space)


def raise_when_made() -> gymnasium.Env:
    raise OSError("no license server")


def hang_when_made() -> gymnasium.Env:
    time.sleep(600)
    raise AssertionError


def make(num_envs: int, num_workers: int = 0, factory: Any = Clock, **settings: Any) -> WorkerEnv:
    defaults = {"id": "toy/Clock", "max_episode_steps": 50, "simulator": "none"}
    settings = {**defaults, "max_failures": MAX_FAILURES, **settings}
    return WorkerEnv(factory, num_envs=num_envs, num_workers=num_workers, **settings)


def seeds(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def step(env: WorkerEnv, *actions: float, active: list[int] | None = None) -> Any:
    """Step the environments in `active`, all of them by default, with an action each."""
    mask = torch.ones(len(actions), dtype=torch.bool)
    if active is not None:
        mask = torch.isin(torch.arange(len(actions)), torch.tensor(active))
    return env.step(torch.tensor(actions)[:, None], mask)


@pytest.fixture(scope="module")
def processes() -> Iterator[WorkerEnv]:
    env = make(4, num_workers=2)
    yield env
    env.close()


def trace(env: WorkerEnv) -> list[list]:
    """Return the results of three environments that end at times 2, 3 and 3, and are reset."""
    results = [env.reset(seeds(102, 3, 13))["state"].tolist()]
    active = [0, 1, 2]
    for _ in range(3):
        result = step(env, GO, GO, GO, active=active)
        ended = (result.terminated | result.truncated).tolist()
        active = [row for row in active if not ended[row]]
        results.append([result.obs["state"].tolist(), result.reward.tolist(), ended])
    results.append(env.reset(seeds(9, 8), seeds(2, 0))["state"].tolist())
    results.append(step(env, GO, GO, GO, active=[0, 2]).obs["state"].tolist())
    return results


EXPECTED_TRACE = [
    [[102, 0], [3, 0], [13, 0]],
    [[[102, 1], [3, 1], [13, 1]], [1, 1, 1], [False, False, False]],
    [[[102, 2], [3, 2], [13, 2]], [2, 2, 2], [True, False, False]],
    # The first waits at its last observation, the others end together.
    [[[102, 2], [3, 3], [13, 3]], [0, 3, 3], [False, True, True]],
    # The second still waits, and each of the others starts with its own seed.
    [[8, 0], [3, 3], [9, 0]],
    [[8, 1], [3, 3], [9, 1]],
]


def test_frames_are_right_over_ends_that_are_staggered_and_together() -> None:
    assert trace(make(3)) == EXPECTED_TRACE


def test_the_spec_describes_the_sub_environment() -> None:
    spec = make(2, tasks=("wait",)).spec
    assert (spec.id, spec.num_envs, spec.state_dim, spec.tasks) == ("toy/Clock", 2, 2, ("wait",))
    assert (spec.action_low, spec.action_high, spec.action_dim) == ((-1.0,), (1.0,), 1)
    assert (spec.max_episode_steps, spec.control_hz, spec.success_signal) == (50, 5, True)
    assert not make(1, factory=functools.partial(Clock, reports_success=False)).spec.success_signal


def test_returned_tensors_are_never_written_again() -> None:
    env = make(1)
    first = env.reset(seeds(5))
    second = step(env, GO)
    step(env, GO)
    assert first["state"].tolist() == [[5, 0]]
    assert second.obs["state"].tolist() == [[5, 1]]


def test_success_and_failure_are_distinguished() -> None:
    env = make(2)
    env.reset(seeds(101, 1))
    result = step(env, GO, GO)
    assert result.terminated.tolist() == [True, True]
    assert result.info["success"].tolist() == [True, False]
    assert result.info["invalid"].tolist() == [False, False]
    assert result.reward.dtype == torch.float32


def test_time_limit_truncates_unless_the_task_ended() -> None:
    env = make(2, max_episode_steps=2)
    env.reset(seeds(0, 102))
    step(env, GO, GO)
    result = step(env, GO, GO)
    assert result.truncated.tolist() == [True, False]
    assert result.terminated.tolist() == [False, True]
    env.reset(seeds(0), seeds(0))
    assert step(env, GO, GO, active=[0]).truncated.tolist() == [False, False]


def test_a_dict_observation_keeps_pictures_and_tasks() -> None:
    env = make(2, factory=WithPictures)
    obs = env.reset(seeds(3, 8))
    assert obs["state"].shape == (2, 4)
    assert obs["task_id"].tolist() == [3, 1]
    assert env.spec.cameras == {"wrist": (3, 4, 5)}
    assert obs["image/wrist"].dtype == torch.uint8
    assert obs["image/wrist"].nonzero().tolist() == [[0, 0, 1, 2], [1, 0, 1, 2]]
    result = env.step(torch.arange(12.0).reshape(2, 6), torch.tensor([True, True]))
    assert result.obs["state"].tolist() == [[0, 1, 3, 4], [6, 7, 9, 10]]
    assert result.info["success"].all()


def test_the_expert_acts_in_the_current_state() -> None:
    env = make(2)
    expert = env.expert()
    assert expert.act().tolist() == [[0], [0]]
    env.reset(seeds(0, 0))
    step(env, GO, GO, active=[1])
    torch.testing.assert_close(expert.act(), torch.tensor([[0.0], [0.1]]))


def test_render_returns_a_picture_of_every_environment() -> None:
    env = make(2)
    with pytest.raises(RuntimeError, match="nothing to render yet; reset it first"):
        env.render()
    env.reset(seeds(0), seeds(1))
    step(env, GO, GO, active=[1])
    pictures = env.render()
    assert pictures.shape == (2, 2, 3, 3)
    assert pictures[:, 0, 0, 0].tolist() == [0, 1]


def test_missing_pictures_and_a_missing_expert_raise() -> None:
    env = make(1, factory=WithPictures)
    env.reset(seeds(0))
    with pytest.raises(RuntimeError, match=r"toy/Clock cannot render: .* install libegl1"):
        env.render()
    with pytest.raises(ValueError, match=r"toy/Clock has no expert; .* expert_action"):
        env.expert()


@pytest.mark.parametrize("action", [RAISE, NAN])
def test_a_breakdown_ends_one_episode_only(action: float, caplog: pytest.LogCaptureFixture) -> None:
    env = make(2)
    env.reset(seeds(5, 6))
    step(env, GO, GO)
    with caplog.at_level(logging.WARNING):
        result = step(env, action, GO)
    assert "environment 0 broke down: " in caplog.text
    assert ("fell off" if action == RAISE else "state that is not finite") in caplog.text
    assert result.info["invalid"].tolist() == [True, False]
    assert result.truncated.tolist() == [True, False]
    assert not result.terminated.any()
    assert result.obs["state"].tolist() == [[5, 1], [6, 2]]
    assert env.reset(seeds(7), seeds(0))["state"].tolist() == [[7, 0], [6, 2]]
    assert step(env, GO, GO).obs["state"].tolist() == [[7, 1], [6, 3]]


def test_repeated_breakdowns_raise_with_the_traceback() -> None:
    env = make(1)
    for number in range(MAX_FAILURES):
        env.reset(seeds(number))
        if number < MAX_FAILURES - 1:
            step(env, RAISE)
    with pytest.raises(RuntimeError, match=r"broke down 3 times in a row(.|\n)*gripper fell off"):
        step(env, RAISE)


def test_a_regular_end_of_an_episode_resets_the_count_of_breakdowns() -> None:
    env = make(1)
    for _ in range(MAX_FAILURES + 1):
        env.reset(seeds(1))
        step(env, RAISE)
        env.reset(seeds(1))
        assert step(env, GO).terminated.all()


def test_an_observation_of_another_shape_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"toy/Clock: observation 'state' has shape \(2,\), but"):
        make(1, factory=functools.partial(WithSpaces, observation_space=spaces.Box(0, 1, (3,))))


def test_an_ended_environment_waits_for_its_reset() -> None:
    env = make(2)
    with pytest.raises(ValueError, match=r"active environments \[0, 1\] have no running episode"):
        step(env, GO, GO)
    env.reset(seeds(1, 2))
    step(env, GO, GO)
    with pytest.raises(ValueError, match=r"active environments \[0\] have no running episode"):
        step(env, GO, GO)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"action_space": spaces.Discrete(3)}, r"Discrete\(3\) is not continuous"),
        ({"action_space": spaces.Box(-np.inf, 1, (1,))}, r"infinite bounds; .*TransformAction"),
        ({"observation_space": spaces.Discrete(3)}, r"'state' is Discrete.*FlattenObservation"),
        (
            {"observation_space": spaces.Dict({"image/top": spaces.Box(0, 9, (4, 4, 3))})},
            r"'image/top' is Box.*uint8",
        ),
    ],
)
def test_unusable_spaces_are_refused(wrong: dict[str, spaces.Space], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(1, factory=functools.partial(WithSpaces, **wrong))


def test_unusable_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs=0 must be at least 1"):
        make(0)
    with pytest.raises(ValueError, match="num_workers=-1 at least 0"):
        make(1, num_workers=-1)
    with pytest.raises(ValueError, match="max_episode_steps=None must be at least 1"):
        make(1, max_episode_steps=None)


def test_a_closed_environment_raises() -> None:
    env = make(1)
    env.reset(seeds(0))
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="toy/Clock is closed; make a new one"):
        step(env, GO)


def test_worker_processes_return_the_same_results_as_this_process() -> None:
    env = make(3, num_workers=2)
    assert trace(env) == EXPECTED_TRACE
    assert env.expert().act().shape == (3, 1)
    assert env.render()[:, 0, 0, 0].tolist() == [1, 3, 1]
    workers = list(env._pool.workers)
    env.close()
    assert workers
    for worker in workers:
        assert isinstance(worker, Worker)
        assert not worker._process.is_alive()


def test_a_killed_worker_ends_its_own_episodes_only(
    processes: WorkerEnv, caplog: pytest.LogCaptureFixture
) -> None:
    processes.reset(seeds(5, 6, 7, 8))
    step(processes, GO, GO, GO, GO)
    with caplog.at_level(logging.WARNING):
        result = step(processes, KILL, GO, GO, GO)
    assert "worker of environments 0 to 1 ended with exit code -9; it is replaced" in caplog.text
    assert result.info["invalid"].tolist() == [True, True, False, False]
    assert result.truncated.tolist() == [True, True, False, False]
    assert result.obs["state"].tolist() == [[5, 1], [6, 1], [7, 2], [8, 2]]
    processes.reset(seeds(1, 101), seeds(0, 1))
    result = step(processes, GO, GO, GO, GO)
    assert result.obs["state"].tolist() == [[1, 1], [101, 1], [7, 3], [8, 3]]
    assert result.info["success"].tolist() == [False, True, False, False]


def test_an_idle_environment_that_lost_its_worker_is_invalid_at_its_next_step(
    processes: WorkerEnv,
) -> None:
    processes.reset(seeds(5, 6, 7, 8))
    result = step(processes, GO, GO, KILL, GO, active=[2])
    assert result.info["invalid"].tolist() == [False, False, True, False]
    result = step(processes, GO, GO, GO, GO, active=[0, 3])
    assert result.info["invalid"].tolist() == [False, False, False, True]
    assert result.obs["state"].tolist() == [[5, 1], [6, 0], [7, 0], [8, 0]]


def test_a_worker_that_dies_in_a_reset_is_replaced_at_once(processes: WorkerEnv) -> None:
    processes.reset(seeds(5, 6, 7, 8))
    worker = processes._pool.workers[0]
    assert isinstance(worker, Worker)
    worker._process.kill()
    worker._process.join()
    obs = processes.reset(seeds(9), seeds(0))
    assert obs["state"].tolist() == [[9, 0], [6, 0], [7, 0], [8, 0]]
    result = step(processes, GO, GO, GO, GO)
    assert result.info["invalid"].tolist() == [False, True, False, False]


def test_a_worker_that_hangs_is_replaced(
    processes: WorkerEnv, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processes.reset(seeds(5, 6, 7, 8))
    with monkeypatch.context() as patch:
        patch.setattr(processes._pool, "timeouts", Timeouts(step=0.2))
        result = step(processes, HANG, GO, GO, GO, active=[0])
    assert "gave no answer within 0.2 s; it is replaced" in caplog.text
    assert result.info["invalid"].tolist() == [True, False, False, False]
    assert processes.reset(seeds(9), seeds(0))["state"].tolist()[0] == [9, 0]


def test_a_stale_reply_is_skipped(processes: WorkerEnv) -> None:
    processes.reset(seeds(5, 6, 7, 8))
    processes._pool.workers[0].send("expert")  # its reply is never received, as after Ctrl-C
    assert step(processes, GO, GO, GO, GO).obs["state"].tolist()[0] == [5, 1]


def test_a_worker_raises_with_the_simulators_traceback(processes: WorkerEnv) -> None:
    processes.reset(seeds(1, 1, 1, 1))
    step(processes, GO, GO, GO, GO)  # a regular end: resets the count of earlier tests
    for number in range(MAX_FAILURES):
        processes.reset(seeds(5, 6, 7, 8))
        if number < MAX_FAILURES - 1:
            step(processes, GO, GO, GO, RAISE)
    with pytest.raises(RuntimeError, match=r"environment 3 broke down(.|\n)*in step\n(.|\n)*fell"):
        step(processes, GO, GO, GO, RAISE)


def test_sub_environments_that_cannot_be_made_raise_at_once() -> None:
    with pytest.raises(
        RuntimeError, match=r"no sub-environment could be made(.|\n)*no license server"
    ):
        make(1, num_workers=1, factory=raise_when_made)
    discrete = functools.partial(WithSpaces, action_space=spaces.Discrete(3))
    with pytest.raises(ValueError, match="is not continuous"):
        make(1, num_workers=1, factory=discrete)
    with pytest.raises(ValueError, match=r"cannot be pickled .* pass a module-level function"):
        make(1, num_workers=1, factory=lambda: Clock())
    with pytest.raises(RuntimeError, match=r"gave no answer within 0.1 s .* raise start_timeout"):
        make(1, num_workers=1, factory=hang_when_made, timeouts=Timeouts(start=0.1))
