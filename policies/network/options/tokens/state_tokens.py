"""State tokens: parts of the state as tokens of their own, and encoders from outside.

The tokens are a block after the published state token, computed once per observation. They attend
to pictures, prompt and state, and the actions attend to them through gates that start at 0 (see
`gated_tokens`). A registered encoder turns the state into tokens. An outside embedding is an
ordinary part of the environment's state, and its encoder reads those entries.
Letters: B rows, S model state dim, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from pitune.policies.network.extensions import Extension
from pitune.policies.network.layers import Linear
from pitune.policies.network.options.option import OptionConfig
from pitune.ranges import PositiveInt

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config


class StateEncoder(nn.Module, ABC):
    """Turns normalized states into tokens. A subclass is made with the network's `Pi0Config`.

    Example:
        >>> @register_state_encoder("doc_ends")
        ... class Ends(StateEncoder):
        ...     def __init__(self, network):
        ...         super().__init__()
        ...         self.linear = nn.Linear(2, network.expert.width)
        ...
        ...     def reset_parameters(self):
        ...         self.linear.reset_parameters()
        ...
        ...     def forward(self, state):  # (B, S)
        ...         return self.linear(state[:, [0, -1]])[:, None]  # (B, parts, D)
    """

    @abstractmethod
    def reset_parameters(self) -> None:
        """Give every parameter its initial value."""

    @abstractmethod
    def forward(self, state: Tensor) -> Tensor:
        """Return tokens (B, parts, D) of normalized states (B, S), float32."""


_ENCODERS: dict[str, Callable[[Pi0Config], StateEncoder]] = {}
EncoderType = TypeVar("EncoderType", bound=Callable[..., StateEncoder])


def register_state_encoder(name: str) -> Callable[[EncoderType], EncoderType]:
    """Register a class of state encoders under a name.

    Raises:
        ValueError: another class has the name.
    """

    def register(cls: EncoderType) -> EncoderType:
        before = _ENCODERS.get(name)
        if before is not None and getattr(before, "__qualname__", "") != cls.__qualname__:
            raise ValueError(f"state encoder name={name!r} is taken; choose another name")
        _ENCODERS[name] = cls
        return cls

    return register


@dataclass(frozen=True, kw_only=True)
class StateTokensConfig(OptionConfig):
    """The parts of the state and the encoders.

    Example:
        >>> StateTokensConfig(parts=(6, 1)).is_on
        True
    """

    group: ClassVar[str | None] = "state_tokens"

    parts: tuple[PositiveInt, ...] = ()
    """Numbers of entries of the state's parts, from the first entry on, for example of the arm and
    the gripper. Each part is a token beside the published state token."""
    encoders: tuple[str, ...] = ()
    """Registered state encoders, whose tokens follow."""

    def check(self, network: Pi0Config) -> None:
        if sum(self.parts) > network.state_dim:
            raise ValueError(
                f"options.state_tokens.parts={self.parts} have {sum(self.parts)} entries, but the "
                f"state has state_dim={network.state_dim}; leave some out"
            )
        unknown = [name for name in self.encoders if name not in _ENCODERS]
        if unknown:
            raise ValueError(
                f"options.state_tokens.encoders names unknown {unknown}; registered are "
                f"{sorted(_ENCODERS)}. Import the module that registers them first"
            )
        if len(set(self.encoders)) < len(self.encoders):
            raise ValueError(
                f"options.state_tokens.encoders={self.encoders} names one twice; name each once"
            )

    def module(self, network: Pi0Config) -> StateTokens:
        return StateTokens(self, network)


class StateTokens(Extension):
    """The tokens of a state.

    Args:
        config: Settings.
        network: Sizes.

    Example:
        >>> from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
        >>> sizes = Pi0Config(state_dim=7, action_dim=2, action_horizon=8, expert=LAPTOP_EXPERT)
        >>> StateTokens(StateTokensConfig(parts=(6, 1)), sizes)(torch.zeros(3, 7)).shape
        torch.Size([3, 2, 64])
    """

    group = "state_tokens"
    norm_condition: nn.Parameter | None

    def __init__(self, config: StateTokensConfig, network: Pi0Config) -> None:
        super().__init__()
        width = network.expert.width
        bounds = list(accumulate(config.parts, initial=0))
        self.slices = [slice(start, stop) for start, stop in pairwise(bounds)]
        self.parts = nn.ModuleList(Linear(num, width) for num in config.parts)
        self.encoders = nn.ModuleDict({name: _ENCODERS[name](network) for name in config.encoders})
        # π0.5's norms need a condition, and these tokens have no flow time
        adaptive = network.expert.adaptive
        condition = nn.Parameter(torch.empty(width)) if adaptive else None
        self.register_parameter("norm_condition", condition)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # random numbers of their own, so that other weights do not depend on this option
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for part in self.parts:
                weight: Tensor = part.weight  # type: ignore[assignment]
                noise = torch.randn(weight.shape, generator=generator, device="cpu")
                weight.copy_(noise * weight.shape[1] ** -0.5)
                part.bias.zero_()  # type: ignore[operator]
            if self.norm_condition is not None:
                self.norm_condition.zero_()
        # a registered encoder draws from the global generator, which is restored afterwards
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for encoder in self.encoders.values():
                encoder.reset_parameters()  # type: ignore[operator]

    def forward(self, state: Tensor) -> Tensor:
        """Return the tokens (B, parts, D) of normalized states (B, S)."""
        # (B, entries) -> (B, 1, D) for each part
        parts = [
            part(state[:, rows])[:, None]
            for part, rows in zip(self.parts, self.slices, strict=True)
        ]
        return torch.cat([*parts, *(encoder(state) for encoder in self.encoders.values())], dim=1)

    def condition(self, num_rows: int) -> Tensor | None:
        """Return the condition of adaptive norms (B, 1, D), None for norms without one."""
        if self.norm_condition is None:
            return None
        return self.norm_condition.expand(num_rows, 1, -1)


@register_state_encoder("mlp")
class MLPEncoder(StateEncoder):
    """One token: a hidden layer over the whole state.

    Args:
        network: Sizes.

    Example:
        >>> from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
        >>> sizes = Pi0Config(state_dim=7, action_dim=2, action_horizon=8, expert=LAPTOP_EXPERT)
        >>> MLPEncoder(sizes)(torch.zeros(3, 7)).shape
        torch.Size([3, 1, 64])
    """

    def __init__(self, network: Pi0Config) -> None:
        super().__init__()
        width = network.expert.width
        self.net = nn.Sequential(
            nn.Linear(network.state_dim, width), nn.SiLU(), nn.Linear(width, width)
        )

    def reset_parameters(self) -> None:
        for layer in (self.net[0], self.net[2]):
            layer.reset_parameters()  # type: ignore[operator]

    def forward(self, state: Tensor) -> Tensor:
        tokens: Tensor = self.net(state)
        return tokens[:, None]
