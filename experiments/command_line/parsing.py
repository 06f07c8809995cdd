"""Command lines of all commands: dataclasses in, configs out, with a short and a full help.

`--help` lists the basic options and `--help-all` lists every option. `basic_options` decides which
are basic.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import (
    MISSING,
    MISSING_NONPROP,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from pitune import envs
from pitune.experiments.command_line.basic_options import is_basic
from pitune.experiments.command_line.mistakes import HELP_ALL, check_values, one_sentence
from pitune.experiments.command_line.outside import import_outside_modules
from pitune.ranges import range_text
from pitune.rl import ranks

Config = TypeVar("Config")
StructSpecRule = Callable[[StructTypeInfo], StructConstructorSpec | None]
HELP = ("-h", "--help")
_DESCRIPTION = "DESCRIPTION"
"""Stands for a description until tyro has printed the help, as tyro would join its lines."""


def arguments(argv: Sequence[str] | None) -> list[str]:
    """Return the arguments of a command, after importing the modules of `--import`.

    Args:
        argv: The arguments; those of the process if None.

    Raises:
        ValueError: `--import` has no value, or a file has the name of another module.
        ImportError: there is no such module.
    """
    return import_outside_modules(sys.argv[1:] if argv is None else argv)


def _check_ranks(kind: type[Any], prog: str) -> None:
    """Reject a command that torchrun started several times, unless it shares its work.

    Raises:
        ValueError: it does not.
    """
    if ranks.launched() and kind.__name__ != "TrainConfig":
        raise ValueError(
            f"torchrun has started several processes, and `{prog}` would do the same work in each; "
            "start it without torchrun, or train (python -m pitune.experiments.train)"
        )


def parse(
    kind: type[Config],
    args: Sequence[str],
    *,
    prog: str,
    description: str | None,
    default: Config | None = None,
) -> Config:
    """Return a config that is read from arguments, or print the help and exit.

    Args:
        kind: Dataclass of the options.
        args: Arguments, without the command's name.
        prog: The command, as it is shown in the help.
        description: Text above the options, such as the docstring of the module.
        default: Values of the options that `args` lacks; those of `kind` if None. Where `kind` has
            an environment, its options are those of the environment that `args` names.

    Raises:
        ValueError: an argument is unknown or has no valid value.
    """
    _check_ranks(kind, prog)
    # defaults and description
    check_values(args)
    default = default_of(kind, args) if default is None else default
    asked = wants_help(args)
    text = description or ""
    basic = asked and HELP_ALL not in args
    if basic:
        text += f"\n\nThese are the basic options; {HELP_ALL} lists all."

    # arguments, with the output of tyro captured
    registry = ConstructorRegistry()
    output, errors = _Printed(sys.stdout.encoding if asked else "utf-8"), io.StringIO()
    registry.struct_rule(_help_rule(basic))
    with registry, redirect_stdout(output), redirect_stderr(errors):
        try:
            config: Config = tyro.cli(
                kind,
                args=["--help"] if asked else list(args),
                prog=prog,
                description=_DESCRIPTION,
                default=MISSING_NONPROP if default is None else default,
            )
        except SystemExit as stopped:
            if stopped.code:
                raise ValueError(one_sentence(errors.getvalue(), prog)) from None

    # help, with the description wrapped here because tyro would join its lines
    if asked:
        width = shutil.get_terminal_size().columns
        usage, _, options = output.getvalue().partition(_DESCRIPTION)
        usage = textwrap.fill(usage.strip(), width, subsequent_indent=" " * 8)
        print(f"{usage}\n\n{_wrapped(text, width)}{options}", end="")
        raise SystemExit(0)
    sys.stderr.write(errors.getvalue())  # warnings, if any
    return config


def wants_help(args: Sequence[str]) -> bool:
    """Return whether arguments ask for one of the two helps."""
    return HELP_ALL in args or any(word in HELP for word in args)


def default_of(kind: type[Config], args: Sequence[str]) -> Config | None:
    """Return a config with the environment that `args` name, or None if `kind` has none."""
    parts = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    make = parts["env"].default_factory if "env" in parts else NO_DEFAULT
    if make is NO_DEFAULT or not isinstance(make(), envs.EnvConfig):
        return None
    required = {
        name: tyro.MISSING
        for name, f in parts.items()
        if f.default is NO_DEFAULT and f.default_factory is NO_DEFAULT
    }
    return kind(**{**required, "env": default_env(args)})


def default_env(args: Sequence[str]) -> envs.EnvConfig:
    """Return the default config of the environment in `--env.id`, with its own options.

    Args:
        args: Arguments; the last `--env.id` counts.

    Raises:
        ValueError: the environment's prefix is unknown.
    """
    env_id = envs.EnvConfig().id
    for word, following in zip(args, [*args, ""][1:], strict=True):
        if word == "--env.id":
            env_id = following
        elif word.startswith("--env.id="):
            env_id = word.partition("=")[2]
    return envs.config_for(env_id)


_OF_PITUNE = (".command_line.main", ".benchmarks.command")
"""Modules that take a command as their first word, as `pitune` does."""


def program(command: str) -> str:
    """Return how this process was started: `pitune train` or `python -m experiments.train`."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    module = spec.name if spec is not None else ""
    if ".experiments." in f".{module}" and not module.endswith(_OF_PITUNE):
        return f"python -m {module}"
    return f"pitune {command}"


