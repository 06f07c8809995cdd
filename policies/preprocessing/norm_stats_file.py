"""openpi's `norm_stats.json`: one per asset (robot) in a checkpoint folder.

openpi keeps it in `assets/<asset>/`, RLinf in `<asset>/`. An asset's name may contain slashes.
`meta/stats.json` of a LeRobot dataset can be read in its place.
Source: openpi `shared/normalize.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pitune.policies.preprocessing.norm_stats import NAMES, NormStats, problem_of

FILE = "norm_stats.json"
"""Name of the file in its asset's folder."""
LEROBOT = ("observation.state", "action")
"""Keys of state and actions in `meta/stats.json` of a LeRobot dataset."""


def find_norm_stats(folder: Path, asset: str | None = None) -> Path | None:
    """Return the file of norm stats of an asset in a checkpoint folder, or None.

    Args:
        folder: The checkpoint.
        asset: Name of the asset, or its last part. None if there is only one.

    Raises:
        ValueError: there are several and none is named, or none has the name.
    """
    files = sorted((folder / "assets").rglob(FILE)) or sorted(folder.rglob(FILE))
    assets = {asset_of(folder, file): file for file in files}
    if asset is None:
        if len(assets) > 1:
            raise ValueError(
                f"{folder} holds several norm stats, of the assets {list(assets)}; name one with "
                "--load.asset, or pass your robot's own with --load.norm-stats"
            )
        return files[0] if files else None

    # the whole name, or its last part where that is unique
    matching = [name for name in assets if name == asset or name.rpartition("/")[2] == asset]
    matching = [asset] if asset in assets else matching
    if len(matching) != 1:
        nearest = get_close_matches(asset, assets, 1)
        hint = f", did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"{folder} has no norm stats of asset={asset!r}; its assets are {list(assets)}{hint}"
        )
    return assets[matching[0]]


def asset_of(folder: Path, file: Path) -> str:
    """Return the name of the asset that a file of norm stats belongs to, '.' in the root."""
    return file.parent.relative_to(folder).as_posix().removeprefix("assets/")


def read_norm_stats(file: Path) -> tuple[NormStats, NormStats]:
    """Return the statistics of state and actions in an openpi file or a dataset's `stats.json`.

    Raises:
        ValueError: the file does not hold them, or names a number that is no statistic.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{_refused(file)}: it is no JSON file ({error})") from error
    if isinstance(content, Mapping) and all(name in content for name in LEROBOT):
        state, action = (_stats(file, name, content[name]) for name in LEROBOT)
        return state, action
    stats = content.get("norm_stats") if isinstance(content, Mapping) else None
    if not isinstance(stats, Mapping):
        held = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{_refused(file)}: it has no object 'norm_stats', but {held}")
    missing = [key for key in ("state", "actions") if key not in stats]
    if missing:
        raise ValueError(f"{_refused(file)}: 'norm_stats' has {sorted(stats)} and lacks {missing}")
    return _stats(file, "state", stats["state"]), _stats(file, "actions", stats["actions"])


def norm_stats_json(state: NormStats, action: NormStats) -> dict[str, Any]:
    """Return the content of a file. Quantiles that were never computed are left out."""
    return {"norm_stats": {"state": state.as_dict(), "actions": action.as_dict()}}


def _stats(file: Path, key: str, values: Any) -> NormStats:
    """Return the statistics of one quantity. Other statistics than ours are ignored."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{_refused(file)}: {key!r} is {values!r}")
    rows = {name: values[name] for name in NAMES if values.get(name) is not None}
    problem = problem_of(rows) if rows else "mean and std are missing"
    if problem:
        raise ValueError(f"{_refused(file)}: {key}.{problem}")
    return NormStats.from_dict({name: tuple(map(float, row)) for name, row in rows.items()})


def _refused(file: Path) -> str:
    return (
        f"{file} does not hold norm stats of state and actions, with mean and std (pitune "
        "norm-stats computes such a file)"
    )
