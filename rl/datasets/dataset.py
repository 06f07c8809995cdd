"""Frames of a LeRobot dataset under the names that policies read.

Letters: N rows, s robot state dim, d robot action dim, Y, X image pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.layout import FACTS, find_dataset, read_json
from pitune.rl.datasets.metadata import PICTURES, Episode, Metadata, read_metadata
from pitune.rl.datasets.tables import Rows
from pitune.rl.datasets.video import decode

REWARD, SUCCESS, TERMINATED = "next.reward", "next.success", "next.terminated"
INTERVENTION = "complementary_info.is_intervention"
"""Features of a frame that recorded datasets have besides state and action."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Frames:
    """Neighboring frames (N) of one episode.

    Example:
        >>> frames = Frames(obs={"state": torch.zeros(5, 3)}, action=torch.zeros(5, 2))
        >>> len(frames)
        5
    """

    obs: dict[str, Tensor]
    """`state` (N, s) [robot units], `task_id` (N,), and `image/<camera>` (N, 3, Y, X) uint8."""
    action: Tensor
    """Actions (N, d) [robot units]."""
    reward: Tensor | None = None
    """(N,), where it is recorded."""
    terminated: Tensor | None = None
    """(N,) bool, where it is recorded."""
    intervention: Tensor | None = None
    """Whether a human corrected the robot (N,) bool, where it is recorded."""

    def __len__(self) -> int:
        return len(self.action)


