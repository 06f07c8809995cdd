"""The Weights & Biases run of a training."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Literal

WandbMode = Literal["online", "offline", "off"]
MAX_NAME = 128
"""Longest name that Weights & Biases accepts [characters]."""


def new_id() -> str:
    """Return an id for a new run, which its folder stores: the folder's name says nothing."""
    return uuid.uuid4().hex


def start(folder: Path, run_id: str, config: dict[str, Any], mode: WandbMode) -> Any:
    """Start or continue the run of a training, and return it.

    Args:
        folder: Of the training.
        run_id: Of the run, stored in config.json.
        config: Settings of the training.
        mode: Destination of the metrics.

    Raises:
        ValueError: Weights & Biases cannot start, for example because nobody has logged in.
    """
    import wandb

    try:
        return wandb.init(
            project="pitune",
            name=folder.absolute().name[:MAX_NAME],
            dir=folder,
            id=run_id,
            resume="allow" if mode == "online" else None,
            mode="online" if mode == "online" else "offline",
            config=config,
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"Weights & Biases cannot start with wandb={mode!r}: {message}. Run `wandb login`, "
            "or pass --wandb offline or --wandb off"
        ) from error
