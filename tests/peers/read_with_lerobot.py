"""Act with lerobot in checkpoint folders, for a comparison of its actions with ours.

It runs in an environment of its own, with Python 3.12 and `lerobot[pi,peft]==0.6.1`, and needs
nothing of this repository:

    python tests/peers/read_with_lerobot.py JOBS.json --tokenizer FOLDER

`JOBS.json` is a list of `{"folder", "observation", "actions"}`: a checkpoint, an `.npz` with the
observation under lerobot's keys, `prompt` and `noise` (H, A), and the `.npy` of the actions (H, d)
to write. `"pad_state": 32` pads the state in the prompt, as lerobot 0.4 did, and `"resize_from"`
names an older `modeling_pi0.py` whose `resize_with_pad` is used. lerobot accepts only
the published sizes, so those of a small checkpoint, from its shapes and `arch.json`, replace the
constants in lerobot's constructors. All computations are lerobot's own.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

VLM = "paligemma_with_expert.paligemma.model.language_model."
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
MODULES = tuple(f"lerobot.policies.{name}.modeling_{name}" for name in ("pi0", "pi05"))
EXPERT = "paligemma_with_expert.gemma_expert.model."


def tower(shapes: dict[str, tuple[int, ...]], prefix: str, heads: dict[str, int]) -> dict[str, int]:
    """Return the sizes of one tower of the language model."""
    key_dim, width = shapes[prefix + "layers.0.self_attn.k_proj.weight"]
    num_kv_heads = heads.get("num_kv_heads", 1)
    return {
        "width": width,
        "depth": sum(key.startswith(prefix) and key.endswith("q_proj.weight") for key in shapes),
        "mlp_dim": shapes[prefix + "layers.0.mlp.gate_proj.weight"][0],
        "num_heads": heads.get("num_heads", 8),
        "num_kv_heads": num_kv_heads,
        "head_dim": key_dim // num_kv_heads,
    }


def base_folder(folder: Path) -> Path:
    """Return the folder of the base weights, which an adapter names."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return folder
    return Path(json.loads(adapter.read_text())["base_model_name_or_path"])


