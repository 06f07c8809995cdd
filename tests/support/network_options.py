"""The options of the network, one row each, for the contract that all of them and all pairs keep.

A new option adds its row to `CASES`. tests/policies/network/options/test_contract.py holds it to
the contract, alone and with every other option.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import nn

from pitune.policies import NetworkOptions, Pi0
from pitune.policies.network.config import Family
from pitune.policies.network.extensions import new_parameters
from pitune.policies.network.options.critic_input import CriticInputConfig
from pitune.policies.network.options.hyper_connections import HyperConnectionsConfig
from pitune.policies.network.options.insulation import InsulationConfig
from pitune.policies.network.options.language_head import LanguageHeadConfig
from pitune.policies.network.options.linear_norms import LinearNormsConfig
from pitune.policies.network.options.prediction import PredictionConfig
from pitune.policies.network.options.status import StatusConfig
from pitune.policies.network.options.tokens.conditioning import ConditioningConfig
from pitune.policies.network.options.tokens.memory import MemoryConfig
from pitune.policies.network.options.tokens.registers import RegistersConfig
from pitune.policies.network.options.tokens.state_tokens import StateTokensConfig
from pitune.policies.network.options.value_residual import ValueResidualConfig

TASKS = ("put_the bowl", "reach the goal", "go away from the goal and stop there")
"""Tasks of the observations in the contract."""
BOTH: tuple[Family, ...] = ("pi0", "pi05")


@dataclass(frozen=True, kw_only=True)
class OptionCase:
    """An option, or several at once."""

    name: str
    options: NetworkOptions
    families: tuple[Family, ...] = BOTH
    """Families that can have it."""
    identity: bool = True
    """Whether pretrained weights compute the same numbers with it. Otherwise it is refused."""
    has_parameters: bool = True
    silent: bool = False
    """Whether the velocity of the network alone does not read its parameters."""
    unused_at_start: tuple[str, ...] = ()
    """Ends of the names of parameters whose gradient is 0 until the option is trained."""
    unused: tuple[str, ...] = ()
    """Ends of the names of parameters that the velocity does not read."""
    in_vlm: tuple[str, ...] = ()
    """Ends of the names of parameters that the flow has no gradient for under insulation."""
    refused_likelihoods: tuple[str, ...] = ()
    """Likelihoods that cannot score with it, and name it."""

    def __and__(self, other: OptionCase) -> OptionCase:
        in_vlm = (*self.in_vlm, *other.in_vlm)
        behind = in_vlm if "insulation" in (*self.on, *other.on) else ()
        return OptionCase(
            name=f"{self.name}+{other.name}",
            options=self.options.merged(other.options),
            families=tuple(name for name in self.families if name in other.families),
            identity=self.identity and other.identity,
            has_parameters=self.has_parameters or other.has_parameters,
            silent=all(case.silent or not case.has_parameters for case in (self, other)),
            unused_at_start=(*self.unused_at_start, *other.unused_at_start),
            unused=(*self.unused, *other.unused, *behind),
            in_vlm=in_vlm,
            refused_likelihoods=(*self.refused_likelihoods, *other.refused_likelihoods),
        )

    @property
    def on(self) -> list[str]:
        """Names of the options that are on."""
        return self.options.names


CASES: tuple[OptionCase, ...] = (
    OptionCase(
        name="value_residual",
        options=NetworkOptions(value_residual=ValueResidualConfig(mode="dynamic")),
    ),
    OptionCase(
        name="memory",
        options=NetworkOptions(memory=MemoryConfig(num_tokens=3)),
        # the matrix behind the reading starts at 0
        unused_at_start=tuple(
            f"memory.{name}"
            for name in (
                "read_slots",
                "norm.weight",
                *(f"{p}_proj.weight" for p in "qkv"),
                "q_proj.bias",
                "v_proj.bias",
            )
        ),
        # of the writing, which the next decision reads
        unused=tuple(
            f"memory.{name}"
            for name in (
                "write_slots",
                "in_proj.weight",
                "condition",
                *(f"{p}.{kind}" for p in ("gate", "candidate") for kind in ("weight", "bias")),
            )
        ),
    ),
    OptionCase(
        name="registers",
        options=NetworkOptions(registers=RegistersConfig(num=2)),
        unused_at_start=(".tokens",),
    ),
    OptionCase(
        name="prefix_registers",
        options=NetworkOptions(registers=RegistersConfig(prefix=2)),
        unused_at_start=("model.registers.tokens",),
        # behind the last keys and values of the prefix, which the flow reads
        unused=("language_model.layers.1.self_attn.gates.registers.gate",),
        in_vlm=(
            "model.registers.tokens",
            "language_model.layers.0.self_attn.gates.registers.gate",
        ),
    ),
    OptionCase(
        name="hyper_connections",
        options=NetworkOptions(hyper_connections=HyperConnectionsConfig(streams=3)),
        unused_at_start=(".scale",),
    ),
    OptionCase(
        name="linear_norms",
        options=NetworkOptions(linear_norms=LinearNormsConfig(mode="gated")),
        unused_at_start=(".weight",),
    ),
    OptionCase(
        name="full_linear_norms",
        options=NetworkOptions(linear_norms=LinearNormsConfig(mode="full")),
        identity=False,
    ),
    OptionCase(
        name="state_tokens",
        options=NetworkOptions(state_tokens=StateTokensConfig(parts=(3, 1), encoders=("mlp",))),
        unused_at_start=(
            "parts.0.weight",
            "parts.0.bias",
            "parts.1.weight",
            "parts.1.bias",
            "net.0.weight",
            "net.0.bias",
            "net.2.weight",
            "net.2.bias",
            "norm_condition",
        ),
    ),
    OptionCase(
        name="predicted_action",
        options=NetworkOptions(prediction=PredictionConfig(output="action", loss="action")),
        identity=False,
        has_parameters=False,
        refused_likelihoods=("ode",),
    ),
    OptionCase(
        name="critic_input",
        options=NetworkOptions(critic_input=CriticInputConfig(last_action=True)),
        has_parameters=False,
        silent=True,  # the velocity does not read it
    ),
    OptionCase(
        name="insulation",
        options=NetworkOptions(insulation=InsulationConfig(enabled=True)),
        has_parameters=False,
    ),
    OptionCase(
        name="language_head",
        options=NetworkOptions(language_head=LanguageHeadConfig(enabled=True)),
        has_parameters=False,
    ),
    OptionCase(
        name="status",
        options=NetworkOptions(status=StatusConfig(enabled=True)),
        silent=True,
        unused=("status.linear.weight", "status.linear.bias"),
    ),
    OptionCase(
        name="advantage",
        options=NetworkOptions(
            conditioning=ConditioningConfig(advantage=True, return_bins=5, task=True, tasks=TASKS)
        ),
        unused=("nulls.advantage", "nulls.return", "nulls.task"),  # nothing is dropped
    ),
    OptionCase(
        name="instruction",
        options=NetworkOptions(conditioning=ConditioningConfig(instruction=True)),
        families=("pi0",),
        silent=True,  # nothing is dropped
        unused=("nulls.instruction",),
    ),
)
"""One row for each option."""


def pairs() -> list[OptionCase]:
    """Return every pair of rows that can be on at once."""
    both = (a & b for a, b in combinations(CASES, 2) if not set(a.on) & set(b.on))
    return [case for case in both if case.families]


def cases_and_families(
    cases: list[OptionCase] | tuple[OptionCase, ...],
) -> Iterator[tuple[OptionCase, Family]]:
    """Yield each case with each of its families."""
    return ((case, family) for case in cases for family in case.families)


def perturb(network: Pi0, std: float = 0.3) -> None:
    """Add noise to all parameters of the options, as if they had been trained."""
    generator = torch.Generator().manual_seed(1)
    new = new_parameters(network)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name in new:
                value.add_(std * torch.randn(value.shape, generator=generator))


def gradients(network: nn.Module, names: set[str]) -> dict[str, float]:
    """Return the greatest absolute gradient of named parameters, 0 where there is none."""
    return {
        name: 0.0 if value.grad is None else float(value.grad.abs().max())
        for name, value in network.named_parameters()
        if name in names
    }