class _Printed(io.StringIO):
    """Text with an encoding, by which tyro decides how it draws boxes."""

    def __init__(self, encoding: str | None) -> None:
        super().__init__()
        self._encoding = encoding and encoding.lower()

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        return self._encoding


def _help_rule(basic: bool) -> StructSpecRule:
    """Return a rule of tyro that joins the lines of a help text.

    Args:
        basic: Whether the rule also hides all fields that are not basic.
    """
    inside = False

    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not is_dataclass(info.type):
            return None
        inside = True  # asks tyro's own rules, not this one again
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        # the short help has no room for ranges
        valid = ["" if basic else range_text(f.type) for f in spec.fields]
        shown = [
            replace(f, helptext=_joined(f.helptext, text))
            for f, text in zip(spec.fields, valid, strict=True)
        ]
        if basic:
            shown = [_hidden_unless_basic(info.type, f) for f in shown]
        return replace(spec, fields=tuple(shown))

    return rule


def _joined(
    helptext: str | Callable[[], str | None] | None, valid: str
) -> Callable[[], str | None]:
    """Return a help text as one line, with the range of valid values if there is one."""

    def text() -> str | None:
        written = helptext() if callable(helptext) else helptext
        line = " ".join((written or "").split())
        return f"{line} Valid: {valid}.".strip() if valid else line or None

    return text


def _hidden_unless_basic(owner: type, field: StructFieldSpec) -> StructFieldSpec:
    """Return a field without its help, unless it is basic, required or a block of fields."""
    required = field.default is MISSING or field.default is MISSING_NONPROP
    if required or is_dataclass(type(field.default)) or is_basic(owner, field.name):
        return field
    hidden: Any = Annotated[field.type, tyro.conf.Suppress]
    return replace(field, type=hidden)


def _wrapped(description: str, width: int) -> str:
    """Return a description with its prose filled to a width, and its commands broken there."""
    blocks = []
    for block in re.split(r"\n\s*\n", description.strip("\n")):
        if block.startswith("    "):
            # commands, continued by backslashes
            commands = [" ".join(line.split()) for line in block.split("\n")]
            lines = [textwrap.wrap(command, width - 12) for command in commands]
            blocks.append("\n".join("    " + " \\\n        ".join(line) for line in lines))
        elif block.startswith("  "):  # a table
            blocks.append(block)
        else:
            blocks.append(textwrap.fill(" ".join(block.split()), width))
    return "\n\n".join(blocks)
