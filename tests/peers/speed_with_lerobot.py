"""Time π0 in pitune and in lerobot at equal sizes: sampling, forward and training step.

Each package runs in an environment of its own. The same file runs in both:

    pitune/bin/python tests/peers/speed_with_lerobot.py pitune --size middle
    lerobot/bin/python tests/peers/speed_with_lerobot.py lerobot --size middle

The second needs Python 3.12 and `lerobot[pi]==0.6.1`, the first `pitune` on its path. Random
weights in float32 and random inputs of equal shapes, one thread. A round is one call of each part.
The script prints one line of JSON with the process time of each part in each round [s]. Take the
rounds of both packages in turn, because the load of a machine changes:

    python tests/peers/speed_with_lerobot.py compare --size middle \
        --pitune pitune/bin/python --lerobot lerobot/bin/python

prints the ratio of the medians. Letters: B rows, V cameras, H action horizon, A action dim.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import mse_loss

TOKENS, VOCABULARY, ACTION_DIM, FLOW_STEPS = 48, 1024, 32, 10
SIZES: dict[str, dict[str, Any]] = {
    "middle": {
        "vlm": {"width": 512, "depth": 6, "mlp_dim": 2048, "head_dim": 64},
        "expert": {"width": 256, "depth": 6, "mlp_dim": 1024, "head_dim": 64},
        "vision": {"width": 384, "depth": 6, "mlp_dim": 1536, "num_heads": 6},
        "image": 224,
        "horizon": 50,
        "rows": 2,
    },
    "tiny": {
        "vlm": {"width": 64, "depth": 2, "mlp_dim": 128, "head_dim": 16},
        "expert": {"width": 32, "depth": 2, "mlp_dim": 64, "head_dim": 16},
        "vision": {"width": 32, "depth": 3, "mlp_dim": 48, "num_heads": 2},
        "image": 28,
        "horizon": 10,
        "rows": 4,
    },
}
"""Sizes by name. The towers have 8 query heads and 1 key head, and patches of 14 pixels."""
CAMERAS = 3
Parts = dict[str, Callable[[], Any]]


def inputs_of(size: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return random inputs: pictures (B, V, 3, Y, X), words, state, noise and actions (B, H, A)."""
    torch.manual_seed(0)
    rows, edge, chunk = size["rows"], size["image"], (size["rows"], size["horizon"], ACTION_DIM)
    return {
        "images": 2 * torch.rand(rows, CAMERAS, 3, edge, edge) - 1,
        "tokens": torch.randint(VOCABULARY, (rows, TOKENS)),
        "state": torch.randn(rows, ACTION_DIM),
        "noise": torch.randn(chunk),
        "actions": torch.randn(chunk),
        "time": torch.full((rows,), 0.5),
    }


def parts_of_pitune(size: dict[str, Any], compiles: bool) -> Parts:
    """Return the three computations of pitune's network."""
    from pitune.compilation import LOOP_LAYERS, Compilation
    from pitune.policies.flow.ode import integrate
    from pitune.policies.flow.path import TimeGrid
    from pitune.policies.network.config import Pi0Config
    from pitune.policies.network.gemma import GemmaConfig
    from pitune.policies.network.pi0 import Pi0
    from pitune.policies.network.siglip import SiglipConfig
    from pitune.rl.optimizers import adamw

    heads: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 1}
    network = Pi0(
        Pi0Config(
            state_dim=ACTION_DIM,
            action_dim=ACTION_DIM,
            action_horizon=size["horizon"],
            expert=GemmaConfig(**size["expert"], **heads),
            vlm=GemmaConfig(**size["vlm"], **heads),
            vision=SiglipConfig(**size["vision"], image_size=size["image"]),
            vocab_size=VOCABULARY,
        )
    )
    x = inputs_of(size)
    compilation = Compilation(torch.device("cpu")) if compiles else None

    def form(function: Any) -> Any:
        return function if compilation is None else compilation(function)

    def encode() -> Any:  # as for deployed policies and cloning, which no critic follows
        words = form(Pi0.encode_prefix)(
            network, x["images"], tokens=x["tokens"], with_features=False
        )
        return form(Pi0.with_state)(network, words, x["state"])

    grid = TimeGrid(FLOW_STEPS)
    # a short loop is compiled whole, as a policy compiles it
    whole = FLOW_STEPS * size["expert"]["depth"] <= LOOP_LAYERS

    def solve(network: Pi0, context: Any, noise: torch.Tensor) -> torch.Tensor:
        velocity = Pi0.velocity if whole else form(Pi0.velocity)
        return integrate(lambda x, t: velocity(network, context, x, t.contiguous()), noise, grid)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        return (form(solve) if whole else solve)(network, encode(), x["noise"])

    def forward() -> torch.Tensor:
        point = 0.5 * (x["noise"] + x["actions"])[:, None]  # (B, 1, H, A)
        velocity = form(Pi0.velocity)(network, encode(), point, x["time"][:, None]).velocity
        return mse_loss(velocity[:, 0], x["noise"] - x["actions"])

    return _parts(network, sample, forward, adamw(network.parameters(), 1e-5, weight_decay=0.01))


