"""`--import`: modules from outside the repository, imported for what they register."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

IMPORTED: list[str] = []
"""Modules and files that `import_outside` has imported, for processes that repeat a command."""


def import_outside_modules(argv: Sequence[str]) -> list[str]:
    """Import the module of every `--import MODULE` and return the other arguments.

    Args:
        argv: Arguments of a command; `--import` may stand anywhere in them, more than once.

    Raises:
        ValueError: `--import` has no value, or a file has the name of another module.
        ImportError: there is no such module.
    """
    words, others = iter(argv), []
    for word in words:
        if word == "--import":
            import_outside(next(words, ""))
        elif word.startswith("--import="):
            import_outside(word.partition("=")[2])
        else:
            others.append(word)
    return others


def import_outside(name: str) -> None:
    """Import a module, or a `.py` file, so that the words that it registers are known.

    Args:
        name: `my_package.my_module`, or the path of a file. A file is imported under its stem, and
            its folder is appended to the path, so that worker processes can import it too.

    Raises:
        ValueError: the name is empty, or a file has the name of another module.
        ImportError: there is no such module.
    """
    if not name or name.startswith("-"):
        raise ValueError("--import has no value; pass a module or a .py file")
    file = Path(name)
    if file.suffix == ".py":
        _import_file(file)
        name = str(file.absolute())  # for processes that begin elsewhere
    else:
        _import_module(name)
    if name not in IMPORTED:
        IMPORTED.append(name)


def _import_module(name: str) -> None:
    _reach(name, Path.cwd())
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise ImportError(
            f"there is no module --import={name}; pass a module that Python finds, or the path of "
            "a .py file"
        )
    import_module(name)


def _import_file(file: Path) -> None:
    if not file.is_file():
        raise ImportError(f"there is no file --import={file}; pass the path of a .py file")
    _reach(file.stem, file.resolve().parent)
    # the name must not belong to another module
    spec = importlib.util.find_spec(file.stem)
    if spec is None or spec.origin is None or not Path(spec.origin).exists():
        origin = "another module"
    elif file.samefile(spec.origin):
        import_module(file.stem)
        return
    else:
        origin = spec.origin
    raise ValueError(
        f"--import={file} has the name of {origin}, which Python finds first; rename the file"
    )


def _reach(name: str, folder: Path) -> None:
    """Let Python find the modules of a folder. See `reach_user_module`."""
    # imported here, because the help needs no torch
    from pitune.envs.user_modules import reach_user_module

    reach_user_module(name, folder)
