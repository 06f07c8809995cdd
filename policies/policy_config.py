"""Settings of a flow policy's sampler, and the facts about a policy that its weights do not hold.

Letters: K flow steps, H action horizon, h executed actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pitune.policies.flow.ode import Solver
from pitune.policies.network.lora import LoRAConfig
from pitune.policies.preprocessing.prompt import Encoder


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Sampling and execution of a chunk, the same for fine-tuning and deployment.

    Example:
        >>> SamplerConfig(flow_steps=10).execution_horizon
        4
    """

    flow_steps: int = 4
    """K, steps from noise to action. Evaluate with the number used in training."""
    execution_horizon: int = 4
    """h, number of the H predicted actions that are executed before the next decision."""
    solver: Solver = "euler"
    """ODE solver of the deployed policy."""
    accumulated_time: bool = False
    """Whether flow times are accumulated (openpi) or computed (lerobot), see `TimeGrid`."""


@dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """Facts about a policy that its weights do not hold. An info is replaced, never changed.

    Example:
        >>> PolicyInfo(origin={"format": "openpi"}).tokenizer is None
        True
    """

    origin: Mapping[str, Any] = field(default_factory=dict)
    """Entries that an export in the checkpoint's own format needs."""
    tokenizer: Encoder | None = None
    """Tokenizer of a policy with a prompt."""
    lora: LoRAConfig | None = None
    """The network's low-rank updates."""

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyInfo:
        return self
