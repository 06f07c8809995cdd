"""Recurrent memory: tokens that one decision writes and the next one of the episode reads.

    decision t        memory M(t) ── read by ──> action tokens (every flow step)
                        │                 ┌───── pictures, prompt, state of decision t
                        └─── written by ──┴───> M(t + 1)

The action tokens attend to the read tokens before the expert's first layer. The result is projected
by a matrix that starts at zero, so a loaded checkpoint computes the same numbers. The write tokens
are a block of their own in the action expert. They attend to pictures, prompt, state and the old
memory, and not to the actions, so the new memory is a deterministic function of the observation and
the old memory: scoring a decision computes the memory that acting did.

A gate mixes old and new memory entry by entry, M(t + 1) = M(t) + g * (tanh(c) - M(t)), so that a
memory can be kept over many decisions. An episode begins with zeros.

In shapes, `memory` is the number of memory tokens and `prefix` that of the cached tokens.
Letters: N rows, L tokens, D width.
Sources: Bulatov et al. 2022 (RMT), Cherepanov et al. 2023 (RATE). RMT's write tokens attend to the
whole segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pitune.policies.network.extensions import Extension
from pitune.policies.network.layers import Linear, RMSNorm
from pitune.policies.network.options.option import OptionConfig
from pitune.policies.network.options.tokens.gated_tokens import Extra
from pitune.ranges import NonNegativeInt

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config
    from pitune.policies.network.context import Context
    from pitune.policies.network.gemma import Gemma
    from pitune.policies.network.pi0 import Pi0


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(OptionConfig):
    """Size of the memory that the decisions of an episode share.

    Example:
        >>> MemoryConfig(num_tokens=4).is_on
        True
    """

    group: ClassVar[str | None] = "memory"

    num_tokens: NonNegativeInt = 0
    """Tokens that a decision writes and the next one reads, each of the expert's width. 0 is no
    memory."""

    def check(self, network: Pi0Config) -> None:
        expert = network.expert
        if expert.width % expert.num_heads:
            raise ValueError(
                f"options.memory.num_tokens={self.num_tokens} needs heads that divide the "
                f"expert's width={expert.width}, and num_heads={expert.num_heads} do not; change "
                "one, or leave the memory out"
            )

    def module(self, network: Pi0Config) -> Memory | None:
        return Memory(network, self.num_tokens)


class Memory(Extension):
    """Reads and writes the memory tokens of a network.

    Args:
        config: Sizes of the network.
        num_tokens: Memory tokens, each of the expert's width.

    Example:
        >>> from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
        >>> sizes = Pi0Config(state_dim=4, action_dim=2, action_horizon=3, expert=LAPTOP_EXPERT)
        >>> memory = Memory(sizes, num_tokens=4)
        >>> memory.empty(2).shape  # (N, memory, D)
        torch.Size([2, 4, 64])
        >>> tokens = torch.randn(2, 3, 64)  # (N, L, D)
        >>> torch.equal(memory.read(tokens, memory.empty(2)), tokens)
        True
    """

    group = "memory"

    def __init__(self, config: Pi0Config, num_tokens: int) -> None:
        super().__init__()
        width, self.num_tokens = config.expert.width, num_tokens
        self.num_heads = config.expert.num_heads
        # reading
        self.norm = RMSNorm(width)
        self.read_slots = nn.Parameter(torch.empty(num_tokens, width))
        # a bias of the keys would shift all of a query's scores alike
        self.q_proj, self.k_proj = Linear(width, width), Linear(width, width, bias=False)
        self.v_proj, self.o_proj = Linear(width, width), Linear(width, width, bias=False)
        # writing
        self.write_slots = nn.Parameter(torch.empty(num_tokens, width))
        self.in_proj = Linear(width, width, bias=False)
        self.gate, self.candidate = Linear(width, width), Linear(width, width)
        if config.expert.adaptive:  # stands where the action tokens have the flow time
            self.condition = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.children():
            if isinstance(module, Linear):
                module.reset_parameters()
        nn.init.zeros_(self.norm.weight)
        nn.init.normal_(self.read_slots, std=1.0)
        nn.init.normal_(self.write_slots, std=1.0)
        nn.init.zeros_(self.o_proj.weight)  # exact identity until it is trained
        if hasattr(self, "condition"):
            nn.init.zeros_(self.condition)

    def empty(self, num: int) -> Tensor:
        """Return the memory (N, memory, D) of episodes that begin: zeros."""
        return self.read_slots.new_zeros(num, *self.read_slots.shape, dtype=torch.float32)

    def read(self, tokens: Tensor, memory: Tensor | None) -> Tensor:
        """Return action tokens (N, L, D) after they have attended to a memory (N, memory, D).

        None stands for the memory of an episode that begins.
        """
        # attention from the action tokens (N, L, D) to the read tokens (N, memory, D)
        memory = self.empty(len(tokens)) if memory is None else memory
        read = memory.to(tokens.dtype) + self.read_slots.to(tokens.dtype)
        query = self.q_proj(self.norm(tokens)[0])
        query, key, value = (
            rearrange(y, "n l (heads dim) -> n heads l dim", heads=self.num_heads)
            for y in (query, self.k_proj(read), self.v_proj(read))
        )
        y = scaled_dot_product_attention(query, key, value)
        return tokens + self.o_proj(rearrange(y, "n heads l dim -> n l (heads dim)"))

    def write(self, expert: Gemma, context: Context, memory: Tensor, dtype: torch.dtype) -> Context:
        """Return a context (N) that reads a memory, with the memory for the next decision.

        Args:
            expert: The action expert, in which the write tokens are a block.
            context: Keys and values of pictures, prompt and state.
            memory: The old memory (N, memory, D).
            dtype: Precision of the expert.
        """
        num, count, valid = len(memory), self.num_tokens, context.valid
        tokens = (self.write_slots + self.in_proj(memory)).to(dtype)
        # one block after the cached tokens, each of which attends to the whole block
        place = torch.arange(count, device=memory.device)
        mask: Tensor | None = None
        if valid is None:
            positions = (context.cache[0][0].shape[2] + place).expand(num, -1)
        else:
            positions = valid.sum(1, keepdim=True) + place
            own = valid.new_ones(num, count)
            mask = repeat(torch.cat([valid, own], 1), "n l -> n 1 count l", count=count)
        # π0.5's norms have a condition (N, 1, D)
        condition = None
        if hasattr(self, "condition"):
            condition = self.condition.to(dtype).expand(num, 1, -1)
        extra = Extra(side=context.side or {})
        hidden, _ = expert(tokens, positions, mask, context.cache, condition, extra)
        hidden = hidden.float()
        # the gated mixture of old and new memory (N, memory, D)
        gate = torch.sigmoid(self.gate(hidden))
        written = memory + gate * (torch.tanh(self.candidate(hidden)) - memory)
        # guidance without the condition reads the same memory
        null = None if context.null is None else context.null._replace(memory=memory)
        return context._replace(memory=memory, written=written, null=null)


def with_read_memory(network: Pi0, context: Context, tokens: Tensor) -> Tensor:
    """Return action tokens (N, L, D) after they have read the memory, if the option is on."""
    if "memory" not in network.options:
        return tokens
    return cast(Memory, network.options["memory"]).read(tokens, context.memory)


def with_written_memory(network: Pi0, context: Context, memory: Tensor) -> Context:
    """Return a context (N) that reads a memory (N, memory, D), with the one that it writes."""
    module = cast(Memory, network.options["memory"])
    return module.write(network.expert, context, memory, network.compute_dtype)
