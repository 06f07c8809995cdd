"""Further inputs of critics: the last executed action.

It separates decisions with equal observations, for example where velocities are not
observed. The policy does not read it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pitune.policies.network.options.option import OptionConfig


@dataclass(frozen=True, kw_only=True)
class CriticInputConfig(OptionConfig):
    """Further inputs of critics.

    Example:
        >>> CriticInputConfig(last_action=True).is_on
        True
    """

    last_action: bool = False
    """Whether critics also read the last executed action, which is 0 at the start of an episode."""
