"""`pitune bench saving`: the time of checkpoints with a full replay memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pitune.experiments.benchmarks.parts.saving import Saved, SavingConfig, benchmark, show

SMALL = SavingConfig(rows=300, image_size=16, iterations=2, save_minutes=1e-6)


@pytest.mark.slow
def test_the_first_checkpoint_writes_the_full_memory_and_later_ones_the_new_rows(
    tmp_path: Path,
) -> None:
    saved = benchmark(replace(SMALL, out=tmp_path / "out"))
    assert [one.rows for one in saved] == [300, 128, 128]
    assert saved[0].mib > saved[1].mib > 0
    assert all(one.seconds > 0 for one in saved)


def test_the_table_has_no_share_for_the_checkpoint_after_the_filling(
    capsys: pytest.CaptureFixture,
) -> None:
    show(SMALL, [Saved(2.0, 0.1, 300, 9.0), Saved(0.5, 10.0, 128, 4.0), Saved(0.3, 10.0, 128, 4.0)])
    text = capsys.readouterr().out
    assert "2000.0%" not in text
    assert "median of the later ones 4.0%" in text
