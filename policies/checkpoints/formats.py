"""Checkpoints of every supported format: recognize, load, give back.

    policy = policies.load("pi05_libero", LoadConfig(pipeline="pi05_libero"))
    policies.save(policy, "fine_tuned", format="openpi")

What a format does not hold is asked for and never guessed. Loading is strict, never unpickles, and
does not copy the weights.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pitune.policies.checkpoints import lerobot_read, lerobot_write, openpi
from pitune.policies.checkpoints.config import (
    LoadConfig,
    refuse_unused,
    with_norm_stats,
    with_settings,
)
from pitune.policies.checkpoints.native import (
    DESCRIPTION,
    TOKENIZER,
    WEIGHTS,
    atomic_folder,
    load_policy,
    write_policy,
)
from pitune.policies.checkpoints.orbax import is_orbax, read_orbax
from pitune.policies.checkpoints.pipelines import PIPELINES, Pipeline
from pitune.policies.checkpoints.weights import (
    VLM,
    Heads,
    build,
    canonical,
    read_safetensors,
    sizes_of,
)
from pitune.policies.network.lora import merged_state
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy, PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.tokenizer import Tokenizer, find_tokenizer

Format = Literal["pitune", "openpi", "lerobot"]
_VLM_WEIGHT = VLM + "language_model.layers.0.self_attn.q_proj.weight"


def recognize(path: Path) -> str:
    """Return the format of a checkpoint folder: pitune, orbax, lerobot or openpi.

    Raises:
        FileNotFoundError: there is no such folder, or no checkpoint in it.
        ValueError: it holds a pickle.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}; a checkpoint is a folder")
    if (path / DESCRIPTION).is_file() or (path / WEIGHTS).is_file():
        return "pitune"
    if is_orbax(path):
        return "orbax"
    config = path / "config.json"
    if config.is_file() and '"type"' in config.read_text():
        return "lerobot"
    if any(path.glob("*.safetensors")):
        return "openpi"
    pickles = sorted(f.name for end in ("bin", "pt", "pth", "ckpt") for f in path.glob(f"*.{end}"))
    if pickles:
        raise ValueError(
            f"{path} holds {pickles}, which are pickles: they can run any code and are never "
            "loaded; convert them to safetensors with the program that wrote them"
        )
    raise FileNotFoundError(
        f"no checkpoint in {path}; expected {DESCRIPTION} (pitune), model.safetensors (openpi), "
        "config.json with model.safetensors (lerobot) or params/ (orbax)"
    )


def load(
    path: Path | str, config: LoadConfig | None = None, pipeline: Pipeline | None = None
) -> FlowPolicy:
    """Read a checkpoint folder of any format.

    Args:
        path: The folder.
        config: What the checkpoint does not hold.
        pipeline: openpi's settings for a checkpoint that no published config trained.

    Raises:
        FileNotFoundError: there is no checkpoint, or a file of it is missing.
        ValueError: a file is damaged or does not fit, or something has to be said in `config`.
    """
    folder, config = Path(path), config or LoadConfig()
    kind = recognize(folder)
    refuse_unused(config, kind, folder)
    if kind == "pitune":
        policy = with_settings(with_norm_stats(load_policy(folder), config), config)
    elif kind == "lerobot":
        policy = _load_lerobot(folder, config)
    else:
        policy = _load_openpi(folder, config, pipeline)
    if policy.preprocessor.config.prompt is not None and policy.info.tokenizer is None:
        tokenizer = _tokenizer(folder, config, policy.network.config.vocab_size)
        policy = policy.replace(info=replace(policy.info, tokenizer=tokenizer))
    floored = policy.preprocessor.floored()
    if kind != "pitune" and any(floored.values()):
        warnings.warn(
            f"norm stats of {folder} hardly move in dimensions {floored}; their scale is raised to "
            f"{policy.preprocessor.config.min_scale}",
            stacklevel=2,
        )
    return policy


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Heads]:
    """Return the canonical weights of an openpi, lerobot or orbax folder, and the heads."""
    description = _arch(folder)
    if is_orbax(folder):
        weights, counts = read_orbax(folder)
        heads = Heads(
            num_heads=counts.num_heads,
            num_kv_heads=counts.num_kv_heads,
            vision_heads=counts.vision_heads,
        )
        return weights, heads
    weights, _ = lerobot_read.split_legacy_stats(_read_files(folder))
    vlm, vision = description.get("vlm", {}), description.get("vision", {})
    heads = Heads(
        num_heads=vlm.get("num_heads", 8),
        num_kv_heads=vlm.get("num_kv_heads", 1),
        vision_heads=vision.get("num_attention_heads"),
    )
    return canonical(weights), heads


