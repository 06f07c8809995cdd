"""A run of a policy with options of the network goes on bit for bit after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same_run, rows, small_run

from network_options import CASES, OptionCase, perturb
from pitune import experiments, policies, rl
from pitune.experiments.train import train
from pitune.policies.preprocessing.own_tokenizer import make_tokenizer

TASK = "reach the green goal"
TOGETHER = (
    *("value_residual", "memory", "registers", "hyper_connections", "linear_norms"),
    *("state_tokens", "critic_input", "insulation", "language_head", "status"),
)
"""Options of the quick test, all in one policy."""


@pytest.fixture(scope="module", autouse=True)
def _no_curve() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.train, "learning_curve", lambda *_: None)
        yield


def checkpoint(folder: Path, case: OptionCase) -> Path:
    """Write a tiny policy for `mock/Reach` with words and the options, as if trained."""
    torch.manual_seed(0)
    options = case.options
    if options.conditioning.task:
        options = replace(options, conditioning=replace(options.conditioning, tasks=(TASK,)))
    texts = ["reach the goal\n green\n"]
    file = folder / "tokenizer.json"
    tokenizer = make_tokenizer((TASK,), file, max_vocabulary=400, max_tokens=20, texts=texts)
    policy = policies.small_policy(
        torch.rand(200, 4),
        2 * torch.rand(200, 2) - 1,
        action_horizon=4,
        sampler=policies.SamplerConfig(flow_steps=2, execution_horizon=2),
        expert=policies.GemmaConfig(
            width=16, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8
        ),
        tokenizer=tokenizer,
        vlm=policies.SmallVLMConfig(width=16, mlp_dim=16, max_tokens=20),
        options=options,
    )
    perturb(policy.network, std=0.1)
    policies.save(policy, folder / "checkpoint")
    return folder / "checkpoint"


def interrupted_and_whole(folder: Path, case: OptionCase, **settings: Any) -> tuple[Path, Path]:
    """Train for three iterations, once at a stretch and once in two parts."""
    update = rl.UpdateConfig(minibatch_size=8, num_epochs=1)
    algorithm = rl.PPOConfig(critic_warmup=0, update=update, **settings)
    start, folders = checkpoint(folder, case), (folder / "parts", folder / "whole")
    changes: dict[str, Any] = {"num_iterations": 3, "eval_every": 1}
    train(small_run(algorithm, start, folders[0], **{**changes, "num_iterations": 1}))
    train(small_run(algorithm, start, folders[0], resume=True, **changes))
    train(small_run(algorithm, start, folders[1], **changes))
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_run_with_an_option_resumes_bit_for_bit(case: OptionCase, tmp_path: Path) -> None:
    assert_same_run(*interrupted_and_whole(tmp_path, case), last=3)


def test_a_run_with_many_options_and_a_language_loss_resumes_bit_for_bit(tmp_path: Path) -> None:
    case = reduce(lambda a, b: a & b, (case for case in CASES if case.name in TOGETHER))
    assert set(case.on) == set(TOGETHER)
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"prompt": "reach the goal", "answer": "green"}) + "\n")
    language = rl.LanguageRegularizationConfig(text_weight=1.0, text=texts)
    parts, whole = interrupted_and_whole(tmp_path, case, language=language)
    assert_same_run(parts, whole, last=3)
    assert all(float(row["text_loss"]) > 0 for row in rows(whole))
    # the control: it learned something
    before, after = (
        policies.load(folder).state_dict() for folder in (tmp_path / "checkpoint", whole)
    )
    names = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("gates", "connections", "value_residual", "memory", "language_model"):
        assert any(part in name for name in names), part
