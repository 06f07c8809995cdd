"""Cloning with the losses of the language head: texts, FAST tokens, weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fast_policies import WORDS, fast_policy
from tensordict import TensorDict

from pitune import policies, rl
from pitune.policies import FlowPolicy, ModelInput, NetworkOptions
from pitune.policies.by_tokens import fast_vocabulary
from pitune.policies.network.options.insulation import InsulationConfig
from pitune.rl.algorithms.bc import BCConfig, CloningStep
from pitune.rl.cloning.config import LanguageLossConfig
from pitune.rl.cloning.losses import fast_targets
from pitune.rl.cloning.text_set import held_out_loss, read_texts, text_loss, text_rows
from vision_policies import vision_policy

pytest.importorskip("tokenizers")


def texts(folder: Path, num: int = 4) -> Path:
    file = folder / "texts.jsonl"
    lines = [{"prompt": f"what color is number {i}?", "answer": f"color {i}"} for i in range(num)]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return file


def chunks(policy: FlowPolicy, num: int = 12) -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    table = rl.Demonstrations(
        obs={
            "state": torch.rand(num, 4, generator=generator),
            "task_id": torch.zeros(num, dtype=torch.int64),
        },
        action=2 * torch.rand(num, 2, generator=generator) - 1,
        episode=torch.zeros(num, dtype=torch.int64),
        tasks=WORDS[:1],
    )
    return table.preprocess(policy).chunks(4)


def test_all_losses_fall_in_joint_training(tmp_path: Path) -> None:
    policy = fast_policy(tmp_path)
    language = LanguageLossConfig(fast_weight=1.0, text_weight=1.0, text=texts(tmp_path))
    config = BCConfig(language=language, learning_rate=3e-3, warmup_steps=0, ema_decay=0.0)
    step = CloningStep(policy, config)
    rows = chunks(policy)
    torch.manual_seed(0)
    before, flow_before = {}, step(rows)
    before = step.auxiliary.means()
    assert before.keys() == {"fast_loss", "text_loss"}
    for _ in range(60):
        step(rows)
    step.auxiliary.means()
    flow_after = step(rows)
    after = step.auxiliary.means()
    assert after["fast_loss"] < 0.7 * before["fast_loss"]
    assert after["text_loss"] < 0.5 * before["text_loss"]
    assert flow_after < flow_before
    assert held_out_loss(policy, texts(tmp_path)) < 0.6 * before["text_loss"]


def test_the_loss_is_the_weighted_sum_and_parts_have_the_gradient_of_the_whole(
    tmp_path: Path,
) -> None:
    policy = fast_policy(tmp_path)
    language = LanguageLossConfig(
        flow_weight=0.5, fast_weight=2.0, text_weight=3.0, text=texts(tmp_path)
    )
    step = CloningStep(policy, BCConfig(language=language))
    rows = chunks(policy)
    torch.manual_seed(0)
    batch = rows.copy()
    batch["noise"], batch["flow_time"] = policy.draw_noise(12), torch.rand(12)
    batch.update(step.auxiliary.draws(batch))
    loss, metrics = step.loss(batch)
    total = 0.5 * metrics["flow_loss"] + 2 * metrics["fast_loss"] + 3 * metrics["text_loss"]
    assert torch.allclose(loss, total)
    grads = []
    for parts in (1, 3):
        policy.zero_grad()
        for part in batch.split(12 // parts):
            (step.loss(part)[0] / parts).backward()
        grads.append([p.grad for p in policy.parameters()])
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.allclose(one, other, atol=1e-5)


def by_flow(policy: FlowPolicy) -> FlowPolicy:
    """Return a policy that acts by its flow, beside its tokens."""
    return policy.replace(sampler=replace(policy.sampler, decoder="flow"))


def test_without_weights_cloning_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    results = []
    for language in (LanguageLossConfig(), None):
        policy = by_flow(fast_policy(tmp_path))
        config = BCConfig() if language is None else BCConfig(language=language)
        step = CloningStep(policy, config)
        torch.manual_seed(0)
        results.append([step(chunks(policy)) for _ in range(3)])
        assert step.auxiliary.means() == {}
    assert results[0] == results[1]


def test_insulation_leaves_the_language_model_to_the_tokens(tmp_path: Path) -> None:
    insulated = NetworkOptions(insulation=InsulationConfig(enabled=True))
    changes = {}
    for name, weight in (("flow", 0.0), ("tokens", 1.0)):
        policy = by_flow(fast_policy(tmp_path, options=insulated))
        before = policy.state_dict()
        before = {key: value.clone() for key, value in before.items()}
        language = LanguageLossConfig(fast_weight=weight)
        config = BCConfig(language=language, weight_decay=0.0, ema_decay=0.0, warmup_steps=0)
        step = CloningStep(policy, config)
        step(chunks(policy))
        after = policy.state_dict()
        changes[name] = {key for key in before if not torch.equal(before[key], after[key])}
    assert not {key for key in changes["flow"] if "paligemma.model" in key}
    assert {key for key in changes["flow"] if "gemma_expert" in key}
    assert {key for key in changes["tokens"] if "paligemma.model" in key}


def test_the_targets_are_the_tokens_of_the_normalized_chunk_and_its_end(tmp_path: Path) -> None:
    policy = fast_policy(tmp_path)
    rows = chunks(policy)
    tokens, mask = fast_targets(policy, rows)
    vocabulary = fast_vocabulary(policy)
    size = policy.network.config.vocab_size
    state = ModelInput.of(rows).robot_state
    action = policy.preprocessor.normalize_action(rows["action"], state)
    for row, valid, ids in zip(tokens, mask, vocabulary.fast.encode(action), strict=True):
        assert row[valid].tolist() == [*(size - 1 - i for i in ids), int(vocabulary.rows[-1])]
        assert not valid[len(ids) + 1 :].any()
    assert int(tokens.max()) < size


def test_a_policy_with_pictures_reads_texts_without_them(tmp_path: Path) -> None:
    policy = vision_policy("pi0")
    from pitune.policies.network.options.add import network_with_options
    from pitune.policies.network.options.language_head import LanguageHeadConfig

    options = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))
    policy = policy.replace(network=network_with_options(policy.network, options, None))
    rows = text_rows(policy, read_texts(texts(tmp_path)))
    with torch.no_grad():
        loss = text_loss(policy, rows)
        assert loss.shape == (4,)
        longer = rows.copy()
        longer["answer"] = torch.nn.functional.pad(rows["answer"], (0, 3), value=7)
        longer["answer_mask"] = torch.nn.functional.pad(rows["answer_mask"], (0, 3))
        assert torch.allclose(text_loss(policy, longer), loss, atol=1e-5)


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no texts at .*; write a JSON object on each"):
        read_texts(tmp_path / "none.jsonl")
    for content, message in (
        ("{", r"line 1 of .* is no JSON object with `prompt` and `answer`"),
        ('{"prompt": "a"}', r"line 1 of .* is no JSON object"),
        ('{"prompt": "a", "answer": " "}', r"line 1 of .* has an empty prompt or answer"),
        ("", "holds no text"),
    ):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_texts(tmp_path / "bad.jsonl")


def test_settings_that_contradict_each_other_and_missing_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text=None and text_weight=1\.0 belong together"):
        LanguageLossConfig(text_weight=1.0)
    with pytest.raises(ValueError, match="all weights of the losses are 0"):
        LanguageLossConfig(flow_weight=0.0)
    states, actions = torch.rand(50, 4), torch.rand(50, 2)
    plain = policies.small_policy(
        states, actions, action_horizon=4, sampler=policies.SamplerConfig()
    )
    with pytest.raises(ValueError, match="has no language head, so it predicts no tokens"):
        CloningStep(plain, BCConfig(language=LanguageLossConfig(fast_weight=1.0)))
    policy = fast_policy(tmp_path)
    flow = replace(policy.sampler, decoder="flow")
    bare = policy.replace(info=replace(policy.info, fast=None), sampler=flow)
    with pytest.raises(ValueError, match="has no FAST tokenizer"):
        CloningStep(bare, BCConfig(language=LanguageLossConfig(fast_weight=1.0)))
