"""Writes a policy in lerobot's format.

A checkpoint that came from lerobot gets its own JSON files back. Another one gets new ones. A
pipeline that lerobot cannot express is an error, and its smaller differences are returned.
In lerobot every key begins with `model.`. `embed_tokens`, `lm_head` and an unused `lm_head` of the
expert must all exist.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pitune.policies.checkpoints.external import (
    check_exportable,
    check_read_back,
    merged_weights,
    write_companions,
    write_weights,
)
from pitune.policies.checkpoints.files import write_json
from pitune.policies.checkpoints.keys import EMBEDDING, EXPERT_HEAD, LM_HEAD, lerobot_keys
from pitune.policies.checkpoints.lerobot_files.new_files import new_files, sampler_settings
from pitune.policies.checkpoints.lerobot_read import (
    POSTPROCESSOR,
    PREPROCESSOR,
    LerobotFolder,
    preprocessor_config,
)
from pitune.policies.network.config import Pi0Config
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.scales import differing, folded_stats


def write(policy: FlowPolicy, folder: Path) -> list[str]:
    """Write the files of a `pretrained_model` folder into an existing folder.

    Returns:
        The differences between lerobot's computation and this policy's.

    Raises:
        ValueError: lerobot cannot express the policy's pipeline, or cannot read its weights.
    """
    network = policy.network.config
    weights = merged_weights(policy, "lerobot")
    files, stats, differences = _exported(policy)

    # weights with lerobot's two heads
    embedding = weights[EMBEDDING]
    weights[LM_HEAD] = embedding.clone()  # safetensors refuses two names of one memory
    weights[EXPERT_HEAD] = torch.zeros(len(embedding), network.expert.width, dtype=embedding.dtype)
    tensors = {f"model.{key}": value for key, value in weights.items()}
    write_weights("lerobot", tensors, lerobot_keys(network), folder, {"format": "pt"})

    # config, step files and their norm stats
    write_json(folder / "config.json", files.config, indent=4)
    tensors = _stats_tensors(*stats)
    for name, written in (
        (PREPROCESSOR, files.preprocessor),
        (POSTPROCESSOR, files.postprocessor),
    ):
        if not written:
            continue
        write_json(folder / name, written)
        for step in written.get("steps", []):
            if "state_file" in step:
                save_file(tensors, folder / step["state_file"])
    write_companions(policy, folder)
    return differences


def _exported(
    policy: FlowPolicy,
) -> tuple[LerobotFolder, tuple[NormStats, NormStats], list[str]]:
    """Return the JSON files and norm stats with which lerobot computes a policy's actions.

    The files that the policy was loaded from are kept if they still describe it. Otherwise there
    are new ones.

    Returns:
        Them, and the differences that remain.

    Raises:
        ValueError: lerobot cannot express the policy.
    """
    config = policy.preprocessor.config
    check_exportable(policy, "lerobot")
    _check_pipeline(policy.network.config, config)
    origin = dict(policy.info.origin)
    kept = origin if origin.get("format") == "lerobot" else {}

    # the files of the checkpoint, with the settings of the sampler
    if any("state_file" in step for step in kept.get("preprocessor", {}).get("steps", [])):
        files = LerobotFolder(
            config={**kept["config"], **sampler_settings(policy)},
            preprocessor=kept["preprocessor"],
            postprocessor=kept["postprocessor"],
        )
        eps = files.before.config("normalizer_processor").get("eps", 1e-8)
        stats = _folded(config, float(eps))
        if _describes(policy, files, stats):
            return files, stats, []

    # new files, with the settings of training that lerobot wrote
    eps = max(0.0, config.epsilon - config.epsilon_out)
    eps = eps if config.normalization == "zscore" else 1e-8
    # the config of lerobot <= 0.3, which had no step files, has fields that later ones refuse
    former = kept.get("config", {}) if kept.get("preprocessor") else {}
    files = new_files(policy, eps, former)
    stats = _folded(config, eps)
    again = _read_back(policy, files, stats)
    differences = check_read_back("lerobot", config, again, _TOLERATED)
    if policy.sampler.accumulated_time:
        differences.append("flow times are not accumulated (about 1e-4 in the actions)")
    return files, stats, differences


def _folded(config: PreprocessorConfig, eps: float) -> tuple[NormStats, NormStats]:
    """Return norm stats for lerobot, which adds `eps` to a standard deviation on the way in."""
    return folded_stats(config, eps if config.normalization == "zscore" else 0.0, 0.0)


def _describes(
    policy: FlowPolicy, files: LerobotFolder, stats: tuple[NormStats, NormStats]
) -> bool:
    """Return whether the files of the checkpoint still describe the policy."""
    try:
        return not differing(policy.preprocessor.config, _read_back(policy, files, stats))
    except ValueError:  # they contradict the policy's norm stats
        return False


def _read_back(
    policy: FlowPolicy, files: LerobotFolder, stats: tuple[NormStats, NormStats]
) -> PreprocessorConfig:
    """Return the preprocessing that is read from the files."""
    family = policy.network.config.family
    # without the step of lerobot 0.5 and later, lerobot pads the state in the prompt
    padding = None if family == "pi0" or "relative_actions_processor" in files.before else 32
    return preprocessor_config(files, stats, family, padding)


def _stats_tensors(state: NormStats, action: NormStats) -> dict[str, Tensor]:
    """Return the statistics that were computed, by lerobot's names."""
    return {
        f"{key}.{name}": torch.tensor(row, dtype=torch.float32)
        for key, stats in (("observation.state", state), ("action", action))
        for name, row in stats.as_dict().items()
    }


_TOLERATED = {
    "pictures.resize": "pictures that are not of the right size are resized without antialias",
    "pictures.bars": "bars beside pictures that are not square are black",
    "prompt.clean": "prompts are not cleaned of underscores and surrounding space",
    "prompt.default": "a prompt is needed, there is no default one",
}
"""Differences of lerobot that are warned of, by the setting."""


def _check_pipeline(network: Pi0Config, config: PreprocessorConfig) -> None:
    """Reject a pipeline that lerobot has no files for.

    Raises:
        ValueError: lerobot cannot express it.
    """
    if config.pictures is None or config.prompt is None:
        raise ValueError(
            "lerobot's π0 needs cameras and a prompt, and this policy lacks one of them; save with "
            "format='pitune'"
        )
    if config.joints != "as_is":
        raise ValueError(
            f"lerobot cannot express joints={config.joints!r}; save with format='openpi'"
        )
    if (network.family == "pi05") != config.prompt.discrete_state:
        raise ValueError(
            f"lerobot's {network.family} always has discrete_state={network.family == 'pi05'}, "
            f"but this policy has {config.prompt.discrete_state}; save with format='openpi'"
        )
    if config.prompt.state_padding > config.state.dim:
        raise ValueError(
            f"lerobot pads no state in the prompt since 0.5, but this policy has state_padding="
            f"{config.prompt.state_padding}; save with format='pitune'"
        )
