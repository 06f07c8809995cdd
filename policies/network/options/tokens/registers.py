"""Register tokens: learned tokens beside the actions or the prefix, dropped from the output.

Registers of the actions attend to all that the actions attend to, and all tokens of their flow time
attend to them through a gate (see `gated_tokens`) that starts at 0. Registers of the prefix are
tokens of the language model. They attend to pictures and prompt. These, the predicted tokens of a
language head and all tokens of the action expert attend to them through gates. The positions of the
other tokens stay.
In shapes, `prefix` is the number of tokens of pictures and prompt.
Letters: B rows, M scored flow steps, H action horizon, D width.
Source: Darcet et al. 2023 (registers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from pitune.policies.network.extensions import Extension
from pitune.policies.network.options.option import OptionConfig
from pitune.ranges import Range

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config


PREFIX_REGISTERS = "prefix_registers"
"""The kind of tokens that the action expert reads through a gate, in `Context.side`."""


@dataclass(frozen=True, kw_only=True)
class RegistersConfig(OptionConfig):
    """The number of registers.

    Example:
        >>> RegistersConfig(num=4).is_on
        True
    """

    group: ClassVar[str | None] = "registers"

    num: Annotated[int, Range(low=0, high=256)] = 0
    """Register tokens beside the actions of each flow time. 0 for none."""
    prefix: Annotated[int, Range(low=0, high=256)] = 0
    """Register tokens of the language model, beside pictures and prompt. 0 for none."""

    def check(self, network: Pi0Config) -> None:
        if self.prefix and network.vlm is None:
            raise ValueError(
                f"options.registers.prefix={self.prefix} needs a language model, but vlm is None: "
                "the policy reads its state alone; leave it out, or make a policy with cameras or "
                "words"
            )

    def module(self, network: Pi0Config) -> Registers | None:
        # those of the prefix are a part of the language model
        return Registers(self.num, network.expert.width) if self.num else None


class Registers(Extension):
    """The learned tokens beside the actions.

    Args:
        num: Number of tokens.
        width: D.

    Example:
        >>> tokens = Registers(2, width=8)
        >>> tokens(torch.zeros(3, 1, 5, 8)).shape  # (B, M, H + registers, D)
        torch.Size([3, 1, 7, 8])
    """

    group = "registers"

    def __init__(self, num: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num, width))
        self.reset_parameters()

    def __len__(self) -> int:
        return len(self.tokens)

    def reset_parameters(self) -> None:
        # a generator of its own leaves the global random numbers as they are without registers
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            noise = torch.randn(self.tokens.shape, generator=generator, device="cpu")
            self.tokens.copy_(noise)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the action tokens (B, M, H, D) of each flow time with the registers after them."""
        b, m = tokens.shape[:2]
        # (registers, D) -> (B, M, registers, D)
        own = repeat(self.tokens.to(tokens.dtype), "r d -> b m r d", b=b, m=m)
        return torch.cat([tokens, own], dim=2)

    def condition(self, condition: Tensor, num_flow_times: int) -> Tensor:
        """Return the norms' condition with that of the registers, where each token has its own.

        Args:
            condition: (B, M, D), or (B, M * H, D) for flow times of single tokens. A register then
                has the mean of its flow time's tokens.
            num_flow_times: M.
        """
        if condition.shape[1] == num_flow_times:
            return condition
        each = rearrange(condition, "b (m h) d -> b m h d", m=num_flow_times)
        mean = reduce(each, "b m h d -> b m 1 d", "mean").expand(-1, -1, len(self), -1)
        return rearrange(torch.cat([each, mean], dim=2), "b m h d -> b (m h) d")


class PrefixRegisters(Registers):
    """The learned tokens beside pictures and prompt, of the language model's width.

    See `Registers` for the arguments.

    Example:
        >>> tokens = PrefixRegisters(2, width=8)
        >>> tokens(torch.zeros(3, 5, 8)).shape  # (B, prefix + registers, D)
        torch.Size([3, 7, 8])
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens of a prefix (B, prefix, D) with the registers after them."""
        # the prefix is a single group
        return super().forward(tokens[:, None])[:, 0]
