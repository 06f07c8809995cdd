"""Observations as actors, critics and learners read them."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.policies import FlowPolicy


def observed(policy: FlowPolicy, state: Tensor, **entries: Tensor) -> TensorDict:
    """Return measured states (N, s) with their `model_input`, and further entries (N, ...)."""
    td = TensorDict(entries | {"state": state}, batch_size=[len(state)])
    with torch.no_grad():
        preprocessed = policy.observation_preprocessor(())(td)
    assert isinstance(preprocessed, TensorDict)
    return preprocessed
