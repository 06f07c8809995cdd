"""Settings of datasets that are read and recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pitune.ranges import PositiveFloat, PositiveInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Features of a LeRobot dataset that the policy reads, and the memory for them.

    Example:
        >>> DataConfig(cameras=("front=observation.images.top",)).camera_features()
        {'front': 'observation.images.top'}
    """

    cameras: tuple[str, ...] = ()
    """Pairs camera=feature, such as front=observation.images.top. A camera without a pair is
    observation.images.<camera>."""
    state: tuple[str, ...] = ("observation.state",)
    """Features that are joined to the state, in this order."""
    action: tuple[str, ...] = ("action",)
    """Features that are joined to the action, in this order."""
    episodes: Literal["successful", "all"] = "successful"
    """Episodes to read. A dataset without `next.success` has only successful ones."""
    max_episodes: PositiveInt | None = None
    """Number of these episodes, from the first, or None for all."""
    memory_gib: PositiveFloat = 2.0
    """Memory for observations and actions [GiB]. A dataset that needs more is streamed from the
    disk by cloning, and rejected by algorithms with a replay memory."""
    padding: Literal["mask", "repeat"] = "mask"
    """Steps of a chunk past its episode's end: left out of the cloning loss (lerobot's
    `action_is_pad`), or cloned as repetitions of the last action (openpi)."""
    window: PositiveInt = 32
    """Neighboring frames that a stream decodes in one go. Fewer mix better, more decode faster."""
    any_rate: bool = False
    """Whether the frame rate may differ from the environment's control rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for pair in self.cameras:
            camera, _, feature = pair.partition("=")
            if not camera or not feature:
                raise ValueError(
                    f"cameras={pair!r} must be camera=feature, such as front=observation.images.top"
                )
        for name in ("state", "action"):
            if not getattr(self, name):
                raise ValueError(f"{name}=() must name at least one feature of the dataset")

    def camera_features(self) -> dict[str, str]:
        """Return the feature of each camera that has a pair."""
        pairs = (pair.partition("=") for pair in self.cameras)
        return {camera: feature for camera, _, feature in pairs}


@dataclass(frozen=True, kw_only=True)
class RecordConfig(Settings):
    """Storage of recorded pictures and the sizes of files.

    Example:
        >>> RecordConfig(pictures="image").codec
        'h264'
    """

    pictures: Literal["video", "image"] = "video"
    """MP4 videos, which lose some detail, or PNG files inside the parquet files, which lose
    none."""
    codec: Literal["h264", "libsvtav1"] = "h264"
    """Codec of videos. lerobot's own default is libsvtav1."""
    crf: Annotated[int, Range(low=0, high=51)] = 18
    """Loss of the codec: 0 the least, lerobot's default 30 [-]."""
    data_mib: PositiveFloat = 100.0
    """Size of a parquet file, after which the next one begins [MiB]."""
    video_mib: PositiveFloat = 200.0
    """Size of a video file, after which the next one begins [MiB]."""
