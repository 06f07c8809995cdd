"""Statistics of recorded features, for `meta/stats.json` and for every episode.

Mean, deviation, least and greatest value are exact, and so are the quantiles: those of numbers from
all values, those of pictures from counts of the 256 levels. lerobot averages the quantiles of the
episodes instead. Pictures are measured per channel, in [0, 1].
Letters: N rows, D width of a feature, Y, X image pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
"""lerobot's names and shares."""
Stats = dict[str, Any]
"""Name of a statistic -> its numbers in nested lists, as JSON and parquet store them."""


class NumberStats:
    """Values (N, D) of a feature with numbers.

    Example:
        >>> stats = NumberStats()
        >>> episode = stats.add(np.array([[0.0], [1.0]]))
        >>> stats.result()["mean"], episode["count"]
        ([0.5], [2])
    """

    def __init__(self) -> None:
        self._values: list[npt.NDArray[np.float32]] = []

    def add(self, values: npt.NDArray[Any]) -> Stats:
        """Add the values of an episode (N, D) and return its own statistics."""
        self._values.append(values.astype(np.float32))
        return _of_numbers(self._values[-1])

    def result(self) -> Stats:
        """Return the statistics of all values."""
        return _of_numbers(np.concatenate(self._values))


class PictureStats:
    """Levels of the pixels of a camera, counted per channel.

    Example:
        >>> stats = PictureStats()
        >>> episode = stats.add(np.full((2, 3, 4, 4), 255, np.uint8))
        >>> stats.result()["mean"]
        [[[1.0]], [[1.0]], [[1.0]]]
    """

    def __init__(self) -> None:
        self._counts, self._num = np.zeros((3, 256), np.int64), 0

    def add(self, pictures: npt.NDArray[np.uint8]) -> Stats:
        """Add the pictures of an episode (N, 3, Y, X) and return its own statistics."""
        counts = np.stack(
            [np.bincount(pictures[:, channel].ravel(), minlength=256) for channel in range(3)]
        )
        self._counts += counts
        self._num += len(pictures)
        return _of_levels(counts, len(pictures))

    def result(self) -> Stats:
        """Return the statistics of all pictures."""
        return _of_levels(self._counts, self._num)


def _of_numbers(values: npt.NDArray[np.float32]) -> Stats:
    """Return the statistics of values (N, D)."""
    exact = values.astype(np.float64)
    stats: Stats = {
        "min": exact.min(0).tolist(),
        "max": exact.max(0).tolist(),
        "mean": exact.mean(0).tolist(),
        "std": exact.std(0).tolist(),
        "count": [len(exact)],
    }
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return stats | {name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)}


def _of_levels(counts: npt.NDArray[np.int64], num: int) -> Stats:
    """Return the statistics of pixels from the counts of their levels (3, 256)."""
    levels = np.arange(256) / 255
    total = counts.sum(1, keepdims=True)
    mean = (counts * levels).sum(1) / total[:, 0]
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / total[:, 0]
    seen = counts > 0
    values = {
        "min": levels[seen.argmax(1)],
        "max": levels[255 - seen[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(variance),
    }
    below = counts.cumsum(1)
    for name, share in QUANTILES.items():
        # the least level that at least this share of the pixels does not exceed
        values[name] = levels[(below >= share * total).argmax(1)]
    stats: Stats = {name: row.reshape(3, 1, 1).tolist() for name, row in values.items()}
    return stats | {"count": [num]}
