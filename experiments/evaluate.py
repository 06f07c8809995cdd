"""Measure the success rate of a checkpoint, with its interval.

    pitune evaluate --checkpoint runs/pick/pretrained --env.id mujoco/PickCube
    pitune evaluate --checkpoint runs/a --compare runs/b --episodes 400 --folder runs/a_or_b
    pitune evaluate --checkpoint runs/a --vary execution_horizon 1 4 --vary flow_steps 1 4 10

With --folder, the same command continues an evaluation that was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.evaluation.command import evaluate
from pitune.experiments.evaluation.config import EvaluateConfig
from pitune.experiments.evaluation.players import server_of
from pitune.experiments.evaluation.shards import end_with_parent
from pitune.experiments.find_checkpoint import find_checkpoint
from pitune.experiments.runs.signals import exit_on_signal

__all__ = ["EvaluateConfig", "evaluate", "main", "server_of"]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message(), exit_on_signal():
        end_with_parent()
        words = arguments(argv)
        config = parse(EvaluateConfig, words, prog=program("evaluate"), description=__doc__)
        config = replace(config, checkpoint=_found(config.checkpoint))
        if config.compare is not None:
            config = replace(config, compare=_found(config.compare))
        evaluate(config, words)


def _found(path: Path) -> Path:
    """Return the checkpoint in a folder, and the address of a server as it is."""
    return path if server_of(path) is not None else find_checkpoint(path)


if __name__ == "__main__":
    main()
