"""The settings that all results in the folder of a benchmark share."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pitune.experiments.runs.config_file import write_whole
from pitune.experiments.runs.folder.same_config import differences
from pitune.experiments.runs.progress import screen

FILE = "settings.json"
FREE = ("algorithms", "arms", "out", "seeds", "table")
"""Settings that choose results, and change none."""


def keep_settings(config: Any, folder: Path) -> None:
    """Write the settings of a benchmark into its folder, or compare them with those of before.

    Args:
        config: A dataclass, of which all fields but `FREE` must stay.
        folder: Of the results. It is made if it is missing.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    fixed = {name: value for name, value in asdict(config).items() if name not in FREE}
    file, asked = folder / FILE, json.loads(json.dumps(fixed))  # tuples as lists
    if not file.exists():
        if any(folder.glob("seed_*/*.json")):
            screen.note(
                f"{folder} has results of an older version of pitune, which kept no settings; "
                f"they count as results of {asked}"
            )
        write_whole(file, json.dumps(asked, indent=2) + "\n")
    found = differences(json.loads(file.read_text()), asked)
    if found:
        raise ValueError(
            f"{folder} has results of other settings: {'; '.join(sorted(found))}; pass another "
            "--out, or the same settings"
        )
