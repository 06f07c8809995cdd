"""openpi's checkpoint folders: PyTorch safetensors, and the first-party JAX release (orbax).

The folder holds weights and norm stats, but neither horizon nor pipeline: those come from
`pitune.policies.checkpoints.pipelines` or the caller, and are never guessed.
Source: openpi `policies/policy_config.py`, `shared/normalize.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pitune.policies.checkpoints.pipelines import CAMERAS, Pipeline
from pitune.policies.checkpoints.weights import EMBEDDING, EXPERT_HEAD, LM_HEAD
from pitune.policies.network.config import Pi0Config
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Normalization, PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig

LOADED_MIN_SCALE = 1e-4
"""Floor of a loaded scale: far below any that a robot moves by, so that it changes no number of a
sound checkpoint [robot units]."""


def find_norm_stats(folder: Path) -> Path | None:
    """Return the norm stats of a checkpoint folder, or None.

    openpi keeps them in `assets/<asset id>/`, RLinf in `<asset id>/`; an id may have slashes.

    Raises:
        ValueError: there are several.
    """
    found = sorted((folder / "assets").rglob("norm_stats.json"))
    found = found or sorted(folder.rglob("norm_stats.json"))
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds several norm stats, {[str(f.relative_to(folder)) for f in found]}; "
            "say which with --load.norm-stats"
        )
    return found[0] if found else None


def read_norm_stats(file: Path) -> tuple[NormStats, NormStats]:
    """Return the statistics of state and actions in an openpi file.

    Raises:
        ValueError: it is no such file.
    """
    try:
        stats = json.loads(file.read_text())["norm_stats"]
        state, action = (_stats(stats[key]) for key in ("state", "actions"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} does not hold norm stats of state and actions, with mean and std ({error!r})"
        ) from error
    return state, action


def _stats(values: dict[str, Any]) -> NormStats:
    names = [name for name in ("mean", "std", "q01", "q99") if values.get(name) is not None]
    found = {name: tuple(map(float, values[name])) for name in names}
    return NormStats(**found) if "q01" in found else NormStats.without_quantiles(**found)


def preprocessor_config(
    pipeline: Pipeline, stats: tuple[NormStats, NormStats] | None, network: Pi0Config
) -> PreprocessorConfig:
    """Return openpi's preprocessing; without stats nothing is normalized."""
    state_dim, action_dim = pipeline.state_dim, pipeline.action_dim
    normalization: Normalization
    if stats is None:
        stats = NormStats.identity(state_dim), NormStats.identity(action_dim)
        normalization = "none"
    else:
        normalization = "quantile" if pipeline.quantiles else "zscore"
    return PreprocessorConfig(
        state=stats[0].first(state_dim),
        action=stats[1].first(action_dim),
        normalization=normalization,
        min_scale=LOADED_MIN_SCALE,
        delta_mask=pipeline.delta_mask,
        joints=pipeline.joints,
        pictures=PicturesConfig(
            cameras=pipeline.cameras,
            missing=tuple(name for name in CAMERAS if name not in pipeline.cameras),
            size=network.vision.image_size if network.vision else 224,
        ),
        prompt=PromptConfig(max_tokens=pipeline.max_tokens, discrete_state=pipeline.discrete_state),
    )


def write(
    weights: dict[str, Tensor],
    network: Pi0Config,
    preprocessor: PreprocessorConfig,
    origin: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Write `model.safetensors`, `config.json` and the norm stats into an existing folder.

    Returns:
        What openpi will compute differently from this policy.

    Raises:
        ValueError: openpi cannot express the policy's pipeline.

    Quirks of openpi's strict reader: the embedding is called `lm_head`, a note says so, and a head
    of the expert that nothing uses has to be there.
    """
    differences = _refuse_or_list(network, preprocessor)
    weights = dict(weights)
    embedding = weights.pop(EMBEDDING)
    weights[LM_HEAD] = embedding
    weights[EXPERT_HEAD] = torch.zeros(len(embedding), network.expert.width, dtype=embedding.dtype)
    tensors = {key: value.contiguous() for key, value in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={EMBEDDING: LM_HEAD})
    description = {
        "action_dim": network.action_dim,
        "action_horizon": network.action_horizon,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": str(embedding.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
    if preprocessor.normalization != "none":
        stats = {"state": asdict(preprocessor.state), "actions": asdict(preprocessor.action)}
        file = folder / "assets" / origin.get("asset_id", "pitune") / "norm_stats.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"norm_stats": stats}, indent=2) + "\n")
    return differences


def _refuse_or_list(network: Pi0Config, config: PreprocessorConfig) -> list[str]:
    """Return what openpi does otherwise; refuse what it cannot do."""
    pictures, prompt = config.pictures, config.prompt
    if pictures is None or prompt is None or not set(pictures.cameras) <= set(CAMERAS):
        raise ValueError(
            f"openpi's cameras are {CAMERAS}, this policy's "
            f"{[] if pictures is None else list(pictures.cameras)}, and it needs a prompt; save "
            "with format='pitune' or 'lerobot'"
        )
    expected = "quantile" if network.family == "pi05" else "zscore"
    if config.normalization not in (expected, "none"):
        raise ValueError(
            f"openpi normalizes {network.family} by {expected}, this policy by "
            f"{config.normalization}; save with format='pitune' or 'lerobot'"
        )
    found = {
        "pictures that are not of the right size are resized with antialias": (
            pictures.resize != "pillow"
        ),
        "prompts are cleaned of underscores and surrounding space": not prompt.clean,
        "1e-6 is added to what divides": (config.epsilon, config.epsilon_out) != (1e-6, 1e-6),
        "the state in the prompt is not padded": prompt.state_padding > 0,
    }
    return [what for what, differs in found.items() if differs]