def _read_files(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors`, or of all the parts that it was cut into."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    found: dict[str, Tensor] = {}
    for file in files:
        part = read_safetensors(file)
        if found.keys() & part.keys():
            raise ValueError(
                f"{folder} holds {sorted(found.keys() & part.keys())[0]!r} in several files"
            )
        found |= part
    return found


def load_network(folder: Path, action_horizon: int) -> Pi0:
    """Return the network of an openpi, lerobot or orbax folder, without the pipeline around it.

    It computes in bfloat16 if the language model's weights are stored so, or `arch.json` says so.
    """
    weights, heads = read_weights(folder)
    network = build(sizes_of(weights, heads, action_horizon), weights, folder)
    description = _arch(folder)
    said = description.get("precision", description.get("dtype"))
    stored = weights[_VLM_WEIGHT].dtype
    network.compute_dtype = torch.bfloat16 if said == "bfloat16" else stored
    return network


def _load_openpi(folder: Path, config: LoadConfig, pipeline: Pipeline | None) -> FlowPolicy:
    if pipeline is None:
        if config.pipeline not in PIPELINES:
            raise ValueError(
                f"{folder} is an openpi checkpoint, which holds neither horizon nor cameras; "
                f"pipeline={config.pipeline!r} must name the openpi config that trained it "
                f"(--load.pipeline): {sorted(PIPELINES)}"
            )
        pipeline = PIPELINES[config.pipeline]
    description = _arch(folder)
    horizon = config.action_horizon or description.get("action_horizon") or pipeline.action_horizon
    network = load_network(folder, horizon)
    if network.config.family != pipeline.family:
        raise ValueError(
            f"{folder} holds {network.config.family} weights, but the pipeline is "
            f"{pipeline.family}'s; pass the pipeline of {network.config.family}"
        )
    file = config.norm_stats or openpi.find_norm_stats(folder)
    stats = None if file is None else openpi.read_norm_stats(file)
    _refuse_unnormalized(folder, stats is not None, config)
    preprocessor = openpi.preprocessor_config(pipeline, stats, network.config)
    sampler = SamplerConfig(
        flow_steps=10,
        execution_horizon=min(pipeline.execution_horizon, horizon),
        accumulated_time=True,
    )
    origin = {"format": "openpi"}
    if file is not None and config.norm_stats is None:
        asset = file.parent.relative_to(folder)
        origin["asset_id"] = asset.as_posix().removeprefix("assets/")
    policy = FlowPolicy(network, preprocessor, sampler, info=PolicyInfo(origin=origin))
    return with_settings(policy, config)


def _load_lerobot(folder: Path, config: LoadConfig) -> FlowPolicy:
    files = lerobot_read.LerobotFolder.read(folder)
    horizon = config.action_horizon or int(files.config.get("chunk_size", 50))
    network = load_network(folder, horizon)
    family = network.config.family
    if files.config.get("type") != family:
        raise ValueError(
            f"{folder / 'config.json'} says type={files.config.get('type')!r}, but the weights are "
            f"{family}'s; only pi0 and pi05 are supported, and both files must agree"
        )
    _, legacy = lerobot_read.split_legacy_stats(_read_files(folder))
    stats = lerobot_read.read_norm_stats(folder, files, legacy)
    if config.norm_stats is not None:
        stats = openpi.read_norm_stats(config.norm_stats)
    _refuse_unnormalized(folder, stats is not None, config)
    preprocessor = lerobot_read.preprocessor_config(files, stats, family, config.state_padding)
    sampler = SamplerConfig(
        flow_steps=int(files.config.get("num_inference_steps", 10)),
        execution_horizon=min(int(files.config.get("n_action_steps", horizon)), horizon),
    )
    info = PolicyInfo(origin={"format": "lerobot", **asdict(files)})
    policy = FlowPolicy(network, preprocessor, sampler, info=info)
    return with_settings(policy, config)


def _refuse_unnormalized(folder: Path, found: bool, config: LoadConfig) -> None:
    if not found and not config.unnormalized:
        raise ValueError(
            f"{folder} has no norm stats; without them the policy's actions are meaningless. Pass "
            "the norm_stats.json it was trained with (--load.norm-stats), or say "
            "unnormalized=True (--load.unnormalized)"
        )


def _tokenizer(folder: Path, config: LoadConfig, vocab_size: int) -> Tokenizer | None:
    """Return the tokenizer, or None: then acting on a prompt is an error, but nothing else."""
    file = find_tokenizer(folder, config.tokenizer)
    if file is None:
        return None
    tokenizer = Tokenizer.load(file)
    tokenizer.check(vocab_size)
    return tokenizer


def _arch(folder: Path) -> dict[str, Any]:
    """Return `arch.json` in or beside a folder: heads and horizon that no weight tells."""
    for place in (folder, folder.resolve().parent):
        if (place / "arch.json").is_file():
            return dict(json.loads((place / "arch.json").read_text()))
    return {}


def _unwritten_sizes(policy: FlowPolicy) -> dict[str, Any]:
    """Return what no weight and no reference's json tells; both packages ignore the file."""
    network = policy.network.config
    vlm, vision = network.vlm or network.expert, network.vision
    return {
        "vlm": {"num_heads": vlm.num_heads, "num_kv_heads": vlm.num_kv_heads},
        "vision": {} if vision is None else {"num_attention_heads": vision.num_heads},
        "action_horizon": network.action_horizon,
        "precision": str(policy.network.compute_dtype).removeprefix("torch."),
    }


def save(policy: FlowPolicy, path: Path | str, format: Format = "pitune") -> None:
    """Write a checkpoint folder; low-rank updates are folded in, in ours they stay apart.

    Warns of what another package will compute differently.

    Raises:
        FileExistsError: `path` exists already.
        ValueError: the format cannot express the policy.
    """
    with atomic_folder(Path(path)) as folder:
        if format == "pitune":
            write_policy(policy, folder)
            return
        network = policy.network.config
        if network.vlm is None or network.vision is None:
            raise ValueError(
                f"format={format!r} needs a vision-language model, which this policy lacks; save "
                "it with format='pitune'"
            )
        weights = {key: value.detach() for key, value in merged_state(policy.network).items()}
        arguments = (weights, network, policy.preprocessor.config, dict(policy.info.origin), folder)
        if format == "openpi":
            for difference in openpi.write(*arguments):
                warnings.warn(f"openpi will differ: {difference}", stacklevel=2)
        elif format == "lerobot":
            for difference in lerobot_write.write(*arguments, policy.sampler):
                warnings.warn(f"lerobot will differ: {difference}", stacklevel=2)
        else:
            raise ValueError(f"unknown format={format!r}; valid: pitune, openpi, lerobot")
        (folder / "arch.json").write_text(json.dumps(_unwritten_sizes(policy), indent=2) + "\n")
        if isinstance(policy.info.tokenizer, Tokenizer):
            policy.info.tokenizer.copy_to(folder / TOKENIZER)
