"""The comparison of the ranks' weights between two checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rank_processes import on_ranks

from pitune import policies, rl
from pitune.experiments.distributed.state import CHECK_EVERY, check_drift
from pitune.rl import ranks


def test_weights_are_compared_at_every_tenth_iteration(
    half_trained: Path, small_preset: Callable, tmp_path: Path
) -> None:
    def found() -> dict[int, str]:
        torch.manual_seed(0)
        algorithm = rl.make(small_preset("dsrl"), policies.load(half_trained))
        messages = {}
        for iteration in range(1, 2 * CHECK_EVERY + 1):
            if iteration == CHECK_EVERY + 1 and ranks.rank():
                weight = next(algorithm.networks["critic"].parameters())
                with torch.no_grad():
                    weight.view(-1)[0] += 1e-6
            try:
                check_drift(algorithm, iteration)
            except RuntimeError as error:
                messages[iteration] = str(error)
        return messages

    first, second = on_ranks(found, 2, tmp_path / "two")
    assert first == second
    assert first.keys() == {2 * CHECK_EVERY}
    assert "the ranks have drifted apart: critic." in first[2 * CHECK_EVERY]
    assert "Resume from the last checkpoint" in first[2 * CHECK_EVERY]
    # one process has nothing to compare
    assert on_ranks(found, 1, tmp_path / "one") == [{}]
