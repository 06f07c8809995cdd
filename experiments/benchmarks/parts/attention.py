"""Time of the forms of π0's attention at its full sizes, forward and backward.

    pitune bench attention --device cuda --dtype bfloat16

The queries of an action chunk read an encoded prefix and their own block: eight heads on one key
head of width 256. `ours` is the form of `pitune.policies.network.attention`. `grouped` leaves the
single key head to torch, and `plain` is torch's kernel that keeps all scores. FlexAttention is
compiled with a block mask. A form that a device refuses has no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from pitune.experiments.benchmarks.parts.clock import wait_for
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.policies.network.attention import additive, attend
from pitune.ranges import DeviceName, PositiveInt, Settings, Threads

HEADS, WIDTH = 8, 256
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Settings):
    """Time the forms of attention.

    Example:
        >>> AttentionConfig(rows=2).prefix_tokens
        816
    """

    rows: PositiveInt = 32
    """B."""
    prefix_tokens: PositiveInt = 816
    """Tokens of the prefix: three pictures of 256 tokens and 48 words by default."""
    suffix_tokens: PositiveInt = 51
    """L, tokens of the block: a state and 50 actions by default."""
    padded: PositiveInt = 20
    """Tokens of padding at the end of the prefix, in the forms with a mask."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision."""
    repeats: PositiveInt = 20
    """Measurements of each form, of which the median counts."""
    flex: bool = True
    """Whether to compile and time FlexAttention."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to compute."""
    torch_threads: Threads = 2
    """Threads of PyTorch on the CPU."""


def mask_of(config: AttentionConfig) -> Tensor:
    """Return where the queries may attend (B, 1, L, prefix + L)."""
    keys = torch.arange(config.prefix_tokens + config.suffix_tokens, device=config.device)
    end = config.prefix_tokens
    valid = (keys < end - config.padded) | (keys >= end)
    return valid.expand(config.rows, 1, config.suffix_tokens, -1).contiguous()


def forms(config: AttentionConfig) -> dict[str, Form]:
    """Return the forms by name."""
    mask = mask_of(config)
    bias = additive(mask, getattr(torch, config.dtype))

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel([SDPBackend.MATH]):
            return attend(query, key, value, bias)

    def grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    found: dict[str, Form] = {
        "ours, with padding": lambda q, k, v: attend(q, k, v, bias),
        "ours, without padding": lambda q, k, v: attend(q, k, v, None),
        "grouped, with padding": grouped,
        "plain, with padding": plain,
    }
    if config.flex:
        found["FlexAttention, with padding"] = flex_form(config)
    return found


def flex_form(config: AttentionConfig) -> Form:
    """Return FlexAttention, compiled, with the block mask of the padding."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    start, end = config.prefix_tokens - config.padded, config.prefix_tokens
    length, keys = config.suffix_tokens, end + config.suffix_tokens

    def visible(_b: Tensor, _h: Tensor, _q: Tensor, key: Tensor) -> Tensor:
        return (key < start) | (key >= end)

    blocks = create_block_mask(visible, None, None, length, keys, device=config.device)
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    # heads of width 256 leave its usual tiles too little shared memory
    tiles = {"BLOCK_M1": 32, "BLOCK_N1": 32, "BLOCK_M2": 32, "BLOCK_N2": 32}
    options = {"BLOCK_M": 64, "BLOCK_N": 32, "num_stages": 1, **tiles}
    return lambda q, k, v: compiled(
        q, k, v, block_mask=blocks, enable_gqa=True, kernel_options=options
    )


def milliseconds(form: Form, config: AttentionConfig, gradient: bool) -> float:
    """Return the median time of a form, of its gradient too if asked [ms]."""
    torch.manual_seed(0)
    length, keys = config.suffix_tokens, config.prefix_tokens + config.suffix_tokens
    options: dict[str, Any] = {
        "dtype": getattr(torch, config.dtype),
        "device": config.device,
        "requires_grad": gradient,
    }
    query = torch.randn(config.rows, HEADS, length, WIDTH, **options)
    key, value = (torch.randn(config.rows, 1, keys, WIDTH, **options) for _ in range(2))
    times, device = [], torch.device(config.device)
    for _ in range(config.repeats + 3):
        wait_for(device)
        start = time.perf_counter()
        result = form(query, key, value)
        if gradient:
            torch.autograd.grad(result.sum(), (query, key, value))
        wait_for(device)
        times.append(1000 * (time.perf_counter() - start))
    return median(times[3:])


def benchmark(config: AttentionConfig) -> dict[str, tuple[float, float] | None]:
    """Measure, print the table, and return the times of each form: without and with gradient."""
    torch.set_num_threads(config.torch_threads)
    table = Table(title=f"attention of π0, {config.rows} rows, {config.dtype}, {config.device}")
    for column in ("form", "forward [ms]", "ratio", "with gradient [ms]", "ratio"):
        table.add_column(column, justify="left" if column == "form" else "right")
    found: dict[str, tuple[float, float] | None] = {}
    for name, form in forms(config).items():
        try:
            with torch.no_grad():
                forward = milliseconds(form, config, gradient=False)
            found[name] = forward, milliseconds(form, config, gradient=True)
        except (RuntimeError, NotImplementedError) as error:
            found[name] = None
            table.add_row(name, "refused", "", str(error).splitlines()[0][:40], "")
    first = found["ours, with padding"]
    for name, times in found.items():
        if times is not None:
            cells = []
            for part, base in zip(times, first or times, strict=True):
                cells += [f"{part:.3f}", f"{part / base:.2f}"]
            table.add_row(name, *cells)
    Console(width=100).print(table)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            AttentionConfig,
            arguments(argv),
            prog=program("bench attention"),
            description=__doc__ or "",
        )
        benchmark(config)


if __name__ == "__main__":
    main()
