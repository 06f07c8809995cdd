"""Knowledge insulation: the flow does not train the vision-language model.

The action expert attends to the keys and values of pictures and prompt as to constants. The
language model then learns from the losses of its own tokens alone. The numbers of the forward pass
do not change.

    k, v of the prefix -> stop_gradient(k), stop_gradient(v)   where the expert reads them

Source: Driess et al. 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pitune.policies.network.options.option import OptionConfig
from pitune.policies.network.options.tokens.registers import PREFIX_REGISTERS

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config
    from pitune.policies.network.context import Context
    from pitune.policies.network.gemma import Cache
    from pitune.policies.network.options.config import NetworkOptions


@dataclass(frozen=True, kw_only=True)
class InsulationConfig(OptionConfig):
    """Settings of knowledge insulation.

    Example:
        >>> InsulationConfig(enabled=True).is_on
        True
    """

    enabled: bool = False
    """Whether the flow leaves pictures, prompt and language model without a gradient."""

    def check(self, network: Pi0Config) -> None:
        if network.vlm is None:
            raise ValueError(
                "options.insulation.enabled=True has no use with vlm=None: the policy reads its "
                "state alone; leave it out, or make a policy with cameras or words"
            )


def for_expert(prefix: Context | None, options: NetworkOptions) -> Context | None:
    """Return a prefix as the action expert attends to it, with its text for the language head."""
    if prefix is None:
        return None
    if options.language_head.is_on:
        prefix = prefix._replace(language=prefix.cache)
    if prefix.registers is not None:
        prefix = prefix._replace(side={PREFIX_REGISTERS: prefix.registers})
    return insulated(prefix) if options.insulation.is_on else prefix


def insulated(prefix: Context) -> Context:
    """Return a prefix whose keys and values have no gradient for the action expert.

    Those of its registers, which the expert reads through gates, have none either.

    The pooled features keep theirs: the critics that read them have their own loss. So do the keys
    and values for the language head.

    Example:
        >>> import torch
        >>> from pitune.policies.network.context import Context
        >>> keys = values = torch.zeros(2, 1, 5, 4, requires_grad=True)
        >>> prefix = Context(cache=[(keys, values)], features=torch.zeros(2, 8))
        >>> insulated(prefix).cache[0][0].requires_grad
        False
    """
    side = {kind: _detached(cache) for kind, cache in (prefix.side or {}).items()}
    return prefix._replace(cache=_detached(prefix.cache), side=side or None)


def _detached(cache: Cache) -> Cache:
    return [(keys.detach(), values.detach()) for keys, values in cache]
