"""Typed access to nested entries and rows."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from pitune.rl.experience.sub_dict import sub_dict


@pytest.fixture
def rows() -> TensorDict:
    return TensorDict(
        {"action": torch.arange(3), "next": {"obs": {"state": torch.ones(3, 2)}}}, batch_size=[3]
    )


def test_a_nested_entry_is_the_entry_itself(rows: TensorDict) -> None:
    sub_dict(rows, ("next", "obs"))["elapsed"] = torch.zeros(3)
    assert set(rows.keys(include_nested=True, leaves_only=True)) == {
        "action",
        ("next", "obs", "state"),
        ("next", "obs", "elapsed"),
    }


def test_rows_are_chosen_as_by_indexing(rows: TensorDict) -> None:
    assert sub_dict(rows, torch.tensor([2, 0]))["action"].tolist() == [2, 0]
    assert sub_dict(rows, slice(1, None))["next", "obs", "state"].shape == (2, 2)


def test_a_tensor_is_no_nested_entry(rows: TensorDict) -> None:
    with pytest.raises(TypeError, match=r"entry 'action' is a Tensor, not a TensorDict; read"):
        sub_dict(rows, "action")
