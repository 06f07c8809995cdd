"""lerobot's tiny checkpoints, and changes of their files, for tests of several folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openpi_fixtures import FIXTURES, TOKENIZER, openpi_folder, openpi_weights
from pitune.policies import LoadConfig, infer, load
from pitune.policies.checkpoints.keys import EMBEDDING, LM_HEAD

Json = dict[str, Any]
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
NOISE = np.random.RandomState(7).randn(10, 32).astype(np.float32)


def lerobot_folder(parent: Path, family: str = "pi0") -> Path:
    """Lay out a checkpoint as lerobot does: its JSON files, and openpi's weights renamed."""
    folder = parent / f"lerobot_{family}"
    shutil.copytree(FIXTURES / "lerobot" / f"{family}_tiny" / "pretrained_model", folder)
    shutil.copy(openpi_folder(family).parent / "arch.json", folder)
    weights = openpi_weights(family)
    weights[EMBEDDING] = weights[LM_HEAD].clone()
    save_file({f"model.{key}": value for key, value in weights.items()}, weights_file(folder))
    return folder


def weights_file(folder: Path) -> Path:
    """Return the file of a folder's weights."""
    return folder / "model.safetensors"


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a folder's weights."""
    weights = change(load_file(weights_file(folder)))
    weights_file(folder).unlink()
    save_file(
        {key: value.contiguous().clone() for key, value in weights.items()}, weights_file(folder)
    )


def edit_json(file: Path, change: Callable[[Json], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of `config.json`."""
    edit_json(folder / "config.json", lambda config: config.update(fields))


def edit_step(folder: Path, name: str, **settings: Any) -> None:
    """Set settings of a step, in whichever of the two files it is."""

    def change(values: Json) -> None:
        for step in values["steps"]:
            if step["registry_name"] == name:
                step["config"].update(settings)

    for file in (BEFORE, AFTER):
        edit_json(folder / file, change)


def edit_stats(folder: Path, which: str, change: Callable[[str, Tensor], Tensor | None]) -> None:
    """Change the norm stats of the `pre` or `post` processor. None removes one."""
    (file,) = folder.glob(f"policy_{which}processor_*.safetensors")
    changed = {key: change(key, value) for key, value in load_file(file).items()}
    file.unlink()
    save_file({k: v.contiguous() for k, v in changed.items() if v is not None}, file)


def stats_of(folder: Path, which: str = "post") -> dict[str, Tensor]:
    """Return the norm stats of the `pre` or `post` processor."""
    (file,) = folder.glob(f"policy_{which}processor_*.safetensors")
    return load_file(file)


def drop_relative_steps(folder: Path) -> None:
    """Remove the steps that lerobot 0.4 and 0.5.0 did not write."""
    names = ("relative_actions_processor", "absolute_actions_processor")
    for file in (BEFORE, AFTER):
        edit_json(
            folder / file,
            lambda values: values.update(
                steps=[step for step in values["steps"] if step["registry_name"] not in names]
            ),
        )


def robot_observation(
    cameras: tuple[str, ...] = ("base_0_rgb", "left_wrist_0_rgb"),
    size: tuple[int, int] = (224, 224),
    prompt: str = "put_the bowl",
) -> dict[str, Any]:
    """Return an observation under lerobot's keys."""
    random = np.random.RandomState(0)
    pictures = {
        f"observation.images.{camera}": random.randint(0, 256, (*size, 3)).astype(np.uint8)
        for camera in cameras
    }
    state = random.uniform(-0.5, 0.5, 8).astype(np.float32)
    return {"prompt": prompt, "observation.state": state, **pictures}


def actions_of(
    folder: Path, observation: dict[str, Any] | None = None, **options: Any
) -> np.ndarray:
    """Return the chunk (H, d) of a folder's policy for fixed noise."""
    torch.manual_seed(0)
    policy = load(folder, LoadConfig(tokenizer=TOKENIZER, **options))
    return infer(policy, observation or robot_observation(), NOISE)
