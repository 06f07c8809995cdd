"""The `pitune` command: a word picks the command, and the rest are its arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.outside import import_outside_modules

_EXAMPLES = """\
examples:
  pitune quickstart --fast
  pitune train ppo:flow_noise --env.id mujoco/PickCube --out runs/noise"""
_OPTIONS = """\
options, before or after the command:
  -h, --help       this overview, or the basic options of a command
  --help-all       all options of a command
  --import MODULE  a module or .py file that registers algorithms, environments
                   or likelihoods; may be repeated
  --version        the version of pitune"""


@dataclass(frozen=True)
class Command:
    """A command of `pitune`, whose module is imported when it runs.

    Example:
        >>> Command("train", "fine-tune a policy in simulation").module
        'train'
    """

    module: str
    """Name inside `pitune.experiments`; its `main` takes the arguments."""
    summary: str
    """One line for the overview."""


GROUPS: Mapping[str, Mapping[str, Command]] = {
    "learn": {
        "quickstart": Command("quickstart", "demonstrations, cloning, fine-tuning, evaluation"),
        "pretrain": Command("pretrain", "collect demonstrations and clone a small policy"),
        "train": Command("train", "fine-tune a policy in simulation"),
        "compare": Command("compare", "fine-tune the same clones with several algorithms"),
    },
    "look at results": {
        "evaluate": Command("evaluate", "measure the success rate of a checkpoint"),
        "inspect": Command("inspect_run", "print the state and the health of a run"),
    },
    "checkpoints and data": {
        "serve": Command("serve", "serve a checkpoint to robots by openpi's protocol"),
        "verify": Command("verify_checkpoint", "compare a checkpoint with stored outputs"),
        "norm-stats": Command("norm_stats", "compute the norm stats of demonstrations"),
    },
    "this installation": {
        "list": Command(
            "command_line.listing", "list algorithms, environments, likelihoods or pipelines"
        ),
        "doctor": Command(
            "command_line.doctor", "check versions, devices, renderers and disk space"
        ),
        "bench": Command("benchmarks.command", "time a network, a rollout or an update"),
    },
}
COMMANDS: Mapping[str, Command] = {
    name: command for group in GROUPS.values() for name, command in group.items()
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry.

    Args:
        argv: Arguments after `pitune`; those of the process if None.
    """
    with exit_with_message():
        args = import_outside_modules(sys.argv[1:] if argv is None else argv)
        if not args or args[0] in ("-h", "--help", "--help-all"):
            print(overview())
        elif args[0] == "--version":
            print(f"pitune {_version()}")
        else:
            command = named(args[0])
            import_module(f"pitune.experiments.{command.module}").main(args[1:])


def named(word: str) -> Command:
    """Return the command of a word.

    Raises:
        ValueError: there is no such command.
    """
    if word not in COMMANDS:
        nearest = get_close_matches(word, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
        raise ValueError(f"unknown command {word!r}{hint} `pitune --help` lists the commands")
    return COMMANDS[word]


def overview() -> str:
    """Return the commands in groups, with two examples."""
    groups = [
        "\n".join([f"{title}:", *(f"  {name:<11} {c.summary}" for name, c in group.items())])
        for title, group in GROUPS.items()
    ]
    usage = "usage: pitune [--import MODULE] COMMAND [OPTIONS]"
    about = "Reinforcement-learning fine-tuning of π0 flow-matching robot policies."
    return "\n\n".join([usage, about, *groups, _OPTIONS, _EXAMPLES])


def _version() -> str:
    try:
        return version("pitune")
    except PackageNotFoundError:
        return "(not installed, runs from its source tree)"


if __name__ == "__main__":
    main()
