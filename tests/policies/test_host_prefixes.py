"""Encoded observations in memory of the host, beside rows of a device."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from pitune.policies.host_prefixes import (
    HostPrefixes,
    fetched,
    minibatches,
    on_device,
    on_host,
    placed_as,
    select_rows,
    with_host_prefix,
)

CPU = torch.device("cpu")


def packed(start: float) -> TensorDict:
    """Return encoded observations of three rows, with a nested one."""
    values = torch.arange(6.0).view(3, 2) + start
    return TensorDict({"keys": values, "null": {"keys": -values}}, [3])


def held() -> TensorDictBase:
    """Return rows (3, 2) whose encoded observations are those of two decisions."""
    prefixes = HostPrefixes(2)
    prefixes.add(packed(0.0))
    prefixes.add(packed(100.0))
    rows = TensorDict({"row": torch.arange(6).view(3, 2)}, [3, 2], device="cpu")
    return with_host_prefix(rows, prefixes.rollout())


def test_a_rollout_has_the_rows_of_each_decision() -> None:
    prefix = held()["prefix"]
    assert prefix.batch_size == (3, 2)
    assert torch.equal(prefix["keys"][:, 1], packed(100.0)["keys"])
    assert torch.equal(prefix["null", "keys"][:, 0], packed(0.0)["null", "keys"])


def test_later_changes_of_the_actor_s_tensors_do_not_reach_a_rollout() -> None:
    prefixes, first = HostPrefixes(1), packed(0.0)
    prefixes.add(first)
    first["keys"] += 7
    assert torch.equal(prefixes.rollout()["keys"][:, 0], packed(0.0)["keys"])


def test_a_missing_or_another_decision_is_an_error() -> None:
    prefixes = HostPrefixes(1)
    with pytest.raises(RuntimeError, match=r"num_decisions=1 .* the actor took 0"):
        prefixes.rollout()
    prefixes.add(packed(0.0))
    with pytest.raises(RuntimeError, match=r"num_decisions=1 .* took another one"):
        prefixes.add(packed(0.0))


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), torch.tensor([2, 0]), (torch.tensor([2, 0]), torch.tensor([1, 0]))],
    ids=["slice", "rows", "places"],
)
def test_rows_are_chosen_with_their_encoded_observations(index: object) -> None:
    rows = held()
    chosen = select_rows(rows, index)
    assert torch.equal(chosen["row"], rows["row"][index])  # type: ignore[index]
    assert torch.equal(chosen["prefix", "keys"], rows["prefix", "keys"][index])  # type: ignore[index]
    assert on_host(chosen) is not None


def test_minibatches_have_the_encoded_observations_of_their_rows() -> None:
    batch = held().flatten()
    prefix = batch["prefix"]
    order = [torch.tensor([4, 1]), torch.tensor([0, 0, 5])]
    for rows, minibatch in zip(order, minibatches(batch, order), strict=True):
        assert torch.equal(minibatch["row"], rows)
        for key in ("keys", ("null", "keys")):
            assert torch.equal(minibatch["prefix"][key], prefix[key][rows])
    assert list(minibatches(batch, [])) == []


def test_rows_without_any_pass_unchanged() -> None:
    rows = TensorDict({"row": torch.arange(3)}, [3])
    assert on_host(rows) is None
    assert fetched(rows) is rows
    assert placed_as(rows, rows) is rows
    assert torch.equal(on_device(rows, CPU)["row"], rows["row"])
    assert [part["row"].tolist() for part in minibatches(rows, [torch.tensor([2, 1])])] == [[2, 1]]


def test_moved_rows_leave_them_on_the_host() -> None:
    rows = held()
    for moved in (on_device(rows, CPU), placed_as(rows.cpu(), rows)):
        prefix = on_host(moved)
        assert prefix is not None
        assert torch.equal(prefix["keys"], rows["prefix", "keys"])
