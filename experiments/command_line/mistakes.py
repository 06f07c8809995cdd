"""Mistakes in a command line, each in one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pitune.experiments.command_line.unknown_options import owner_hint

HELP_ALL = "--help-all"
"""The option that lists all options."""
WORDS = (
    (r"^Error parsing ([\w.-]+): (\w+(\[\d+\])?=)", r"\1.\2"),  # a field of a block
    (r"^Error parsing (--[\w.-]+): invalid literal.* base 10: ", r"\1 takes a whole number, not "),
    (r"^Error parsing (--[\w.-]+): could not convert .*: ", r"\1 takes a number, not "),
    (
        r"^Error parsing (--[\w.-]+): no type matching \{None\}\|(\w+) .* from (\[.*?\])\. .*",
        r"\1 takes \2 or None, not \3",
    ),
    (r"^Error parsing (--[\w.-]+): Failed to parse key-value.*", r"\1 takes pairs: NAME VALUE"),
)
"""Messages of tyro and Python, and the ones in their place."""


def one_sentence(box: str, prog: str) -> str:
    """Return the message that tyro has drawn in a box as one sentence.

    The box has paragraphs, separated by rules: the message, and perhaps similar options.
    """
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colors
    # paragraphs inside the box
    lines = [line.strip("│").rstrip() for line in box.splitlines() if line.startswith("│")]
    paragraphs = re.split(r"\n\s*─{5,}\n?", "\n".join(lines))
    message = re.sub(r"^Error parsing \w+Config: ", "", " ".join(paragraphs[0].split()))
    for written, ours in WORDS:
        message = re.sub(written, ours, message)

    # message
    if message.startswith("Missing from"):
        names = re.findall(r"^ {5}(\S+)", paragraphs[0], re.MULTILINE)
        message = f"missing {', '.join(names)}"
    message = (message[:1].lower() + message[1:]).rstrip(".") or box.strip()

    # hint
    if "nrecognized options: " in message:
        owner = owner_hint(message.partition("options: ")[2].partition(",")[0], prog)
        if owner:
            return f"{message}; {owner}; `{prog} {HELP_ALL}` lists the options"
    similar = [re.findall(r"--[\w.-]+", text) for text in paragraphs if "Perhaps you" in text]
    hint = f"; did you mean {similar[0][0]}?" if similar and similar[0] else ";"
    return f"{message}{hint} `{prog} {HELP_ALL}` lists the options"


def check_values(args: Sequence[str]) -> None:
    """Refuse empty arguments, which would stand for the working directory or for no name.

    Raises:
        ValueError: an argument is empty, or an option has an empty value.
    """
    for number, word in enumerate(args):
        if not word:
            before = f" after {args[number - 1]}" if number else ""
            raise ValueError(f"an argument{before} is empty; pass a value or leave it out")
        if word.startswith("--") and word.partition("=")[1:] == ("=", ""):
            raise ValueError(f"{word} has no value; pass one or leave the option out")
