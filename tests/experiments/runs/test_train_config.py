"""`train_config`: options on the command line that repeat a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pitune import envs, policies, rl
from pitune.experiments.recipes import recipe
from pitune.experiments.runs.next_steps import next_steps
from pitune.experiments.runs.train_config import TrainConfig, train_options
from pitune.experiments.train import parse

CONFIGS = {
    "the defaults": TrainConfig(algorithm=rl.PPOConfig()),
    "nested settings and switches": TrainConfig(
        algorithm=rl.PPOConfig(
            rescore=True,
            likelihood=policies.FlowNoiseConfig(stochastic_steps="one"),
        ),
        env=envs.EnvConfig(id="mock/Reach", cameras=("top", "front"), max_episode_steps=9),
        seed=3,
        device="cpu",
    ),
    "a checkpoint of another format": TrainConfig(
        algorithm=rl.GRPOConfig(),
        checkpoint=Path("some where/pi0"),
        load=policies.LoadConfig(cameras={"base": "front", "wrist": "hand"}, flow_steps=2),
        finetune=policies.FinetuneConfig(
            trainable=("action_expert",), lora=policies.LoRAConfig(rank=3, targets=("a.*", "b"))
        ),
    ),
    "nothing but low-rank updates": TrainConfig(
        algorithm=rl.PPOConfig(),
        finetune=policies.FinetuneConfig(trainable=(), lora=policies.LoRAConfig()),
    ),
}
for _name in ("ppo", "ppo:flow_noise", "dsrl", "dsrl:noise_aliased", "wsrl:keep_data", "dgn"):
    _settings = recipe("metaworld/reach-v3").for_algorithm(_name)
    CONFIGS[_name] = TrainConfig(
        algorithm=_settings.algorithm(_name, Path("runs")), env=_settings.env
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_options_of_a_run_repeat_its_settings(name: str) -> None:
    config = CONFIGS[name]
    saved = json.loads(json.dumps(config.identity()))  # as in config.json
    words = train_options(saved)
    assert json.loads(json.dumps(parse([saved["algorithm_name"], *words]).identity())) == saved
    if name == "the defaults":
        assert words == []


def test_a_setting_of_another_version_has_no_option() -> None:
    saved = replace(CONFIGS["the defaults"], seed=4).identity()
    saved["algorithm"]["forgotten"] = 1
    assert train_options(saved) == ["--seed", "4"]


def test_our_own_checkpoint_is_loaded_without_the_options_of_another_format(
    tmp_path: Path,
) -> None:
    config = CONFIGS["a checkpoint of another format"]
    (tmp_path / "config.json").write_text(json.dumps({"config": config.identity()}))
    assert next_steps(tmp_path) == []
    (tmp_path / "checkpoint_000020").mkdir()
    steps = {step.purpose: step.text for step in next_steps(tmp_path)}
    start = steps["start from a checkpoint: this one, or a folder of your own"]
    assert "--load" not in start
    assert f"--checkpoint {tmp_path / 'checkpoint_000020'}" in start
    longer = f"pitune train --resume {tmp_path} --num-iterations 40"  # finds its own options
    assert steps["train longer"] == longer


def test_a_run_that_may_stop_early_goes_on_without_that_limit(tmp_path: Path) -> None:
    config = replace(CONFIGS["the defaults"], stop_at=0.95)
    record = {"config": config.identity(), "limits": config.limits()}
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "checkpoint_000020").mkdir()
    steps = {step.purpose: step.text for step in next_steps(tmp_path)}
    assert steps["train longer"].endswith("--num-iterations 40 --stop-at 1")


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        ({"success_rate_low": 0.9, "success_rate_low_all": 0.4}, False),  # episodes broke down
        ({"success_rate_low": 0.9, "success_rate_low_all": 0.8}, True),
        ({"success_rate_low": 0.9}, True),  # of a version without the other bound
        ({"success_rate_low": 0.4}, False),
        ({"eval/return": 3.0}, False),
        ({"success_rate_low": None, "success_rate_low_all": None}, False),
    ],
)
def test_a_run_ends_by_the_bound_over_all_episodes(row: dict[str, float], reached: bool) -> None:
    config = replace(CONFIGS["the defaults"], stop_at=0.7)
    assert ("stop_at=0.7" in config.limit_reached(4, [row])) == reached
