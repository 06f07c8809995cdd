"""A vision-language checkpoint through every algorithm: cameras, prompt, chunks, and back again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.experiments.evaluate import EvaluateConfig, evaluate
from pitune.experiments.train import TrainConfig, train
from pitune.policies import FinetuneConfig, LoadConfig, LoRAConfig, ModelInput
from pitune.policies.network.config import Family
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.batch import add_next_features
from vision_policies import ENV, SLOTS, TOKENIZER, vision_policy


def lerobot_checkpoint(folder: Path, family: Family = "pi0") -> Path:
    """Lay out a checkpoint as lerobot does."""
    policies.save(vision_policy(family), folder, format="lerobot")
    return folder


REWARDED = replace(ENV, reward="dense")
"""Rewards that differ, without which no algorithm trains its policy."""
LOAD = LoadConfig(cameras=SLOTS, execution_horizon=2, flow_steps=2)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demonstrations") / "pictures.safetensors"
    rl.collect_demonstrations(envs.make(replace(ENV, max_episode_steps=20)), 6, seed=0).save(file)
    return file


@pytest.fixture
def small(small_preset: Callable, demonstrations: Path) -> Callable[[str], rl.AlgorithmConfig]:
    """Return small settings of an algorithm, with demonstrations that have pictures."""

    return lambda name: small_preset(name).with_demonstrations(demonstrations)


def config_of(checkpoint: Path, out: Path, algorithm: rl.AlgorithmConfig) -> TrainConfig:
    return TrainConfig(
        algorithm=algorithm,
        env=ENV,
        checkpoint=checkpoint,
        load=LOAD,
        out=out,
        num_iterations=2,
        num_chunks=3,
        eval_every=2,
        eval_episodes=4,
        video=False,
        wandb="off",
        device="cpu",
    )


def test_lerobot_checkpoint_is_fine_tuned_by_rl_and_given_back(
    tmp_path: Path, small: Callable
) -> None:
    checkpoint = lerobot_checkpoint(tmp_path / "lerobot")
    before = policies.load(checkpoint, LOAD)
    algorithm = replace(small("ppo"), critic_warmup=0, actor_learning_rate=1e-3)
    config = replace(config_of(checkpoint, tmp_path / "run", algorithm), env=REWARDED)
    summary = train(config)
    tuned = policies.load(summary["checkpoint"])
    policies.save(tuned, tmp_path / "back", format="lerobot")
    again = policies.load(tmp_path / "back", LOAD)
    assert again.state_dict().keys() == before.state_dict().keys()
    for key, value in tuned.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    key = "network.paligemma_with_expert.gemma_expert.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(again.state_dict()[key], before.state_dict()[key])
    assert again.preprocessor.config == before.preprocessor.config
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert (tmp_path / "back" / name).read_text() == (checkpoint / name).read_text()


@pytest.mark.parametrize("name", sorted(rl.presets()))
def test_every_algorithm_learns_on_cameras_and_a_prompt(
    name: str, tmp_path: Path, small: Callable
) -> None:
    checkpoint = tmp_path / "policy"
    policies.save(vision_policy(), checkpoint)
    run = train(config_of(checkpoint, tmp_path / "run", small(name)))
    assert run["iterations"] == 2
    loaded = policies.load(run["checkpoint"])
    assert loaded.obs_keys == ["state", "image/front", "image/wrist", "task_id"]
    evaluated = evaluate(
        EvaluateConfig(checkpoint=Path(run["checkpoint"]), env=ENV, episodes=4, device="cpu")
    )
    assert evaluated.num_episodes == 4


@pytest.mark.parametrize("name", sorted(set(rl.presets()) - {"epo"}))
def test_every_algorithm_learns_on_pi05_with_its_state_in_the_prompt(
    name: str, tmp_path: Path, small: Callable
) -> None:
    policies.save(vision_policy("pi05"), tmp_path / "policy")
    run = train(config_of(tmp_path / "policy", tmp_path / "run", small(name)))
    assert run["iterations"] == 2


@pytest.mark.parametrize("name", ["ppo", "dsrl", "wsrl", "dgn", "filtered_bc"])
def test_relative_actions_reach_the_robot_absolute(
    name: str, tmp_path: Path, small: Callable
) -> None:
    policies.save(vision_policy(delta_mask=(True, False)), tmp_path / "policy")
    run = train(config_of(tmp_path / "policy", tmp_path / "run", small(name)))
    assert run["iterations"] == 2


def test_lora_trains_saves_resumes_and_is_folded_in_on_export(
    tmp_path: Path, small: Callable
) -> None:
    checkpoint = lerobot_checkpoint(tmp_path / "lerobot")
    algorithm = replace(small("ppo"), critic_warmup=0, actor_learning_rate=1e-2)
    lora = LoRAConfig(rank=2, alpha=2.0, targets=("gemma_expert.*.q_proj", "mlp.*_proj"))
    config = replace(
        config_of(checkpoint, tmp_path / "run", algorithm),
        finetune=FinetuneConfig(trainable=(), lora=lora, gradient_checkpointing=True),
    )
    config = replace(config, eval_every=1, env=REWARDED)
    whole = train(replace(config, out=tmp_path / "whole"))
    train(replace(config, num_iterations=1))
    parts = train(replace(config, resume=True))
    tuned = policies.load(whole["checkpoint"])
    resumed = policies.load(parts["checkpoint"]).state_dict()
    assert all(torch.equal(resumed[key], value) for key, value in tuned.state_dict().items())
    assert tuned.info.lora == lora
    base = policies.load(checkpoint, LOAD).state_dict()
    frozen = {key: value for key, value in tuned.state_dict().items() if "lora" not in key}
    assert all(torch.equal(base[key], value) for key, value in frozen.items())
    policies.save(tuned, tmp_path / "merged", format="openpi")
    pipeline = replace(
        policies.PIPELINES["pi0_libero"],
        action_horizon=4,
        execution_horizon=2,
        state_dim=4,
        action_dim=2,
        delta_mask=(),
        cameras=SLOTS,
    )
    config_back = LoadConfig(tokenizer=TOKENIZER, flow_steps=2)
    merged = policies.load(tmp_path / "merged", config_back, pipeline)
    assert merged.info.lora is None
    key = "network.paligemma_with_expert.gemma_expert.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged.state_dict()[key], base[key])
    x, time = torch.randn(2, 1, 4, 32), torch.rand(2, 1)
    inputs = {
        "state": torch.randn(2, 32),
        "images": torch.rand(2, 2, 3, 28, 28),
        "tokens": torch.ones(2, 5, dtype=torch.int64),
    }
    ours, theirs = (
        policy.network.velocity(policy.network.encode(**inputs), x, time).velocity
        for policy in (tuned, merged)
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_lora_target_that_matches_nothing_is_refused(tmp_path: Path, small: Callable) -> None:
    policies.save(vision_policy("pi05"), tmp_path / "policy")
    lora = LoRAConfig(targets=("action_time_mlp_in",))  # π0's name, in a π0.5
    config = replace(
        config_of(tmp_path / "policy", tmp_path / "run", small("ppo")),
        finetune=FinetuneConfig(trainable=(), lora=lora),
    )
    with pytest.raises(ValueError, match="matches no layer"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_run_that_cannot_fit_is_refused_before_it_starts(
    tmp_path: Path, small: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies.save(vision_policy(), tmp_path / "policy")
    monkeypatch.setattr("pitune.experiments.runs.report.available_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="training needs"):
        train(config_of(tmp_path / "policy", tmp_path / "run", small("ppo")))
    assert not (tmp_path / "run").exists()


def test_cloning_with_an_average_resumes_exactly(tmp_path: Path, small: Callable) -> None:
    policies.save(vision_policy(), tmp_path / "policy")
    algorithm = replace(small("bc"), learning_rate=1e-3, warmup_steps=0, ema_decay=0.5)
    config = config_of(tmp_path / "policy", tmp_path / "whole", algorithm)
    config = replace(config, eval_every=1, num_iterations=3)
    whole = train(config)
    train(replace(config, out=tmp_path / "parts", num_iterations=1))
    parts = train(replace(config, out=tmp_path / "parts", resume=True))
    first, second = (policies.load(run["checkpoint"]).state_dict() for run in (whole, parts))
    assert all(torch.equal(first[key], second[key]) for key in first)
    start = policies.load(tmp_path / "policy").state_dict()
    assert any(not torch.equal(start[key], first[key]) for key in first)


def test_frozen_groups_stay_bit_identical(tmp_path: Path, small: Callable) -> None:
    policies.save(vision_policy(), tmp_path / "policy")
    algorithm = replace(small("ppo"), critic_warmup=0)
    config = replace(
        config_of(tmp_path / "policy", tmp_path / "run", algorithm),
        finetune=FinetuneConfig(trainable=("action_expert",), dtype="bfloat16"),
        env=REWARDED,
    )
    tuned = policies.load(train(config)["checkpoint"]).state_dict()
    start = policies.load(tmp_path / "policy").state_dict()
    changed = {key for key in start if not torch.equal(start[key].to(tuned[key].dtype), tuned[key])}
    assert changed
    assert all("gemma_expert" in key for key in changed)
    embedding = "network.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    assert tuned[embedding].dtype == torch.bfloat16
    assert {tuned[key].dtype for key in changed} == {torch.float32}  # master weights


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ppo", {"kl_coefficient": 0.1, "critic_warmup": 0}),
        ("ppo", {"bc_coefficient": 0.1, "critic_warmup": 0}),
        ("wsrl", {"anchor_coefficient": 1.0, "warmup_decisions": 1, "keep_prefix": False}),
    ],
)
def test_a_pretrained_policy_kept_for_comparison_knows_the_tasks_too(
    name: str, changes: dict, small: Callable
) -> None:
    """It is copied before the environment says which tasks there are."""
    algorithm = rl.make(with_settings(small(name), changes), vision_policy())
    rollouts = rl.Rollouts(envs.make(ENV), algorithm, 16, seed=0)
    metrics = [algorithm.update(rollouts.collect()) for _ in range(4)][-1]
    assert {"reference_kl", "reference_bc", "anchor_distance"} & metrics.keys()


def test_critics_read_the_features_of_each_observation_and_of_the_next_one(
    small: Callable,
) -> None:
    policy = vision_policy()
    algorithm = rl.make(small("ppo"), policy)
    rollout = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0).collect().copy()
    assert rollout["next", "done"][:, :-1].any()  # ends inside, where the next decision is another
    add_next_features(policy, rollout)
    with torch.no_grad():
        for place in (rollout, sub_dict(rollout, "next")):
            rows = place.select("model_input").flatten()
            direct = policy.encode(ModelInput.of(rows)).features.unflatten(0, rollout.batch_size)
            assert torch.allclose(place["features"], direct, atol=1e-6)