class EpisodeDataset:
    """A dataset in a folder. Nothing but the metadata is kept in memory.

    Args:
        name: Folder, or a name on the hub such as lerobot/pusht.
        config: Features and episodes.
        cameras: Cameras of the policy. None reads no pictures.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: the dataset is damaged, or lacks a feature or successful episodes.

    Example:
        >>> data = EpisodeDataset(Path("my_dataset"), cameras=["front"])  # doctest: +SKIP
        >>> data.frames(0, 0, 10).obs["image/front"].shape  # doctest: +SKIP
        torch.Size([10, 3, 64, 64])
    """

    def __init__(
        self, name: Path, config: DataConfig | None = None, cameras: Sequence[str] = ()
    ) -> None:
        self.config = DataConfig() if config is None else config
        self.metadata: Metadata = read_metadata(find_dataset(name))
        self.name = name
        for option, features in (("state", self.config.state), ("action", self.config.action)):
            for feature in features:
                self._check_numbers(option, feature)
        self.cameras = {camera: self._camera_feature(camera) for camera in cameras}
        self.episodes: list[Episode] = self._chosen()
        self.num_frames = sum(episode.length for episode in self.episodes)
        """Frames of the chosen episodes."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Instructions, indexed by `task_id`."""
        return self.metadata.tasks

    @property
    def state_dim(self) -> int:
        """Robot state dim s."""
        return sum(self.metadata.width(feature) for feature in self.config.state)

    @property
    def action_dim(self) -> int:
        """Robot action dim d."""
        return sum(self.metadata.width(feature) for feature in self.config.action)

    @property
    def required_fps(self) -> float | None:
        """Frame rate that must be the control rate of the environment [Hz], None for any."""
        return None if self.config.any_rate else self.metadata.fps

    @property
    def reward_definition(self) -> str:
        """Definition of the recorded rewards in words, empty if it is unknown."""
        file = self.metadata.folder / FACTS
        return str(read_json(file).get("reward", "")) if file.is_file() else ""

    def frames(self, number: int, start: int, stop: int) -> Frames:
        """Return some frames of a chosen episode.

        Args:
            number: Position of the episode among the chosen ones.
            start: First frame.
            stop: Frame after the last.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged; the message names it, and the row.
        """
        episode = self.episodes[number]
        names = [*self.config.state, *self._stored_pictures(), "task_index", "timestamp"]
        rows = self._rows(episode, start, stop, [*names, *self.config.action, *self._extras()])
        # state, and the words by their number
        state = torch.cat([self._numbers(rows, name) for name in self.config.state], -1)
        task_id = rows.integers("task_index")
        if len(task_id) and int(task_id.max()) >= len(self.tasks):
            raise ValueError(
                f"{episode.file}: task_index={int(task_id.max())}, but the dataset has "
                f"{len(self.tasks)} tasks"
            )
        obs = {"state": state, "task_id": task_id}
        # pictures, from the same rows or from a video at their times
        for camera, feature in self.cameras.items():
            obs[f"image/{camera}"] = self._pictures(episode, feature, rows)
        # rewards and ends, which only some datasets have
        extras = {name: rows.vectors(name, 1)[:, 0] for name in self._extras()}
        flags = {name: value > 0.5 for name, value in extras.items() if name != REWARD}
        return Frames(
            obs=obs,
            action=self._action(rows),
            reward=extras.get(REWARD),
            terminated=flags.get(TERMINATED),
            intervention=flags.get(INTERVENTION),
        )

    def actions(self, number: int, start: int, stop: int) -> Tensor:
        """Return the actions of some frames of a chosen episode (N, d), without the rest."""
        return self._action(self._rows(self.episodes[number], start, stop, self.config.action))

    def check_policy(self, state_dim: int, action_dim: int) -> None:
        """Reject a policy of another robot.

        Raises:
            ValueError: the numbers of dimensions differ.
        """
        for kind, wanted, given in (
            ("state", state_dim, self.state_dim),
            ("action", action_dim, self.action_dim),
        ):
            if wanted != given:
                names = getattr(self.config, kind)
                widths = {name: self.metadata.width(name) for name in names}
                raise ValueError(
                    f"the {kind} in {self.name} has {given} dimensions ({widths}), the policy's "
                    f"has {wanted}; name the right features with --data.{kind} (the dataset has "
                    f"{self._number_features()})"
                )

    def _rows(self, episode: Episode, start: int, stop: int, names: Sequence[str]) -> Rows:
        first = episode.first_row
        index = ("episode_index", "frame_index")
        rows = Rows(episode.file, first + start, first + stop, [*dict.fromkeys([*names, *index])])
        rows.check_episode(episode.number, start)
        return rows

    def _numbers(self, rows: Rows, name: str) -> Tensor:
        return rows.vectors(name, self.metadata.width(name))

    def _action(self, rows: Rows) -> Tensor:
        return torch.cat([self._numbers(rows, name) for name in self.config.action], -1)

    def _pictures(self, episode: Episode, feature: str, rows: Rows) -> Tensor:
        """Return the pictures of a feature (N, 3, Y, X)."""
        if self.metadata.features[feature]["dtype"] == "image":
            return rows.pictures(feature)
        part = episode.videos[feature]
        return decode(part.file, [part.start + time for time in rows.times()])

    def _stored_pictures(self) -> list[str]:
        """Return the features with pictures inside the parquet files."""
        features: Mapping[str, Mapping[str, object]] = self.metadata.features
        return [name for name in self.cameras.values() if features[name]["dtype"] == "image"]

    def _extras(self) -> list[str]:
        names = (REWARD, TERMINATED, INTERVENTION)
        return [name for name in names if name in self.metadata.features]

    def _chosen(self) -> list[Episode]:
        """Return the episodes to read."""
        episodes = list(self.metadata.episodes)
        if self.config.episodes == "successful":
            episodes = [episode for episode in episodes if self.succeeded(episode)]
        if not episodes:
            raise ValueError(
                f"{self.name} has {len(self.metadata.episodes)} episodes and no successful one; "
                "pass --data.episodes all to read failures too"
            )
        return episodes[: self.config.max_episodes]

    def succeeded(self, episode: Episode) -> bool:
        """Return whether an episode succeeded. A dataset without this feature has successes."""
        if episode.success is not None:
            return episode.success
        if SUCCESS not in self.metadata.features:
            return True
        rows = self._rows(episode, 0, episode.length, [SUCCESS])
        return bool((rows.vectors(SUCCESS, 1) > 0.5).any())

    def _check_numbers(self, option: str, feature: str) -> None:
        """Raise ValueError if a feature of the state or of the action is missing or a picture."""
        names = self._number_features()
        if feature not in names:
            raise ValueError(
                f"{self.name} has no numbers {feature!r} (data.{option})"
                f"{_nearest(feature, names)}; it has {names}"
            )

    def _number_features(self) -> list[str]:
        features = self.metadata.features
        return [
            name for name, kind in features.items() if kind["dtype"] not in (*PICTURES, "string")
        ]

    def _camera_feature(self, camera: str) -> str:
        """Return the feature of a camera of the policy."""
        present = self.metadata.cameras()
        chosen = self.config.camera_features().get(camera, f"observation.images.{camera}")
        if chosen not in present:
            raise ValueError(
                f"{self.name} has no pictures {chosen!r} for the policy's camera {camera!r}"
                f"{_nearest(chosen, present)}; it has {present}. Pair them: --data.cameras "
                f"{camera}=FEATURE"
            )
        return chosen


def _nearest(name: str, names: Sequence[str]) -> str:
    """Return the names that are most similar, as a question."""
    nearest = get_close_matches(name, names, 3, 0.3)
    return f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
