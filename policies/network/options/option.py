"""The base class of a network option's settings.

An option is on if its settings differ from their defaults. Most options start as an exact
identity, so a published checkpoint computes the same numbers with them until they are trained. The
others are for new networks, and are refused for pretrained weights by name.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pitune.ranges import Settings, declared_types

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config
    from pitune.policies.network.extensions import Extension

Built = TypeVar("Built")


@dataclass(frozen=True, kw_only=True)
class OptionConfig(Settings):
    """Settings of one option. With their defaults it is off.

    Example:
        >>> from pitune.policies.network.options.value_residual import ValueResidualConfig
        >>> ValueResidualConfig().is_on, ValueResidualConfig(mode="static").is_on
        (False, True)
    """

    group: ClassVar[str | None] = None
    """Parameter group of its parameters, None for an option without parameters."""
    _differs: ClassVar[bool] = False
    """Whether a setting differs from its default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # once here, because the network asks in every evaluation
        defaults = {
            item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for item in fields(self)
        }
        differs = any(getattr(self, name) != value for name, value in defaults.items())
        object.__setattr__(self, "_differs", differs)

    @property
    def is_on(self) -> bool:
        """Whether the settings differ from their defaults."""
        return self._differs

    def pretrained_fault(self) -> str | None:
        """Return why pretrained weights would compute other numbers with it, None if they do not.

        The text follows the option's name, for example "mode='full' is no identity".
        """
        return None

    def check(self, network: Pi0Config) -> None:
        """Raise a ValueError if a network of these sizes cannot have the option."""

    def module(self, network: Pi0Config) -> Extension | None:
        """Return the option's module at the level of the network, which `Pi0.options` holds.

        None for an option whose modules are inside the layers, or that has no parameters.
        """
        return None


def built(kind: type[Built], values: dict[str, Any]) -> Built:
    """Rebuild a dataclass of nested dataclasses from `asdict`, by way of JSON.

    A field that is missing has its default: an older version wrote the values.

    Raises:
        ValueError: a field is unknown, so a newer version wrote the values.
    """
    hints = declared_types(kind)
    unknown = sorted(values.keys() - {item.name for item in fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise ValueError(
            f"unknown fields {unknown} of {kind.__name__}; a newer pitune wrote them, install it"
        )
    parts = {
        name: built(hints[name], value)
        if is_dataclass(hints[name]) and isinstance(value, dict)
        else value
        for name, value in values.items()
    }
    return kind(**parts)


def as_json(options: Settings) -> dict[str, Any]:
    """Return the values of nested settings, the inverse of `built`."""
    return asdict(options)  # type: ignore[call-overload]
