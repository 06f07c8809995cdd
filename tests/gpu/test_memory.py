"""The memory table against the memory that a training step of a full π0 takes on CUDA."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pitune import policies
from pitune.policies.finetuning.memory import example_input, parameter_report
from pitune.policies.network.config import pi0
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.model_input import ModelInput
from pitune.rl.optimizers import adam

pytestmark = pytest.mark.gpu
BATCH = 8
TOLERANCE = 0.2
"""Of the estimate, relative to the measured peak."""
LORA = policies.LoRAConfig(rank=16, targets=("*_proj",))
SETTINGS = {
    "frozen VLM": policies.FinetuneConfig(
        trainable=("action_expert", "projections"), dtype="bfloat16"
    ),
    "LoRA": policies.FinetuneConfig(lora=LORA, trainable=("projections",), dtype="bfloat16"),
    "LoRA, checkpointing": policies.FinetuneConfig(
        lora=LORA, trainable=("projections",), dtype="bfloat16", gradient_checkpointing=True
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_table_is_near_the_peak_of_a_training_step(name: str, cuda: torch.device) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with cuda:
        network = policies.Pi0(replace(pi0(), vocab_size=0))
    identity = policies.NormStats.identity
    preprocessor = policies.PreprocessorConfig(
        state=identity(8),
        action=identity(7),
        pictures=PicturesConfig(
            cameras={"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}, resize="torch"
        ),
    )
    sampler = policies.SamplerConfig(flow_steps=4, execution_horizon=4)
    policy = policies.FlowPolicy(network, preprocessor, sampler).to(cuda)
    policy = policies.apply_finetuning(policy, SETTINGS[name])
    report = parameter_report(policy, BATCH)

    optimizer = adam([p for p in policy.parameters() if p.requires_grad], lr=1e-5)
    inputs = ModelInput.cat([example_input(policy)] * BATCH)
    action = torch.zeros(BATCH, policy.chunk_shape[0], 7, device=cuda)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the second has the optimizer's moments
        noise, time = policy.draw_noise(BATCH), torch.rand(BATCH, device=cuda)
        policy.loss(inputs, action, noise, time).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = torch.cuda.max_memory_allocated() - before
    print(f"{name}: table {report.total_bytes / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB")
    assert abs(report.total_bytes / peak - 1) < TOLERANCE, report.text()
