"""Options that another algorithm, likelihood or environment has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from pitune import envs, rl
from pitune.experiments.recipes import likelihood_words, preset, takes_likelihood


def owner_hint(option: str, prog: str) -> str:
    """Return a clause that names the owners of an option, or nothing if there are none.

    Example:
        >>> owner_hint("--algorithm.group-size", "pitune train ppo")
        'it is an option of grpo'

    Args:
        option: As it was written on the command line.
        prog: The command, which may end with the algorithm's name.
    """
    name = option.lstrip("-").replace("_", "-").partition("=")[0]
    if name.startswith("env.options."):
        found = [
            f"{prefix}/"
            for prefix, options in envs.prefixes().items()
            if name.removeprefix("env.options.") in _options(options())
        ]
        return f"it is an option of {' and '.join(found)} environments" if found else ""
    if not name.startswith("algorithm."):
        return ""
    inner = name.removeprefix("algorithm.")

    # the same algorithm with another likelihood, then other algorithms
    word = prog.rpartition(" ")[2].partition(":")[0]
    if word in rl.presets() and takes_likelihood(rl.preset(word)):
        words = (f"{word}:{likelihood}" for likelihood in likelihood_words())
        found = [w for w in words if inner in _options_of(w)]
    else:
        found = []
    found = found or [other for other in rl.presets() if inner in _options_of(other)]
    return f"it is an option of {', '.join(found)}" if found else ""


def _options_of(word: str) -> set[str]:
    """Return the options of an algorithm, none if it does not take the likelihood."""
    try:
        return set(_options(preset(word)))
    except ValueError:
        return set()


def _options(config: Any, parent: str = "") -> Iterator[str]:
    """Yield the options of a config and of its blocks."""
    for item in fields(config):
        name, value = parent + item.name.replace("_", "-"), getattr(config, item.name)
        if is_dataclass(value):
            yield from _options(value, f"{name}.")
        else:
            yield name
