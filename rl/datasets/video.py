"""Frames of video files, decoded and encoded by PyAV.

Letters: N rows, Y, X image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pitune.rl.datasets.layout import require

TOLERANCE = 1e-3
"""Largest distance of a frame from the time that the dataset states [s]."""
KEYFRAMES = 2
"""Frames from one keyframe to the next, as in lerobot: random access decodes one frame more."""
TIME_BASE = 90_000
"""Ticks of a second in recorded files. Frame rates that do not divide it are rounded."""


def decode(file: Path, times: Sequence[float]) -> Tensor:
    """Return the frames of a video at ascending times (N, 3, Y, X) uint8.

    The decoder seeks once and then runs forwards, so neighboring frames are cheap.

    Args:
        file: The video.
        times: Times in the file [s].

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or has no frame at one of the times.
    """
    av = require("av")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the dataset is incomplete")
    frames: list[np.ndarray[Any, Any]] = []
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            # the last keyframe before the first frame, from which decoding runs forwards
            container.seek(
                max(0, round(times[0] / stream.time_base) - 1), backward=True, stream=stream
            )
            for frame in container.decode(stream):
                now = float(frame.pts * stream.time_base)
                # a frame may be asked for several times, where recorded times are equal
                while len(frames) < len(times) and abs(now - times[len(frames)]) <= TOLERANCE:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(times) or now > times[len(frames)] + TOLERANCE:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(
            f"{file} is damaged or cut off ({type(error).__name__} near {times[0]:.3f} s); copy "
            "or download it again"
        ) from error
    if len(frames) < len(times):
        raise ValueError(
            f"{file} has no frame at {times[len(frames)]:.4f} s, within {TOLERANCE} s; the video "
            "does not belong to the parquet files, or it is cut off"
        )
    # (N, Y, X, 3) -> (N, 3, Y, X)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


class VideoFile:
    """An MP4 file that is being written, with frames at a fixed rate.

    Args:
        file: New file.
        fps: Frames per second [Hz].
        shape: Y and X.
        codec: Encoder.
        crf: Loss of the codec.

    Raises:
        ValueError: the pictures have an odd width or height, which the codecs do not take.

    Example:
        >>> video = VideoFile(Path("file-000.mp4"), 20.0, (64, 64), "h264", 18)  # doctest: +SKIP
        >>> video.add(torch.zeros(3, 64, 64, dtype=torch.uint8))  # doctest: +SKIP
        >>> video.close()  # doctest: +SKIP
    """

    def __init__(
        self, file: Path, fps: float, shape: tuple[int, int], codec: str, crf: int
    ) -> None:
        if shape[0] % 2 or shape[1] % 2:
            raise ValueError(
                f"pictures of {shape[0]} x {shape[1]} pixels cannot become a video, which needs "
                "even numbers; record them with pictures='image'"
            )
        av = require("av")
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.num_frames = file, 0
        self.num_bytes = 0
        """Size of the encoded pictures so far."""
        self._av = av
        self._container = av.open(str(file), "w")
        rate = Fraction(fps).limit_denominator(1000)
        # frequent keyframes and no frames that depend on later ones, for random access
        options = {"crf": str(crf), "g": str(KEYFRAMES)}
        encoder = "libx264" if codec == "h264" else codec
        preset = {"libx264": "veryfast", "libsvtav1": "12"}
        options["preset"] = preset[encoder]
        self._stream = self._container.add_stream(encoder, rate=rate, options=options)
        self._stream.height, self._stream.width = shape
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.max_b_frames = 0
        self._stream.codec_context.thread_count = 1
        self._step = 1 / rate

    @property
    def seconds(self) -> float:
        """Length so far [s]."""
        return float(self.num_frames * self._step)

    def add(self, picture: Tensor) -> None:
        """Append a picture (3, Y, X) uint8."""
        array = np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy())
        frame = self._av.VideoFrame.from_ndarray(array, format="rgb24")
        frame.time_base = self._step
        frame.pts = self.num_frames
        packets = self._stream.encode(frame)
        self.num_bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)
        self.num_frames += 1

    def close(self) -> None:
        """Write the rest of the file."""
        self._container.mux(self._stream.encode())
        self._container.close()
