"""`pitune list`: the registered algorithms, environments, likelihoods and pipelines.

pitune list algorithms
pitune --import my_algorithm.py list algorithms
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.mistakes import HELP_ALL
from pitune.experiments.command_line.parsing import arguments
from pitune.experiments.recipes import likelihood_words, takes_likelihood

WIDTH = 80
MOST_TASKS = 12
"""Tasks of one prefix that are listed."""


def algorithms() -> str:
    """Return every registered algorithm with its description, traits and variants."""
    rows = []
    for entry in rl.registry.entries():
        lines = [entry.description]
        traits = {
            "off-policy": entry.off_policy,
            "whole episodes": entry.whole_episodes,
            "reads demonstrations": entry.reads_demonstrations,
        }
        held = [name for name, holds in traits.items() if holds]
        if held:
            lines.append(f"({', '.join(held)})")

        # words that may follow the colon
        if entry.variants:
            lines.append(
                f"variants: {', '.join(f'{entry.name}:{word}' for word in entry.variants)}"
            )
        elif takes_likelihood(entry.config()):
            lines.append(f"likelihoods: {entry.name}:LIKELIHOOD")
        rows.append((entry.name, lines))
    footer = f"LIKELIHOOD is one of {', '.join(likelihood_words())}."
    return f"{_table(rows)}\n\n{textwrap.fill(footer, WIDTH)}"


def algorithm_lines() -> str:
    """Return every registered algorithm with its description, for the help of `train`."""
    return _table([(entry.name, [entry.description]) for entry in rl.registry.entries()])


def environments() -> str:
    """Return the prefixes of environment ids, with the listed tasks and suites of each."""
    rows = []
    for prefix in envs.prefixes():
        tasks = envs.known_tasks(prefix)
        names = [f"{prefix}/{task}" for task in tasks[:MOST_TASKS]]
        more = f", and {len(tasks) - MOST_TASKS} more" if len(tasks) > MOST_TASKS else ""
        lines = [", ".join(names) + more if names else f"{prefix}/<id>"]
        suites = envs.known_suites(prefix)
        if suites:
            named = (f"{prefix}/{name} ({len(members)} tasks)" for name, members in suites.items())
            lines.append(f"suites: {', '.join(named)}")
        rows.append((prefix, lines))
    footer = "Several tasks of one layout are a suite too: PREFIX/[TASK,TASK]."
    return f"{_table(rows)}\n\n{footer}"


def likelihoods() -> str:
    """Return the words for a likelihood, with the settings that are not the defaults."""
    return _table([(word, [_settings(config)]) for word, config in likelihood_words().items()])


def pipelines() -> str:
    """Return the openpi pipelines, by the name that `--load.pipeline` takes."""
    rows = []
    for name, pipeline in policies.PIPELINES.items():
        sizes = f"state {pipeline.state_dim}, action {pipeline.action_dim}"
        horizons = f"{pipeline.execution_horizon} of {pipeline.action_horizon} actions executed"
        cameras = f"cameras {', '.join(pipeline.cameras.values())}"
        rows.append((name, [f"{pipeline.family}; {sizes}; {horizons}; {cameras}"]))
    return _table(rows)


LISTS: Mapping[str, Callable[[], str]] = {
    "algorithms": algorithms,
    "environments": environments,
    "likelihoods": likelihoods,
    "pipelines": pipelines,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        args = arguments(argv)
        if not args or args[0] in ("-h", "--help", HELP_ALL):
            print(f"usage: pitune list {{{', '.join(LISTS)}}}")
            return
        word, *surplus = args
        if word not in LISTS or surplus:
            nearest = get_close_matches(word, LISTS, n=1) if word not in LISTS else []
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
            raise ValueError(f"unknown list {' '.join(args)!r}{hint} valid: {', '.join(LISTS)}")
        print(LISTS[word]())


def _settings(config: Any) -> str:
    """Return the settings of a config that are not the defaults."""
    default = type(config)()
    changed = {
        f.name: getattr(config, f.name)
        for f in fields(config)
        if getattr(config, f.name) != getattr(default, f.name)
    }
    return ", ".join(f"{name}={value}" for name, value in changed.items()) or "the defaults"


def _table(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return rows of a name and its paragraphs, wrapped beside it."""
    indent = " " * (4 + max(len(name) for name, _ in rows))
    lines = []
    for name, paragraphs in rows:
        first = f"  {name}".ljust(len(indent))
        for paragraph in paragraphs:
            lines += textwrap.wrap(paragraph, WIDTH, initial_indent=first, subsequent_indent=indent)
            first = indent
    return "\n".join(lines)


if __name__ == "__main__":
    main()
