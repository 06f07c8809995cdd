"""The rows of replay memories, in files that are written once and that checkpoints refer to.

A memory of pictures is gigabytes, of which only a little is new at a checkpoint. So the new rows
become a file in `replay/`, and each checkpoint lists its files with their checksums in
replay.json. A file that no checkpoint lists any more is removed.

Letters: N rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from pitune.experiments.runs.folder.checksums import checksum
from pitune.rl.algorithm import Memory

FOLDER, INDEX = "replay", "replay.json"
OF_RANKS = "rank_[0-9]*"
"""Folders in a checkpoint with the state of ranks other than 0."""
_NAME = re.compile(r"(tmp_)?[a-z0-9_]+_[0-9]{12}_[0-9]{12}\.safetensors")


class Segment(NamedTuple):
    """A file with the rows `first` to `last` of all that were pushed, without `last` itself.

    Example:
        >>> Segment("replay_000000000000_000000000100.safetensors", 0, 100, 4200, 7).last
        100
    """

    file: str
    first: int
    last: int
    size: int
    """[bytes]."""
    code: int
    """CRC-32."""


class Segments:
    """The files of a run's replay memories.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from pitune.rl.experience.replay import Replay
        >>> segments, memory = Segments(Path(tempfile.mkdtemp())), Replay(capacity=10)
        >>> for _ in range(2):
        ...     memory.push(TensorDict({"x": torch.zeros(3)}, batch_size=[3]))
        ...     index = segments.write({"replay": memory})
        >>> [(s[1], s[2]) for s in index["replay"]["segments"]]
        [(0, 3), (3, 6)]

    Args:
        run: Folder of the run.
        prefix: First part of the files' names, for ranks that write into the same folder.
    """

    def __init__(self, run: Path, prefix: str = "") -> None:
        self.run, self.prefix = run, prefix
        self._written: dict[str, list[Segment]] = {}

    def write(self, memories: Mapping[str, Memory]) -> dict[str, Any]:
        """Write the new rows of all memories, and return the content of replay.json."""
        index = {}
        for name, memory in memories.items():
            # earlier files that still hold a row of the ring, and then the new rows
            known = [s for s in self._written.get(name, []) if s.last > memory.oldest]
            first = known[-1].last if known else memory.oldest
            if first < memory.num_pushed:
                known.append(self._write(name, first, memory.num_pushed, memory.rows_from(first)))
            self._written[name] = known
            num = memory.num_pushed - memory.oldest
            index[name] = {"writer": memory.writer_state(), "num": num, "segments": known}
        return index

    def _write(self, name: str, first: int, last: int, rows: dict[str, Tensor]) -> Segment:
        # under a temporary name first, so that a killed run leaves no partial file
        folder = self.run / FOLDER
        folder.mkdir(exist_ok=True)
        file = folder / f"{self.prefix}{name}_{first:012d}_{last:012d}.safetensors"
        temporary = file.with_name(f"tmp_{file.name}")
        try:
            save_file(rows, temporary)
            segment = Segment(file.name, first, last, temporary.stat().st_size, checksum(temporary))
            temporary.rename(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return segment

    def load(self, checkpoint: Path, memories: Mapping[str, Memory]) -> None:
        """Fill memories with the rows of a checkpoint.

        Args:
            checkpoint: A whole one, see `fault`.
            memories: By name. One that the checkpoint lacks is left as it is.
        """
        index = read_index(checkpoint)
        for name in index.keys() & memories.keys():
            segments = [Segment(*values) for values in index[name]["segments"]]
            writer, num = index[name]["writer"], index[name]["num"]
            rows = self._rows(segments, oldest=segments[-1].last - num if segments else 0)
            memories[name].restore(writer, num, rows)
            self._written[name] = segments

    def rows(self, checkpoint: Path, name: str) -> Iterator[dict[str, Tensor]]:
        """Yield the rows of a memory in a checkpoint, some at a time, the oldest first."""
        saved = read_index(checkpoint).get(name, {"segments": [], "num": 0})
        segments = [Segment(*values) for values in saved["segments"]]
        if segments:
            yield from self._rows(segments, oldest=segments[-1].last - saved["num"])

    def _rows(self, segments: list[Segment], oldest: int) -> Iterator[dict[str, Tensor]]:
        """Yield the rows of each file, without those that have been overwritten since."""
        for segment in segments:
            rows = load_file(self.run / FOLDER / segment.file)
            # rows before the oldest one have been overwritten in the ring
            skipped = max(0, oldest - segment.first)
            yield {key: value[skipped:] for key, value in rows.items()}

    def remove_unlisted(self) -> None:
        """Remove files that no folder of the run lists. The caller holds the run's lock."""
        folder = self.run / FOLDER
        if not folder.is_dir():
            return
        # also in folders that were set aside, in those of failed updates, and of other ranks
        indices = [*self.run.glob(f"*/{INDEX}"), *self.run.glob(f"*/{OF_RANKS}/{INDEX}")]
        listed = {
            segment[0]
            for file in indices
            for memory in read_index(file.parent).values()
            for segment in memory["segments"]
        }
        for file in folder.iterdir():
            if _NAME.fullmatch(file.name) and file.name not in listed:
                file.unlink()


def write_index(checkpoint: Path, index: Mapping[str, Any]) -> None:
    """Write replay.json into the folder of a checkpoint."""
    (checkpoint / INDEX).write_text(json.dumps(index) + "\n")


def read_index(checkpoint: Path) -> dict[str, Any]:
    """Return the content of replay.json, empty if it is missing or damaged."""
    try:
        return dict(json.loads((checkpoint / INDEX).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def fault(checkpoint: Path, deep: bool) -> str | None:
    """Return the first missing, cut or changed file that a checkpoint lists, or None.

    Args:
        checkpoint: Folder inside the folder of its run.
        deep: Whether to compare checksums too, and not only sizes.
    """
    folders = [checkpoint, *sorted(checkpoint.glob(OF_RANKS))]
    for memory in (memory for folder in folders for memory in read_index(folder).values()):
        for segment in (Segment(*values) for values in memory["segments"]):
            file, name = checkpoint.parent / FOLDER / segment.file, f"{FOLDER}/{segment.file}"
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != segment.size:
                return f"{name} has {file.stat().st_size:,} of {segment.size:,} bytes"
            if deep and checksum(file) != segment.code:
                return f"{name} has changed since it was written"
    return None