def parts_of_lerobot(size: dict[str, Any], compiles: bool) -> Parts:
    """Return the three computations of lerobot's network, with these sizes in its constructors."""
    importlib.import_module("lerobot.policies")  # registers the policy types
    module = importlib.import_module("lerobot.policies.pi0.modeling_pi0")
    from lerobot.policies.pi0.configuration_pi0 import PI0Config

    towers = {"gemma_2b": size["vlm"], "gemma_300m": size["expert"]}
    paligemma, expert = (
        module.PaliGemmaForConditionalGenerationWithPiGemma,
        module.PiGemmaForCausalLM,
    )

    def small_paligemma(config: Any) -> Any:
        config._vocab_size = config.text_config.vocab_size = VOCABULARY
        config.image_token_index = VOCABULARY - 1
        vision, sizes = config.vision_config, size["vision"]
        vision.hidden_size, vision.intermediate_size = sizes["width"], sizes["mlp_dim"]
        vision.num_hidden_layers, vision.num_attention_heads = sizes["depth"], sizes["num_heads"]
        vision.projection_dim = config.projection_dim = size["vlm"]["width"]
        return paligemma(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = VOCABULARY
        return expert(config=config)

    def sizes_of(variant: str) -> Any:
        return module.GemmaConfig(**towers[variant], num_heads=8, num_kv_heads=1)

    edge = size["image"]
    settings = PI0Config(
        chunk_size=size["horizon"],
        n_action_steps=size["horizon"],
        num_inference_steps=FLOW_STEPS,
        image_resolution=(edge, edge),
        dtype="float32",
        device="cpu",
        compile_model=compiles,
        compile_mode="default",
    )
    with (
        mock.patch.object(module, "get_gemma_config", sizes_of),
        mock.patch.object(module, "PaliGemmaForConditionalGenerationWithPiGemma", small_paligemma),
        mock.patch.object(module, "PiGemmaForCausalLM", small_expert),
    ):
        network = module.PI0Pytorch(settings)
    x = inputs_of(size)
    present = torch.ones(size["rows"], dtype=torch.bool)
    observation = (
        list(x["images"].unbind(1)),
        [present] * CAMERAS,
        x["tokens"],
        torch.ones_like(x["tokens"]).bool(),
        x["state"],
    )

    def sample() -> torch.Tensor:
        return network.sample_actions(*observation, noise=x["noise"])

    def forward() -> torch.Tensor:
        return network.forward(*observation, x["actions"], x["noise"], x["time"]).mean()

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.01)
    return _parts(network, sample, forward, optimizer)


def _parts(network: torch.nn.Module, sample: Any, forward: Any, optimizer: Any) -> Parts:
    """Return sampling, the forward pass, and the forward pass with a step of AdamW.

    Each package makes the optimizer as its training does: pitune's is fused.
    """
    sys.stderr.write(f"{sum(p.numel() for p in network.parameters()):,} parameters\n")

    def without_gradient() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().backward()
        optimizer.step()

    return {"sample": sample, "forward": without_gradient, "training step": train}


def run(package: str, size: str, compiles: bool, repeats: int) -> dict[str, list[float]]:
    """Return the process time of each part in each round [s], after two that do not count."""
    torch.set_num_threads(1)
    parts = {"pitune": parts_of_pitune, "lerobot": parts_of_lerobot}[package](SIZES[size], compiles)
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(repeats + 2):
        for name, act in parts.items():
            start = time.process_time()
            act()
            if number >= 2:
                times[name].append(time.process_time() - start)
    return times


def compare(options: argparse.Namespace) -> None:
    """Run both packages in turn and print their ratios: above 1, pitune is faster."""
    pythons = {"pitune": options.pitune, "lerobot": options.lerobot}
    rounds: dict[str, list[dict[str, list[float]]]] = {name: [] for name in pythons}
    for _ in range(options.turns):
        for name, python in pythons.items():
            words = [python, __file__, name, "--size", options.size]
            words += ["--repeats", str(options.repeats), *(["--compile"] * options.compile)]
            output = subprocess.run(
                words, check=True, capture_output=True, text=True, env={**os.environ}
            )
            rounds[name].append(json.loads(output.stdout.splitlines()[-1]))
    for part in rounds["pitune"][0]:
        ratios = [
            median(theirs[part]) / median(ours[part])
            for ours, theirs in zip(rounds["pitune"], rounds["lerobot"], strict=True)
        ]
        ours, theirs = (median(median(r[part]) for r in rounds[name]) for name in pythons)
        turns = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{part}: {median(ratios):.2f} ({turns}); {1000 * ours:.1f}, {1000 * theirs:.1f} ms")


def main() -> None:
    """Measure one package, or compare both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("pitune", "lerobot", "compare"))
    parser.add_argument("--size", choices=SIZES, default="middle")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pitune", default=sys.executable)
    parser.add_argument("--lerobot", default=sys.executable)
    options = parser.parse_args()
    if options.package == "compare":
        compare(options)
        return
    print(json.dumps(run(options.package, options.size, options.compile, options.repeats)))


if __name__ == "__main__":
    main()
