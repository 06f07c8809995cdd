"""Losses and conditions that a clone cannot have are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lerobot_datasets import episodes, version_2

from pitune import envs, rl
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.policies import FlowPolicy, NetworkOptions, Pi0
from pitune.policies.network.options.language_head import LanguageHeadConfig
from pitune.policies.network.options.status import StatusConfig
from pitune.rl.cloning.config import LanguageLossConfig, StatusLossConfig

ENV = envs.EnvConfig(id="mock/Reach", num_envs=2, num_workers=0)
STATUS = NetworkOptions(status=StatusConfig(enabled=True))
HEAD = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))
WEIGHT = StatusLossConfig(weight=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"status": WEIGHT, "network_options": STATUS, "words": True, "dataset": Path("me/d")},
            r"status\.weight=0\.1 learns from the ends .* dataset \(dataset=me/d\) does not hold",
        ),
        ({"status": WEIGHT}, r"status\.weight=0\.1 needs a network with the status head"),
        (
            {"status": WEIGHT, "network_options": STATUS},
            r"invalid_share=0\.2 gives rows the words of another task, and the policy reads none",
        ),
        (
            {"language": LanguageLossConfig(fast_weight=1.0), "words": True},
            r"language\.fast_weight=1\.0 needs a language head; add",
        ),
        (
            {"language": LanguageLossConfig(fast_weight=1.0), "words": True}
            | {"network_options": HEAD},
            r"language\.fast_weight=1\.0 needs FAST tokens, and vlm\.fast_tokens is 0; set it",
        ),
        ({"condition_dropout": 0.1}, r"condition_dropout=0\.1 drops conditions, and the network"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_read(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(env=ENV, **settings)


def test_a_single_task_has_no_other_words_and_nothing_is_played(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = PretrainConfig(env=ENV, out=out, words=True, network_options=STATUS, status=WEIGHT)
    with pytest.raises(ValueError, match=r"but the tasks are \['reach the green goal'\]; set sta"):
        pretrain(config)
    assert not any(out.rglob("*.safetensors"))
    assert not (out / "pretrain.json").exists()


def test_bc_refuses_a_dataset_for_the_status_when_it_is_made(
    tmp_path: Path, tiny_policy: Callable[..., FlowPolicy]
) -> None:
    policy = tiny_policy(3, 2)
    policy = policy.replace(network=Pi0(replace(policy.network.config, options=STATUS)))
    folder = version_2(tmp_path / "data", episodes())
    config = rl.BCConfig(demonstrations=folder, status=WEIGHT)
    with pytest.raises(ValueError, match=r"needs \['steps_left', 'other_prompt'\], which these"):
        rl.make(config, policy)


@pytest.mark.parametrize("config", [rl.FilteredBCConfig, rl.RecapConfig])
def test_decisions_of_rollouts_have_no_labels_of_the_status(config: Any) -> None:
    with pytest.raises(ValueError, match=r"cloning\.status\.weight=0\.1 does not apply to"):
        config(cloning=rl.BCConfig(status=WEIGHT))
