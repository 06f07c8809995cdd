"""Act with openpi in checkpoint folders, for a comparison of its actions with ours.

It runs in an environment of its own, with Python 3.11, openpi's package and its patched
`transformers` 4.53.2, and needs nothing of this repository:

    python tests/peers/read_with_openpi.py JOBS.json --tokenizer paligemma_tokenizer.model

`JOBS.json` is a list of `{"folder", "observation", "actions"}`: a checkpoint that pitune wrote, an
`.npz` with the observation as `state`, `image/<camera>` (Y, X, 3) uint8, `prompt` and `noise`
(H, A), and the `.npy` of the actions (H, d) to write. The training settings, which openpi keeps in
its Python configs, are those of `pipeline.json`. The sizes of a small checkpoint, from its shapes
and `arch.json`, replace the constants in openpi's constructors. All computations are openpi's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import openpi.models.gemma as gemma
import torch
from openpi import transforms
from openpi.models import tokenizer as tokenizers
from openpi.models_pytorch import gemma_pytorch, pi0_pytorch
from openpi.policies import aloha_policy
from openpi.policies.libero_policy import _parse_image
from openpi.policies.policy import Policy
from openpi.shared import normalize
from safetensors.torch import load_file, load_model

VLM = "paligemma_with_expert.paligemma.model.language_model."
VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
EXPERT = "paligemma_with_expert.gemma_expert.model."
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def tower(shapes: dict[str, tuple[int, ...]], prefix: str, heads: dict[str, int]) -> gemma.Config:
    """Return the sizes of one tower of the language model."""
    key_dim, width = shapes[prefix + "layers.0.self_attn.k_proj.weight"]
    return gemma.Config(
        width=width,
        depth=sum(key.startswith(prefix) and key.endswith("q_proj.weight") for key in shapes),
        mlp_dim=shapes[prefix + "layers.0.mlp.gate_proj.weight"][0],
        num_heads=heads["num_heads"],
        num_kv_heads=heads["num_kv_heads"],
        head_dim=key_dim // heads["num_kv_heads"],
    )


@contextlib.contextmanager
def sizes_of(folder: Path) -> Iterator[None]:
    """Replace the published sizes in openpi's constructors by those of a checkpoint."""
    stored = load_file(folder / "model.safetensors")
    shapes = {key: tuple(value.shape) for key, value in stored.items()}
    arch = json.loads((folder / "arch.json").read_text())
    towers = {
        "gemma_2b": tower(shapes, VLM, arch["vlm"]),
        "gemma_300m": tower(shapes, EXPERT, arch["vlm"]),
    }
    vocabulary = shapes["paligemma_with_expert.paligemma.lm_head.weight"][0]
    patch = shapes[VISION + "embeddings.patch_embedding.weight"]
    paligemma = gemma_pytorch.PaliGemmaForConditionalGeneration
    expert = gemma_pytorch.GemmaForCausalLM

    def small_paligemma(config: Any) -> Any:
        config._vocab_size = config.text_config.vocab_size = vocabulary
        config.image_token_index = vocabulary - 1
        vision = config.vision_config
        vision.hidden_size, vision.patch_size = patch[0], patch[2]
        vision.intermediate_size = shapes[VISION + "encoder.layers.0.mlp.fc1.weight"][0]
        vision.num_hidden_layers = sum(
            key.startswith(VISION) and key.endswith("fc1.weight") for key in shapes
        )
        vision.num_attention_heads = arch["vision"]["num_attention_heads"]
        vision.projection_dim = config.projection_dim = towers["gemma_2b"].width
        return paligemma(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = vocabulary
        return expert(config=config)

    with (
        mock.patch.object(gemma, "get_config", lambda variant: towers[variant]),
        mock.patch.object(gemma_pytorch, "PaliGemmaForConditionalGeneration", small_paligemma),
        mock.patch.object(gemma_pytorch, "GemmaForCausalLM", small_expert),
        mock.patch.object(torch, "compile", lambda function, **_: function),
    ):
        yield


def load(folder: Path) -> Any:
    """Load the weights strictly, as openpi's `load_pytorch` does, in the written precision."""
    config = json.loads((folder / "config.json").read_text())
    pipeline = json.loads((folder / "pipeline.json").read_text())
    settings = SimpleNamespace(
        paligemma_variant=config["paligemma_variant"],
        action_expert_variant=config["action_expert_variant"],
        action_dim=config["action_dim"],
        action_horizon=config["action_horizon"],
        dtype=config["precision"],
        pi05=pipeline["family"] == "pi05",
    )
    with sizes_of(folder):
        model = pi0_pytorch.PI0Pytorch(settings)
        load_model(model, str(folder / "model.safetensors"))
    model.paligemma_with_expert.to_bfloat16_for_selected_params(config["precision"])
    return model


def robot_inputs(cameras: dict[str, str]) -> Any:
    """Return the transform of an own robot's observation, written like openpi's LiberoInputs."""

    def apply(data: dict[str, Any]) -> dict[str, Any]:
        pictures = {name: _parse_image(data[f"image/{robot}"]) for name, robot in cameras.items()}
        blank = np.zeros_like(next(iter(pictures.values())))
        return {
            "state": data["state"],
            "image": {name: pictures.get(name, blank) for name in CAMERAS},
            "image_mask": {name: np.bool_(name in cameras) for name in CAMERAS},
            "prompt": data["prompt"],
        }

    return apply


def act(folder: Path, stored: dict[str, np.ndarray], tokenizer: Path) -> np.ndarray:
    """Return the chunk (H, d) of openpi's own policy, transforms and norm stats."""
    pipeline = json.loads((folder / "pipeline.json").read_text())
    file = next((folder / "assets").rglob("norm_stats.json"))
    stats = normalize.load(file.parent)
    with mock.patch.object(tokenizers.download, "maybe_download", return_value=tokenizer):
        words = tokenizers.PaligemmaTokenizer(pipeline["prompt_tokens"])
    mask = tuple(pipeline["delta_mask"]) or None
    inputs: list[Any] = [robot_inputs(pipeline["cameras"])]
    outputs: list[Any] = [lambda data: {"actions": data["actions"][:, : pipeline["action_dim"]]}]
    if pipeline["joints"] == "aloha":
        decode, encode = aloha_policy._decode_state, aloha_policy._encode_actions
        inputs.append(lambda data: {**data, "state": decode(data["state"], adapt_to_pi=True)})
        outputs.append(lambda data: {"actions": encode(data["actions"], adapt_to_pi=True)})
    policy = Policy(
        load(folder),
        transforms=[
            *inputs,
            transforms.DeltaActions(mask),
            transforms.Normalize(stats, use_quantiles=pipeline["quantiles"]),
            transforms.ResizeImages(224, 224),
            transforms.TokenizePrompt(words, discrete_state_input=pipeline["discrete_state"]),
            transforms.PadStatesAndActions(32),
        ],
        output_transforms=[
            transforms.Unnormalize(stats, use_quantiles=pipeline["quantiles"]),
            transforms.AbsoluteActions(mask),
            *outputs,
        ],
        sample_kwargs={"num_steps": pipeline["flow_steps"]},
        is_pytorch=True,
    )
    observation = {key: value for key, value in stored.items() if key not in ("noise", "prompt")}
    with torch.no_grad():
        return policy.infer(
            {**observation, "prompt": str(stored["prompt"])}, noise=stored["noise"]
        )["actions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    options = parser.parse_args()
    for job in json.loads(options.jobs.read_text()):
        stored = dict(np.load(job["observation"], allow_pickle=False))
        np.save(job["actions"], act(Path(job["folder"]), stored, options.tokenizer))
        print(job["folder"], flush=True)


if __name__ == "__main__":
    main()
