"""The references' tiny checkpoints, for tests of several folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pitune.policies import PIPELINES, FlowPolicy, LoadConfig, load

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOKENIZER = FIXTURES / "tiny_tokenizer" / "paligemma_tokenizer.model"
FAMILIES = ("pi0", "pi05")


def openpi_folder(family: str) -> Path:
    """Return the folder of openpi's own checkpoint of a family."""
    return FIXTURES / "openpi" / f"{family}_tiny" / "checkpoint"


def openpi_weights(family: str) -> dict[str, Tensor]:
    """Return the weights that openpi wrote, under its names."""
    return load_file(openpi_folder(family) / "model.safetensors")


def load_openpi(family: str, *, extensions: tuple[str, ...] = (), **changes: Any) -> FlowPolicy:
    """Load openpi's checkpoint of a family.

    Args:
        family: π0 or π0.5.
        extensions: Registered extensions to add.
        changes: Fields of the pipeline.
    """
    pipeline = replace(PIPELINES[f"{family}_libero"], **changes)
    config = LoadConfig(tokenizer=TOKENIZER, extensions=extensions)
    return load(openpi_folder(family), config, pipeline)
