"""`NetworkOptions`: one field for each option of the network.

A new option adds its field here. Its settings are an `OptionConfig` in a module of this folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from pitune.policies.network.options.critic_input import CriticInputConfig
from pitune.policies.network.options.hyper_connections import HyperConnectionsConfig
from pitune.policies.network.options.insulation import InsulationConfig
from pitune.policies.network.options.language_head import LanguageHeadConfig
from pitune.policies.network.options.linear_norms import LinearNormsConfig
from pitune.policies.network.options.option import OptionConfig, built
from pitune.policies.network.options.prediction import PredictionConfig
from pitune.policies.network.options.status import StatusConfig
from pitune.policies.network.options.tokens.conditioning import ConditioningConfig
from pitune.policies.network.options.tokens.memory import MemoryConfig
from pitune.policies.network.options.tokens.registers import RegistersConfig
from pitune.policies.network.options.tokens.state_tokens import StateTokensConfig
from pitune.policies.network.options.value_residual import ValueResidualConfig
from pitune.ranges import Settings

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Settings):
    """Options of the network beyond the published one, all off by default.

    Example:
        >>> options = NetworkOptions(value_residual=ValueResidualConfig(mode="static"))
        >>> options.names
        ['value_residual']
    """

    value_residual: ValueResidualConfig = field(default_factory=ValueResidualConfig)
    """Values of the first layer in the attention of the others."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Tokens that a decision hands on to the next one of its episode."""
    registers: RegistersConfig = field(default_factory=RegistersConfig)
    """Learned tokens beside the actions."""
    hyper_connections: HyperConnectionsConfig = field(default_factory=HyperConnectionsConfig)
    """Several residual streams."""
    linear_norms: LinearNormsConfig = field(default_factory=LinearNormsConfig)
    """Norms after the linear layers of the action expert."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """Quantity that the network predicts, and the space of its loss."""
    state_tokens: StateTokensConfig = field(default_factory=StateTokensConfig)
    """Further tokens of the state."""
    critic_input: CriticInputConfig = field(default_factory=CriticInputConfig)
    """Further inputs of critics."""
    insulation: InsulationConfig = field(default_factory=InsulationConfig)
    """No gradient of the flow in the vision-language model."""
    language_head: LanguageHeadConfig = field(default_factory=LanguageHeadConfig)
    """Tokens that the language model predicts."""
    status: StatusConfig = field(default_factory=StatusConfig)
    """Classification of decisions: ongoing, done or invalid."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    """Conditions that training drops at times, for guidance: advantage, return, instruction."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkOptions:
        """Rebuild from `dataclasses.asdict`, by way of JSON.

        Raises:
            ValueError: a newer version wrote the values.
        """
        return built(cls, values)

    def active(self) -> Iterator[tuple[str, OptionConfig]]:
        """Yield the options that are on, by name."""
        for item in fields(self):
            option: OptionConfig = getattr(self, item.name)
            if option.is_on:
                yield item.name, option

    @property
    def names(self) -> list[str]:
        """Names of the options that are on."""
        return [name for name, _ in self.active()]

    def check(self, network: Pi0Config) -> None:
        """Check that a network of these sizes can have the options.

        Raises:
            ValueError: it cannot.
        """
        for _, option in self.active():
            option.check(network)

    def check_pretrained(self) -> None:
        """Check that pretrained weights compute the same numbers with the options.

        Raises:
            ValueError: they would not.
        """
        for name, option in self.active():
            fault = option.pretrained_fault()
            if fault is not None:
                raise ValueError(
                    f"options.{name}.{fault}, so pretrained weights would compute other numbers; "
                    "take it for a new network (pitune pretrain --network-options), or leave it out"
                )

    def merged(self, added: NetworkOptions) -> NetworkOptions:
        """Return these options and those that another has on.

        Raises:
            ValueError: an option is on in both, with other settings.
        """
        before = dict(self.active())
        for name, option in added.active():
            if before.get(name, option) != option:
                raise ValueError(
                    f"options.{name}={option} cannot be added: the network has {before[name]} "
                    "already; leave it out"
                )
        return replace(self, **dict(added.active()))  # type: ignore[arg-type]


def option_groups() -> list[str]:
    """Return the parameter groups of all options."""
    options = NetworkOptions()
    groups = (getattr(options, item.name).group for item in fields(options))
    return [group for group in groups if group is not None]
