"""Modules of the user: found also where they have the name of one of pitune's own folders.

In pitune's source tree the folders `envs`, `rl`, `policies` and `experiments` lie at the top, so a
tree on the path hides a package of the same name in the user's working directory. Code of pitune
imports them as `pitune.envs` and so on, and never needs the short names.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TREE = Path(__file__).resolve().parents[1]
"""The folder that holds this package."""


def import_user_module(name: str) -> ModuleType:
    """Import a module of the user, also from the working directory.

    Args:
        name: `package.module`.

    Raises:
        ImportError: there is no such module.
    """
    reach_user_module(name, Path.cwd())
    importlib.invalidate_caches()
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise ImportError(
            f"there is no module {name!r} on Python's path or in {Path.cwd()}; install its "
            "package, or add its folder to PYTHONPATH"
        )
    return importlib.import_module(name)


def reach_user_module(name: str, folder: Path) -> None:
    """Let Python find the modules of a folder: after all others, but before pitune's own folders.

    Args:
        name: The module that is looked for.
        folder: Added to the path.
    """
    if str(folder) not in sys.path and not (folder.resolve() == Path.cwd() and "" in sys.path):
        sys.path.append(str(folder))
    top = name.partition(".")[0]
    here = [folder / top, folder / f"{top}.py"]
    if top in sys.modules or not any(path.exists() for path in here) or folder.resolve() == TREE:
        return
    spec = importlib.util.find_spec(top)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    if any(place and Path(place).resolve().is_relative_to(TREE / top) for place in places):
        sys.path.insert(0, str(folder))