@contextlib.contextmanager
def sizes_of(folder: Path, module: Any) -> Iterator[None]:
    """Replace the published sizes in lerobot's constructors by those of a checkpoint."""
    stored = load_file(folder / "model.safetensors")
    shapes = {key.removeprefix("model."): tuple(value.shape) for key, value in stored.items()}
    arch = json.loads((folder / "arch.json").read_text())
    heads = {name: arch["vlm"][name] for name in ("num_heads", "num_kv_heads")}
    towers = {
        "gemma_2b": tower(shapes, VLM, heads),
        "gemma_300m": tower(shapes, EXPERT, heads),
    }
    vocabulary = shapes.get(VLM + "embed_tokens.weight", ())[:1] or (
        shapes["paligemma_with_expert.paligemma.lm_head.weight"][0],
    )
    patch = shapes[VISION + "embeddings.patch_embedding.weight"]

    paligemma = module.PaliGemmaForConditionalGenerationWithPiGemma
    expert = module.PiGemmaForCausalLM

    def small_paligemma(config: Any) -> Any:
        config._vocab_size = config.text_config.vocab_size = vocabulary[0]
        config.image_token_index = vocabulary[0] - 1
        vision = config.vision_config
        vision.hidden_size, vision.patch_size = patch[0], patch[2]
        vision.intermediate_size = shapes[VISION + "encoder.layers.0.mlp.fc1.weight"][0]
        vision.num_hidden_layers = sum(
            key.startswith(VISION) and key.endswith("fc1.weight") for key in shapes
        )
        vision.num_attention_heads = arch["vision"]["num_attention_heads"]
        vision.projection_dim = config.projection_dim = towers["gemma_2b"]["width"]
        return paligemma(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = vocabulary[0]
        return expert(config=config)

    with (
        mock.patch.object(
            module, "get_gemma_config", lambda variant: module.GemmaConfig(**towers[variant])
        ),
        mock.patch.object(module, "PaliGemmaForConditionalGenerationWithPiGemma", small_paligemma),
        mock.patch.object(module, "PiGemmaForCausalLM", small_expert),
    ):
        yield


def load_policy(folder: Path) -> Any:
    """Load a checkpoint as lerobot's own `make_policy` does, and fail if it kept random weights."""
    importlib.import_module("lerobot.policies")  # registers the policy types
    from lerobot.configs.policies import PreTrainedConfig

    config = PreTrainedConfig.from_pretrained(folder)
    config.device = "cpu"
    module = importlib.import_module(f"lerobot.policies.{config.type}.modeling_{config.type}")
    policy_class = {"pi0": "PI0Policy", "pi05": "PI05Policy"}[config.type]
    report = io.StringIO()
    with sizes_of(base_folder(folder), module), contextlib.redirect_stdout(report):
        policy = getattr(module, policy_class).from_pretrained(base_folder(folder), config=config)
    # lerobot prints a failure and returns an untrained policy
    if "All keys loaded successfully" not in report.getvalue():
        raise RuntimeError(f"lerobot did not load all weights of {folder}: {report.getvalue()}")
    if config.use_peft:
        from peft import PeftModel

        policy = PeftModel.from_pretrained(policy, str(folder))
    return policy.eval()


def observation_of(stored: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return an observation as lerobot's robots send it: floats, pictures in [0, 1]."""
    batch: dict[str, Any] = {"task": str(stored["prompt"])}
    for key, value in stored.items():
        if key.startswith("observation.image"):
            # (Y, X, 3) uint8 -> (3, Y, X) float
            batch[key] = torch.from_numpy(value).permute(2, 0, 1).float() / 255
        elif key.startswith("observation."):
            batch[key] = torch.from_numpy(value).float()
    return batch


def older_resize(file: Path) -> Any:
    """Return the function by which an older lerobot resizes, with the present arguments."""
    tree = ast.parse(file.read_text())
    (code,) = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("resize_with_pad")
    )
    names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    exec(compile(ast.Module([code], []), str(file), "exec"), names)
    resize = names[code.name]
    if code.name == "resize_with_pad_torch":
        return resize

    # lerobot 0.3 has the channels first, and passes its pad value
    def channels_last(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return resize(images.permute(0, 3, 1, 2), width, height, pad_value=0).permute(0, 2, 3, 1)

    return channels_last


def set_resize(module: str, function: Any) -> None:
    """Replace the function by which a module of lerobot resizes pictures."""
    setattr(importlib.import_module(module), "resize_with_pad_torch", function)  # noqa: B010


def act(job: dict[str, Any], tokenizer: Path) -> np.ndarray:
    """Return the chunk (H, d) of lerobot's preprocessor, policy and postprocessor."""
    from lerobot.policies.factory import make_pre_post_processors

    folder, stored = Path(job["folder"]), dict(np.load(job["observation"]))
    policy = load_policy(folder)
    before, after = make_pre_post_processors(
        policy.config,
        pretrained_path=str(folder),
        preprocessor_overrides={
            "tokenizer_processor": {"tokenizer_name": str(tokenizer)},
            "device_processor": {"device": "cpu"},
        },
    )
    if job.get("pad_state") and policy.config.type == "pi05":
        pad_states_in_prompts(before, job["pad_state"])
    if "resize_from" in job:
        set_resize(type(policy).__module__, older_resize(Path(job["resize_from"])))
    batch = before(observation_of(stored))
    noise = torch.from_numpy(stored["noise"])[None]
    with torch.no_grad():
        actions = policy.predict_action_chunk(batch, noise=noise)
    return after(actions)[0].numpy()


def pad_states_in_prompts(before: Any, width: int) -> None:
    """Pad the state with zeros before it enters the prompt, as lerobot 0.4 did."""
    (step,) = (s for s in before.steps if type(s).__name__.startswith("Pi05PrepareState"))
    kind = type(step)

    def padded(self: Any, transition: Any) -> Any:
        observation = transition["observation"]
        state = observation["observation.state"]
        wide = torch.nn.functional.pad(state, (0, width - state.shape[-1]))
        result = kind.__call__(
            self, {**transition, "observation": {**observation, "observation.state": wide}}
        )
        return {**result, "observation": observation}

    step.__class__ = type("Padded", (kind,), {"__call__": padded})


def main() -> None:
    """Run all jobs, and print each that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    logging.disable()
    resize = {name: importlib.import_module(name).resize_with_pad_torch for name in MODULES}
    for job in json.loads(options.jobs.read_text()):
        for name, function in resize.items():
            set_resize(name, function)
        try:
            actions = act(job, options.tokenizer)
        except Exception as error:  # another package's errors have many types
            print(f"{job['folder']}: {type(error).__name__}: {error}")
            continue
        if not math.isfinite(float(np.abs(actions).max())):
            print(f"{job['folder']}: actions are not finite")
        np.save(job["actions"], actions)


if __name__ == "__main__":
    main()
