"""Numbers that all ranks agree on, and what happens where one is left local."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rank_processes import on_ranks, start_ranks, stop
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune.rl import gradient_step as steps
from pitune.rl import gradients, ranks
from pitune.rl.drift import drifted
from pitune.rl.policy_gradient import value


def agreed() -> dict[str, Any]:
    own = ranks.rank() + 1  # 1 and 2
    values = torch.arange(3.0 * own) + 10 * own  # 3 and 6 entries
    weight = nn.Parameter(torch.zeros(2))
    unused, rare = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([1.0, 2.0]) * own
    rare.grad = torch.ones(1) if own == 2 else None
    gradients.average_gradients([weight, unused, rare])
    index = torch.arange(5) // 2 if own == 1 else torch.zeros(1, dtype=torch.int64)
    rows = TensorDict({"episode": index, "rank": torch.full_like(index, own)}, [len(index)])
    whole = ranks.balanced(rows, group="episode")
    return {
        "total": ranks.total(own),
        "least": ranks.least(0.5 * own),
        "greatest": ranks.greatest(own),
        "any": (ranks.on_any(own == 2), ranks.on_any(False)),
        "share": (ranks.share(8), ranks.share(1)),
        "first": ranks.of_first({"rank": own}),
        "gathered": ranks.gathered(own),
        "mean": ranks.mean(values),
        "std": ranks.std(values),
        "variance": ranks.variance(values),
        "grads": (weight.grad, unused.grad, rare.grad),
        "balanced": ranks.balanced(rows)["rank"].tolist(),
        "episodes": (whole["episode"].tolist(), whole["rank"].tolist()),
        "drifted": drifted({"same": torch.ones(3), "other": torch.tensor([1.0, own * 1e-7])}),
    }


def test_ranks_agree_on_numbers_of_their_rows(tmp_path: Path) -> None:
    first, second = on_ranks(agreed, 2, tmp_path)
    union = torch.cat([torch.arange(3.0) + 10, torch.arange(6.0) + 20])
    for found in (first, second):
        assert (found["total"], found["least"], found["greatest"]) == (3, 0.5, 2)
        assert (found["any"], found["share"], found["first"]) == (
            (True, False),
            (4, 1),
            {"rank": 1},
        )
        assert found["gathered"] == [1, 2]
        assert float(found["mean"]) == pytest.approx(float(union.mean()), rel=1e-6)
        assert float(found["std"]) == pytest.approx(float(union.std()), rel=1e-6)
        assert float(found["variance"]) == pytest.approx(float(union.var(correction=0)), rel=1e-6)
        weight, unused, rare = found["grads"]
        assert weight.tolist() == [1.5, 3.0]
        assert unused is None  # an optimizer must not move it
        assert rare.tolist() == [0.5]
        assert found["drifted"] == ["other"]


def test_surplus_rows_move_so_that_all_ranks_have_as_many(tmp_path: Path) -> None:
    first, second = on_ranks(agreed, 2, tmp_path)
    assert (first["balanced"], second["balanced"]) == ([1, 1, 1], [2, 1, 1])
    # three episodes and one: two for each, which stay whole
    assert first["episodes"] == ([0, 0, 1, 1], [1, 1, 1, 1])
    assert second["episodes"] == ([0, 1], [2, 1])


def test_one_process_computes_the_same_operations_as_without_ranks() -> None:
    values = torch.randn(1000)
    assert torch.equal(ranks.mean(values), values.mean())
    assert torch.equal(ranks.std(values), values.std())
    assert torch.equal(ranks.variance(values), values.var(correction=0))
    rows = TensorDict({"x": values}, [1000])
    assert ranks.balanced(rows) is rows
    assert ranks.joined(values) is values
    assert (ranks.rank(), ranks.world(), ranks.share(7)) == (0, 1, 7)
    assert drifted({"x": values}) == []


# Controls: a statistic that is left local must be seen


def local_popart() -> list[str]:
    torch.manual_seed(0)
    critic = value.ValueCritic(4)
    local = SimpleNamespace(mean=Tensor.mean)  # of this rank's rows alone
    value.ranks = local  # type: ignore[assignment]
    critic.rescale(torch.randn(8, 1) + ranks.rank())
    return drifted(critic.state_dict())


def global_popart() -> list[str]:
    torch.manual_seed(0)
    critic = value.ValueCritic(4)
    critic.rescale(torch.randn(8, 1) + ranks.rank())
    return drifted(critic.state_dict())


def test_a_local_scale_of_returns_makes_the_ranks_drift(tmp_path: Path) -> None:
    assert on_ranks(global_popart, 2, tmp_path / "global") == [[], []]
    for names in on_ranks(local_popart, 2, tmp_path / "local"):
        assert {"return_mean", "return_std", "net.4.weight", "net.4.bias"} <= set(names)


def stopped_early(local: bool) -> float:
    """Take steps whose divergence exceeds the limit on one rank alone, and not on average."""
    if local:
        steps.ranks = SimpleNamespace(  # type: ignore[assignment]
            **{**vars(ranks), "mean_number": lambda number: number}
        )
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def loss(batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        error = (weight - batch["x"]).square().mean()
        return error, {"loss": error}

    def step(batch: TensorDictBase) -> dict[str, float]:
        steps.gradient_step(optimizer, loss, batch, name="w", step="0")
        return {"approx_kl": 0.15 if ranks.rank() else 0.0}

    batch = TensorDict({"x": torch.ones(8)}, [8])
    rows = steps.minibatches(8, 4, num_epochs=2)
    return steps.run_epochs(batch, rows, step, target_kl=0.1)["gradient_steps"]


def test_a_local_end_of_an_update_makes_the_ranks_wait_for_ever(tmp_path: Path) -> None:
    assert on_ranks(partial(stopped_early, False), 2, tmp_path / "global") == [8.0, 8.0]
    children = start_ranks(partial(stopped_early, True), 2, tmp_path / "local")
    try:
        codes = [child.wait(15.0) for child in reversed(children)]
    except TimeoutError:
        return  # a rank hangs
    finally:
        for child in children:
            stop(child)
    assert any(codes)  # or fails, where the other has left
