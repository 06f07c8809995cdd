"""Language losses beside a policy gradient: where their gradient goes, and that 0 is no change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_policies import REACH, fast_policy
from tensordict import TensorDict
from torch import Tensor

from pitune import envs, rl
from pitune.policies import FinetuneConfig, FlowPolicy, NetworkOptions, apply_finetuning
from pitune.policies.network.options.insulation import InsulationConfig
from pitune.rl.cloning.config import LanguageRegularizationConfig
from pitune.rl.cloning.regularization import LANGUAGE

VLM = "paligemma_with_expert.paligemma."
CONFIGS: dict[str, Any] = {
    "ppo": rl.PPOConfig(critic_warmup=0),
    "grpo": rl.GRPOConfig(group_size=2),
    "grpo trajectory": rl.GRPOConfig(group_size=2, level="trajectory"),
    "fpo": rl.FPOConfig(critic_warmup=0),
}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "demonstrations.safetensors"
    env = envs.make(REACH)
    rl.collect_demonstrations(env, 4, seed=0).save(file)
    return file


def new_policy(folder: Path) -> FlowPolicy:
    insulated = NetworkOptions(insulation=InsulationConfig(enabled=True))
    policy = fast_policy(folder, options=insulated)
    return policy.replace(sampler=replace(policy.sampler, decoder="flow"))


def language(folder: Path, demonstrations: Path, *names: str) -> LanguageRegularizationConfig:
    file = folder / "texts.jsonl"
    file.write_text(json.dumps({"prompt": "reach the goal", "answer": "green"}) + "\n")
    text: dict[str, Any] = {"text_weight": 2.0, "text": file}
    fast: dict[str, Any] = {"fast_weight": 3.0, "chunks": demonstrations}
    chosen = (text if "text" in names else {}) | (fast if "fast" in names else {})
    return LanguageRegularizationConfig(**chosen)


def moved(policy: FlowPolicy, before: dict[str, Tensor]) -> set[bool]:
    """Return whether parameters moved in the VLM (True) and elsewhere (False)."""
    return {
        name.startswith(VLM)
        for name, value in policy.network.named_parameters()
        if not torch.equal(value, before[name])
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("losses", [(), ("text",), ("fast",)], ids=["none", "text", "fast"])
def test_the_language_loss_trains_the_insulated_vlm_and_nothing_else_does(
    name: str, losses: tuple[str, ...], tmp_path: Path, demonstrations: Path
) -> None:
    policy = new_policy(tmp_path)
    update = rl.UpdateConfig(minibatch_size=8, num_epochs=1)
    config = replace(
        CONFIGS[name], update=update, language=language(tmp_path, demonstrations, *losses)
    )
    algorithm: Any = rl.make(config, policy)
    torch.manual_seed(0)
    batch = rollout_batch(algorithm)
    before = {key: value.clone() for key, value in policy.network.named_parameters()}
    metrics = (
        algorithm.minibatch_step(batch)
        if hasattr(algorithm, "minibatch_step")
        else algorithm.actor_step(batch)
    )
    assert moved(policy, before) == ({True, False} if losses else {False})
    assert {key for key in ("text_loss", "fast_loss") if key in metrics} == {
        f"{loss}_loss" for loss in losses
    }


def rollout_batch(algorithm: Any) -> Any:
    """Return decisions with advantages, of random observations."""
    policy = algorithm.actor.policy
    num = 8
    obs = {"state": torch.rand(num, 4), "task_id": torch.zeros(num, dtype=torch.int64)}
    td = policy.observation_preprocessor(("reach the green goal",))(TensorDict(obs, [num]))
    with torch.no_grad():
        batch = algorithm.actor(td)
    advantage = torch.linspace(-1, 1, num)[:, None]
    batch.update({"advantage": advantage, "value_target": advantage, "state_value": 0 * advantage})
    batch["elapsed"] = torch.zeros(num, 1)
    batch["episode"] = torch.arange(num) // 2
    batch["weight"] = torch.ones(num, 1)
    return batch


def test_weights_of_0_change_no_bit_and_draw_nothing(tmp_path: Path) -> None:
    found: list[Any] = []
    for config in (rl.PPOConfig(critic_warmup=0), rl.PPOConfig(critic_warmup=0)):
        if found:  # every field at its default
            config = replace(config, language=LanguageRegularizationConfig())
        algorithm: Any = rl.make(config, new_policy(tmp_path))
        torch.manual_seed(0)
        batch = rollout_batch(algorithm)
        assert algorithm.loss.language is None
        assert algorithm.loss.with_draws(batch) is batch
        algorithm.actor_step(batch)
        found.append({k: v.clone() for k, v in algorithm.actor.policy.state_dict().items()})
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_the_loss_is_the_policy_s_plus_the_weighted_ones(
    tmp_path: Path, demonstrations: Path
) -> None:
    both = language(tmp_path, demonstrations, "text", "fast")
    algorithm: Any = rl.make(rl.PPOConfig(language=both), new_policy(tmp_path))
    batch = algorithm.loss.with_draws(rollout_batch(algorithm))
    total, metrics = algorithm.loss(batch)
    parts = metrics["policy_loss"] + 2 * metrics["text_loss"] + 3 * metrics["fast_loss"]
    assert float(total - parts) == pytest.approx(0.0, abs=1e-5)
    assert float(metrics["text_loss"]) > 1
    assert float(metrics["fast_loss"]) > 1
    # draws of the whole minibatch, which its parts share out
    assert len(batch[LANGUAGE]) == len(batch)
    halves = [algorithm.loss(part)[0] for part in batch.split(4)]
    assert float(sum(halves) / 2 - total) == pytest.approx(0.0, abs=1e-4)


def test_what_the_losses_need_is_named(tmp_path: Path, demonstrations: Path) -> None:
    with pytest.raises(ValueError, match=r"language\.text=None and language\.text_weight=1\.0 bel"):
        LanguageRegularizationConfig(text_weight=1.0)
    with pytest.raises(ValueError, match=r"language\.chunks=.* belong together"):
        LanguageRegularizationConfig(chunks=demonstrations)
    text = language(tmp_path, demonstrations, "text")
    frozen = apply_finetuning(new_policy(tmp_path), FinetuneConfig(trainable=("action_expert",)))
    with pytest.raises(ValueError, match="train the language model, and it is frozen; add vlm"):
        rl.make(rl.PPOConfig(language=text), frozen)
