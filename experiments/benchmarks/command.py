"""`pitune bench`: the table of all parts, or the benchmark that a word picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.mistakes import HELP_ALL
from pitune.experiments.command_line.parsing import arguments

BENCHMARKS: Mapping[str, str] = {
    "attention": "forms of π0's attention at its full sizes",
    "delay": "success and smoothness under decision delays, by seam",
    "network_options": "loss and success of clones with options of the network",
    "parts": "time of every part, as a multiple of the bare network's",
    "pi0": "time and memory of a π0: prefix, flow steps, a training step",
    "rollout": "speed of chunked collection against the bare simulator",
    "saving": "time of checkpoints with a full replay memory of pictures",
    "serving": "throughput and latency of a server, for one client and many",
    "soak": "memory and times of a long training, quarter by quarter",
    "update": "time that off-policy learning adds to an environment step",
    "workers": "time of a chunk with environments here, in processes, on Ray",
}
"""Module of each benchmark, with one line for the overview."""

MODULES = {
    "attention": "parts.attention",
    "parts": "parts.table",
    "saving": "parts.saving",
    "workers": "parts.workers",
}
"""Modules that are not named like their benchmark."""
DEFAULT = "parts"
"""The benchmark without a word."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        args = arguments(argv)
        if args and args[0] in ("-h", "--help", HELP_ALL):
            print(overview())
            return
        if not args or args[0].startswith("-"):
            args = [DEFAULT, *args]
        if args[0] not in BENCHMARKS:
            nearest = get_close_matches(args[0], BENCHMARKS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
            raise ValueError(f"unknown benchmark {args[0]!r}{hint} valid: {', '.join(BENCHMARKS)}")
        module = MODULES.get(args[0], args[0])
        import_module(f"pitune.experiments.benchmarks.{module}").main(args[1:])


def overview() -> str:
    """Return the benchmarks, one per line."""
    lines = [f"  {name:<15} {summary}" for name, summary in BENCHMARKS.items()]
    head = f"benchmarks ({DEFAULT} by default):"
    return "\n".join(["usage: pitune bench [BENCHMARK] [OPTIONS]", "", head, *lines])


if __name__ == "__main__":
    main()
