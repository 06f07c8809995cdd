"""Compiled copies of policies, and the number of their graphs."""

from __future__ import annotations

from copy import deepcopy

import torch

from pitune.policies import FlowPolicy


def num_graphs() -> int:
    """Return the graphs so far, and fail if one was broken."""
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert not breaks, dict(breaks)
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def both(policy: FlowPolicy, backend: str = "eager") -> tuple[FlowPolicy, FlowPolicy]:
    """Return a policy and a copy that is compiled."""
    compiled = deepcopy(policy)
    compiled.compile_functions(backend)
    return policy, compiled


def forget_compiled() -> None:
    """Forget all compiled code and its counts."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
