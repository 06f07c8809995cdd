"""Records the episodes that are played in an environment, as a LeRobot dataset.

    with EpisodeRecorder(folder, env.spec) as recorder:
        evaluation = rl.evaluate(record(env, recorder), actor, num_episodes=50)

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pitune.envs import CheckedEnv, EnvSpec
from pitune.envs.success import EpisodeSuccess, SuccessRule
from pitune.envs.vector_env import Expert, Observation, StepResult, VectorEnv
from pitune.rl.datasets.columns import RecordedEpisode
from pitune.rl.datasets.config import RecordConfig
from pitune.rl.datasets.dataset import REWARD, SUCCESS, TERMINATED
from pitune.rl.datasets.writer import DatasetWriter
from pitune.rl.experience.demonstrations import Demonstrations

DONE = "next.done"


class EpisodeRecorder:
    """A dataset of whole episodes, which exists from the end of the `with` block on.

    The numbers of a frame are `observation.state`, `action` as executed, `next.reward`, `next.done`
    and `next.terminated`, and `next.success` if the environment reports success. An episode also
    has its success by the environment's rule, and the seed of its start. Episodes that are reset
    before their end or break down are left out.

    Args:
        folder: The dataset. It must not exist.
        spec: The environment.
        config: Storage of the pictures.

    Raises:
        FileExistsError: the folder exists.
        ValueError: at the end of the block, no episode was played.

    Example:
        >>> with EpisodeRecorder(Path("my_dataset"), env.spec) as recorder:  # doctest: +SKIP
        ...     evaluation = evaluate(record(env, recorder), actor, 50)
    """

    def __init__(self, folder: Path, spec: EnvSpec, config: RecordConfig | None = None) -> None:
        facts: dict[str, Any] = {
            "environment": spec.id,
            "simulator": spec.simulator,
            "reward": spec.reward,
        }
        facts |= {"success_rule": spec.success_rule if spec.success_signal else None}
        self.writer = DatasetWriter(
            folder, fps=spec.control_hz, config=config, robot_type=spec.id, facts=facts
        )

    @property
    def num_episodes(self) -> int:
        """Episodes so far."""
        return self.writer.num_episodes

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return self.writer.num_frames

    def add(self, episode: RecordedEpisode) -> None:
        """Write an episode."""
        self.writer.add(episode)

    def close(self) -> None:
        """Finish the dataset."""
        self.writer.close()

    def __enter__(self) -> EpisodeRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.writer.__exit__(kind, error, traceback)


def record(env: CheckedEnv, recorder: EpisodeRecorder) -> CheckedEnv:
    """Return an environment that plays as the given one, and records every whole episode.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2))
        >>> with EpisodeRecorder(Path("reached"), env.spec) as recorder:  # doctest: +SKIP
        ...     demonstrations = collect_demonstrations(record(env, recorder), 4, seed=0)
    """
    spec = env.spec
    inner = RecordingEnv(env.env, recorder.add, spec.success_rule)
    return CheckedEnv(inner, spec.success_rule, spec.reward)


@dataclass
class _Running:
    """The episode that an environment plays."""

    seed: int
    frames: list[dict[str, Tensor]] = field(default_factory=list)
    task: int = 0


class RecordingEnv:
    """A `VectorEnv` that hands over each episode at its end.

    Args:
        env: The environment that plays.
        on_episode: Gets every whole episode.
        success_rule: Definition of an episode's success.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> episodes = []
        >>> env = RecordingEnv(Reach(1), episodes.append, "once")
        >>> obs = env.reset(torch.tensor([0]))
        >>> while not episodes:
        ...     result = env.step(env.expert().act(), torch.tensor([True]))
        >>> episodes[0].success
        True
    """

    def __init__(
        self,
        env: VectorEnv,
        on_episode: Callable[[RecordedEpisode], None],
        success_rule: SuccessRule,
    ) -> None:
        self.env, self._on_episode, self._rule = env, on_episode, success_rule
        self.spec: EnvSpec = env.spec
        self._success = EpisodeSuccess(env.spec.num_envs, env.spec.device)
        self._running: list[_Running | None] = [None] * env.spec.num_envs
        self._obs: dict[str, Tensor] = {}

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        obs = self.env.reset(seed, env_idx)
        self.spec = self.env.spec  # it may get new instructions
        rows = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        for row, number in zip(rows.tolist(), seed.tolist(), strict=True):
            self._running[row] = _Running(number)
        self._success.start(rows.to(self.spec.device))
        self._obs = _host(obs)
        return obs

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        before, executed = self._obs, action.detach().cpu().clone()
        result = self.env.step(action, active)
        self.spec = self.env.spec  # success may be seen late
        self._success.add(result.info["success"], active)
        done = result.terminated | result.truncated
        # signals of the step, on the host
        flags = {REWARD: result.reward.float(), DONE: done, TERMINATED: result.terminated}
        if self.spec.success_signal:
            flags[SUCCESS] = result.info["success"]
        signals = _host({**flags, "invalid": result.info["invalid"]})
        for row in active.nonzero().flatten().tolist():
            self._add(row, before, executed, signals)
        self._obs = _host(result.obs)
        return result

    def abandon(self) -> None:
        """Drop all running episodes."""
        self._running = [None] * self.spec.num_envs
        abandon = getattr(self.env, "abandon", None)
        if abandon is not None:
            abandon()

    def render(self) -> Tensor:
        return self.env.render()

    def expert(self) -> Expert:
        return self.env.expert()

    def close(self) -> None:
        self.env.close()

    def _add(
        self, row: int, obs: dict[str, Tensor], action: Tensor, signals: dict[str, Tensor]
    ) -> None:
        """Add a frame of an environment, and hand over the episode if it is the last one."""
        running = self._running[row]
        if running is None:
            return
        if not running.frames:
            running.task = int(obs["task_id"][row])
        frame = {key: value[row] for key, value in obs.items() if key != "task_id"}
        frame |= {"action": action[row], **{key: value[row] for key, value in signals.items()}}
        running.frames.append(frame)
        # a broken episode is dropped, and a finished one handed over
        if signals["invalid"][row]:
            self._running[row] = None
        elif signals[DONE][row]:
            self._running[row] = None
            self._on_episode(self._episode(row, running))

    def _episode(self, row: int, running: _Running) -> RecordedEpisode:
        """Return a finished episode."""
        frames = running.frames
        columns = {key: torch.stack([frame[key] for frame in frames]) for key in frames[0]}
        success = None
        if self.spec.success_signal:
            success = bool(self._success.flags(self._rule)["success"][row])
        return RecordedEpisode(
            state=columns["state"],
            action=columns["action"],
            task=self.spec.tasks[running.task] if self.spec.tasks else "",
            pictures=_pictures(columns),
            signals={key: columns[key] for key in columns if key.startswith("next.")},
            success=success,
            seed=running.seed if self.spec.deterministic_reset else None,
        )


def write_demonstrations(
    demonstrations: Demonstrations,
    folder: Path,
    *,
    fps: float,
    config: RecordConfig | None = None,
    robot_type: str = "",
    facts: dict[str, Any] | None = None,
) -> None:
    """Write demonstrations as a dataset, whose episodes all count as successes.

    Args:
        demonstrations: With observations of the environment, before their preprocessing.
        folder: The dataset. It must not exist.
        fps: Control rate of the environment [Hz].
        config: Storage of the pictures.
        robot_type: Name of the robot or the environment.
        facts: Facts to store beside the dataset, such as the success rate of an expert.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the demonstrations are preprocessed.
    """
    if "state" not in demonstrations.obs:
        raise ValueError(
            f"the demonstrations have no states but {sorted(demonstrations.obs)}; write them "
            "before `preprocess`"
        )
    facts = {"reward": demonstrations.reward_definition, **(facts or {})}
    with DatasetWriter(
        folder, fps=fps, config=config, robot_type=robot_type, facts=facts
    ) as writer:
        for number in demonstrations.episode.unique().tolist():
            chosen = demonstrations.episode == number
            writer.add(_demonstrated(demonstrations, chosen))


def _demonstrated(table: Demonstrations, chosen: Tensor) -> RecordedEpisode:
    """Return the chosen steps of demonstrations, one episode."""
    columns = {key: torch.as_tensor(value)[chosen] for key, value in table.obs.items()}
    num = int(chosen.sum())
    end = torch.arange(num) == num - 1
    signals = {DONE: end, TERMINATED: end, REWARD: end.float()}
    if table.reward is not None:
        signals[REWARD] = table.reward[chosen].float()
    if table.terminated is not None:
        signals[TERMINATED] = table.terminated[chosen]
    task = int(columns["task_id"][0]) if "task_id" in columns else 0
    return RecordedEpisode(
        state=columns["state"],
        action=table.action[chosen],
        task=table.tasks[task] if table.tasks else "",
        pictures=_pictures(columns),
        signals=signals,
        success=True,
    )


def _pictures(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the pictures of observations, by camera."""
    return {
        key.removeprefix("image/"): value
        for key, value in columns.items()
        if key.startswith("image/")
    }


def _host(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors in main memory, because a simulator may reuse its own."""
    return {key: value.detach().cpu().clone() for key, value in values.items()}
