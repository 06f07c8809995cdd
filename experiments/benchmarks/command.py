"""`pitune bench`: a word picks the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.mistakes import HELP_ALL
from pitune.experiments.command_line.parsing import arguments

BENCHMARKS: Mapping[str, str] = {
    "delay": "success and smoothness under decision delays, for four kinds of seams",
    "network_options": "loss and success of cloned policies with options of the network",
    "pi0": "time and memory of a π0 network: prefix, flow steps, a training step",
    "rollout": "speed of chunked collection against the bare simulator",
    "serving": "throughput and latency of a policy server for one client and for many",
    "soak": "memory, iteration and checkpoint time of a long training, quarter by quarter",
    "update": "time that off-policy learning adds to an environment step",
}
"""Module of each benchmark, with one line for the overview."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        args = arguments(argv)
        if not args or args[0] in ("-h", "--help", HELP_ALL):
            print(overview())
            return
        if args[0] not in BENCHMARKS:
            nearest = get_close_matches(args[0], BENCHMARKS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
            raise ValueError(f"unknown benchmark {args[0]!r}{hint} valid: {', '.join(BENCHMARKS)}")
        import_module(f"pitune.experiments.benchmarks.{args[0]}").main(args[1:])


def overview() -> str:
    """Return the benchmarks, one per line."""
    lines = [f"  {name:<15} {summary}" for name, summary in BENCHMARKS.items()]
    return "\n".join(["usage: pitune bench BENCHMARK [OPTIONS]", "", "benchmarks:", *lines])


if __name__ == "__main__":
    main()
