"""A π0 and a π0.5 whose weights are split over two processes, against one process with all rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import on_ranks
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FinetuneConfig, FlowPolicy, LoRAConfig, ModelInput, apply_finetuning
from pitune.policies.finetuning.shard import (
    gather,
    part_of,
    release,
    shard,
    unsharded,
    whole,
)
from pitune.policies.network.config import Family
from pitune.policies.network.context import pack, stored_prefix
from pitune.rl import ranks
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import gradient_step
from vision_policies import vision_policy

FINETUNING = {
    "all": FinetuneConfig(),
    "lora": FinetuneConfig(trainable=(), lora=LoRAConfig()),
    "frozen VLM": FinetuneConfig(trainable=("action_expert", "projections")),
    "checkpointing": FinetuneConfig(gradient_checkpointing=True),
}
NUM_ROWS, NUM_STEPS = 4, 3


def new_policy(family: Family, finetuning: str) -> FlowPolicy:
    """Return a policy that two ranks share, or the same one whole in a single process."""
    torch.manual_seed(0)
    policy = apply_finetuning(vision_policy(family), FINETUNING[finetuning])
    with torch.no_grad():  # adapters start at 0, where half of their gradients are 0
        for name, value in policy.named_parameters():
            if name.endswith("lora_b"):
                value.normal_(std=0.1)
    return shard(policy) if ranks.world() > 1 else policy


def rows_of(policy: FlowPolicy) -> TensorDictBase:
    """Return this rank's rows with their random draws."""
    torch.manual_seed(1)
    pictures = torch.randint(0, 256, (2, NUM_ROWS, 3, 20, 20), dtype=torch.uint8)
    obs = {
        "state": torch.rand(NUM_ROWS, 4),
        "task_id": torch.arange(NUM_ROWS) % 2,
        "image/front": pictures[0],
        "image/wrist": pictures[1],
    }
    inputs = policy.model_input(obs, ("reach the red goal", "reach the blue goal"))
    rows: TensorDictBase = TensorDict({"model_input": inputs.tensordict()}, [NUM_ROWS])
    rows["action"] = torch.rand(NUM_ROWS, 4, 2)
    rows["noise"] = torch.randn(NUM_ROWS, *policy.chunk_shape)
    rows["flow_time"] = torch.rand(NUM_ROWS)
    num = NUM_ROWS // ranks.world()
    rows = sub_dict(rows, slice(ranks.rank() * num, (ranks.rank() + 1) * num))
    if policy.prefix_is_frozen:  # as in a rollout: encoded once, and read by each gradient step
        with torch.no_grad():
            rows["prefix"] = pack(policy.encode_prefix(ModelInput.of(rows)))
    return rows


def trained(family: Family, finetuning: str) -> dict[str, Any]:
    """Return the losses, the first gradients, and weights and actions after three steps."""
    policy = new_policy(family, finetuning)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    rows, losses = rows_of(policy), []
    gradients: dict[str, Tensor] = {}

    def loss(batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        value = policy.loss(
            ModelInput.of(batch),
            batch["action"],
            batch["noise"],
            batch["flow_time"],
            stored_prefix(batch),
        ).mean()
        return value, {"loss": value}

    for _ in range(NUM_STEPS):
        metrics, _ = gradient_step(
            optimizer, loss, rows, name="policy", step="step", max_grad_norm=1.0
        )
        losses.append(ranks.mean_number(float(metrics["loss"])))
        if not gradients:
            release(policy)
            gradients = {
                name: whole(value.grad).clone()
                for name, value in policy.named_parameters()
                if value.grad is not None
            }
    gather(policy)
    with torch.no_grad():  # other numbers of passes on each rank, which must not wait
        for _ in range(1 + ranks.rank()):
            actions = policy.sample_actions(ModelInput.of(rows), rows["noise"])
    weights = unsharded(policy).state_dict()
    own_bytes = sum(part_of(value).nbytes for value in policy.state_dict().values())
    return {
        "losses": losses,
        "gradients": gradients,
        "actions": actions,
        "weights": {} if ranks.rank() else weights,
        "bytes": own_bytes,
    }


@pytest.mark.parametrize("family", ["pi0", pytest.param("pi05", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "finetuning",
    ["all", *(pytest.param(f, marks=pytest.mark.slow) for f in FINETUNING if f != "all")],
)
def test_two_processes_learn_as_one(family: Family, finetuning: str, tmp_path: Path) -> None:
    work = partial(trained, family, finetuning)
    (one,) = on_ranks(work, 1, tmp_path / "one")
    first, second = on_ranks(work, 2, tmp_path / "two")

    # losses and gradients, scaled to norm 1
    assert first["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert one["gradients"].keys() <= first["gradients"].keys()
    assert one["gradients"]
    for name, gradient in first["gradients"].items():
        expected = one["gradients"].get(name, torch.zeros_like(gradient))  # FSDP gives all some
        assert torch.allclose(gradient, expected, rtol=0, atol=1e-6), name

    # each process has half of the weights, up to one row of each tensor
    assert first["bytes"] + second["bytes"] == one["bytes"]
    assert first["bytes"] < 0.55 * one["bytes"]

    # weights and actions after Adam's steps
    assert one["weights"].keys() == first["weights"].keys()
    for name, value in one["weights"].items():
        if name.endswith("k_proj.bias"):  # the softmax cancels it: Adam scales rounding errors up
            continue
        assert torch.allclose(value, first["weights"][name], rtol=0, atol=1e-5), name
    actions = torch.cat([first["actions"], second["actions"]])
    assert torch.allclose(one["actions"], actions, rtol=0, atol=1e-5)
