"""The folder of an evaluation, in which it goes on after a kill.

evaluation.json          settings and versions, with the hash of each checkpoint
rows.jsonl               a line for each episode, when it ends
shards/2_of_4/           rows.jsonl of one share, with a lock of its own
result.json, table.md    the results
run.lock                 the process that writes into the folder
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pitune.experiments.evaluation.rows_file import ROWS, RowsFile, StoredRow, merged
from pitune.experiments.runs.config_file import read_config, write_config
from pitune.experiments.runs.folder.lock import lock, unlock
from pitune.experiments.runs.folder.same_config import check_same
from pitune.rl import EpisodeOutcome

RECORD, RESULT, TABLE = "evaluation.json", "result.json", "table.md"
PATIENCE = 5.0
"""Longest time to wait for a lock [s]."""


class EvaluationFolder:
    """Writes the folder of an evaluation, or the part of one share.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "evaluation"
        >>> folder = EvaluationFolder(path, {"env": "mock/Reach"}, {"checkpoint": "3e70"})
        >>> folder.num_rows
        0

    Args:
        path: The folder, made if it is missing.
        identity: Settings and versions that decide the rows, as JSON values.
        checkpoints: Hash of each policy by the option that names it.
        shard: Share of this process and the number of all shares.

    Raises:
        FileExistsError: another process writes there, or the folder holds something else.
        ValueError: its rows belong to other settings, versions or checkpoints, or are damaged.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        checkpoints: Mapping[str, str],
        shard: tuple[int, int] = (1, 1),
    ) -> None:
        self.path, self.shard = path, shard
        self._own = path
        if shard[1] > 1:
            self._own = path / "shards" / f"{shard[0]}_of_{shard[1]}"
        self._check_kind()
        self._own.mkdir(parents=True, exist_ok=True)
        # a share holds the whole folder only until its identity is checked
        _lock(path)
        self._check_identity(identity, dict(checkpoints))
        if shard[1] > 1:
            _lock(self._own)
            unlock(path)
        else:
            self._check_shares()
        self._rows = merged(self._files())
        self._file = RowsFile(self._own / ROWS)

    @property
    def num_rows(self) -> int:
        """Number of episodes that are stored."""
        return len(self._rows)

    def rows(self, part: str) -> dict[int, StoredRow]:
        """Return the rows of a part, by their place in its list."""
        return {index: row for (name, index), row in self._rows.items() if name == part}

    def add(self, part: str, outcome: EpisodeOutcome, reported: bool) -> None:
        """Store the outcome of an episode.

        Args:
            part: Name of the part.
            outcome: The outcome.
            reported: Whether the environment has reported success so far.
        """
        row = StoredRow(part, outcome, reported)
        self._file.add(row)
        self._rows[part, outcome.index] = row

    @contextmanager
    def left_to_shares(self) -> Iterator[None]:
        """Let other processes write their shares while the context is open, then read all rows."""
        unlock(self.path)
        try:
            yield
        finally:
            _lock(self.path)
        self._rows = merged(self._files())

    def close(self) -> None:
        """Release the folder."""
        self._file.close()
        unlock(self._own)

    def _files(self) -> list[Path]:
        """Return the files with rows: of the whole folder, and of every share."""
        shares = sorted(self.path.glob(f"shards/*_of_*/{ROWS}"))
        return [file for file in (self.path / ROWS, *shares) if file.is_file()]

    def _check_kind(self) -> None:
        """Reject a folder that is not of an evaluation."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; pass another --folder")
        if (self.path / "config.json").exists():
            raise FileExistsError(f"{self.path} holds a run; pass another --folder")

    def _check_shares(self) -> None:
        """Reject a folder in which other processes play shares, which would be played twice."""
        for share in sorted(self.path.glob("shards/*_of_*")):
            _lock(share)
            unlock(share)

    def _check_identity(self, identity: dict[str, Any], checkpoints: dict[str, str]) -> None:
        """Write the identity of the evaluation, or compare it with that of its rows."""
        file = self.path / RECORD
        if not file.exists():
            if self._files():
                raise FileExistsError(
                    f"{self.path} holds rows, but {RECORD} is missing; restore that file, or pass "
                    "another --folder"
                )
            write_config(file, identity, {"checkpoints": checkpoints})
            return
        check_same(self.path, identity, RECORD, option="--folder")
        known = read_config(file)["limits"].get("checkpoints", {})
        for name in known.keys() & checkpoints.keys():
            if known[name] != checkpoints[name]:
                raise ValueError(
                    f"{self.path} holds rows of another {name} (SHA-256 {known[name][:12]}, now "
                    f"{checkpoints[name][:12]}); pass another --folder"
                )
        if checkpoints.keys() - known.keys():
            write_config(file, identity, {"checkpoints": {**known, **checkpoints}})


def _lock(folder: Path) -> None:
    """Take the lock of a folder. A process that was killed may hold it for another moment.

    Raises:
        FileExistsError: another process holds it.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return lock(folder, option="--folder")
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
