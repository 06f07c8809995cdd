"""The task-status head: its labels, the masked flow loss, and its mark at decisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fast_policies import WORDS, fast_policy
from tensordict import TensorDict

from pitune import rl
from pitune.policies import Actor, FlowPolicy, ModelInput, NetworkOptions
from pitune.policies.network.options.status import DONE, INVALID, ONGOING, StatusConfig
from pitune.policies.status import status_logits
from pitune.rl.algorithms.bc import BCConfig, CloningStep
from pitune.rl.cloning.config import StatusLossConfig
from pitune.rl.cloning.losses import AuxiliaryLosses
from pitune.rl.experience.status_rows import with_status_rows

pytest.importorskip("tokenizers")


@pytest.fixture
def policy(tmp_path: Path) -> FlowPolicy:
    made = fast_policy(
        tmp_path, tasks=WORDS, options=NetworkOptions(status=StatusConfig(enabled=True))
    )
    return made.replace(sampler=replace(made.sampler, decoder="flow", execution_horizon=2))


def demonstrations(terminated: bool = True) -> rl.Demonstrations:
    """Return two episodes of 5 and 3 steps, of two tasks."""
    ends = torch.zeros(8, dtype=torch.bool)
    ends[[4, 7]] = terminated
    return rl.Demonstrations(
        obs={
            "state": torch.rand(8, 6, generator=torch.Generator().manual_seed(0)),
            "task_id": torch.tensor([0] * 5 + [1] * 3),
        },
        action=torch.rand(8, 2),
        episode=torch.tensor([0] * 5 + [1] * 3),
        tasks=WORDS,
        terminated=ends,
    )


def chunks(policy: FlowPolicy, table: rl.Demonstrations) -> TensorDict:
    return with_status_rows(policy, table, table.preprocess(policy).chunks(4))


def test_the_last_steps_of_a_success_are_done_and_the_others_go_on(policy: FlowPolicy) -> None:
    losses = AuxiliaryLosses(
        policy, rl.LanguageLossConfig(), StatusLossConfig(weight=1.0, invalid_share=0.0)
    )
    rows = chunks(policy, demonstrations())
    assert rows["steps_left"].tolist() == [5, 4, 3, 2, 1, 3, 2, 1]
    labels = losses.draws(rows)["status_label"]
    assert isinstance(labels, torch.Tensor)
    o, d = ONGOING, DONE
    assert labels.tolist() == [o, o, o, d, d, o, d, d]  # two steps are executed
    # the control: an episode that ran out of time is never done
    rows = chunks(policy, demonstrations(terminated=False))
    labels = losses.draws(rows)["status_label"]
    assert isinstance(labels, torch.Tensor)
    assert set(labels.tolist()) == {o}


def test_rows_with_another_task_s_words_are_invalid_and_have_no_flow_loss(
    policy: FlowPolicy,
) -> None:
    status = StatusLossConfig(weight=1.0, invalid_share=0.5)
    losses = AuxiliaryLosses(policy, rl.LanguageLossConfig(), status)
    table = demonstrations()
    rows = chunks(policy, table)
    rows = TensorDict.cat([rows] * 50)
    torch.manual_seed(0)
    batch = rows.copy().update(losses.draws(rows))
    invalid = batch["status_label"] == INVALID
    assert 0.42 < float(invalid.float().mean()) < 0.58

    # the words are those of the other task, in the same state
    same = (batch["model_input", "tokens"] == rows["model_input", "tokens"]).all(1)
    assert torch.equal(same, ~invalid)
    task_id = table.obs["task_id"]
    assert isinstance(task_id, torch.Tensor)
    swapped = replace(table, obs={**table.obs, "task_id": 1 - task_id})
    other = TensorDict.cat([swapped.preprocess(policy).chunks(4)] * 50)["model_input", "tokens"]
    assert torch.equal(batch["model_input", "tokens"][invalid], other[invalid])

    # their flow has no weight, and the others make up for it
    weight = batch["flow_row_weight"]
    assert not weight[invalid].any()
    assert float(weight.mean()) == pytest.approx(1.0)
    loss = losses.weighted(torch.ones(400, 4, 2), batch)
    assert not loss[invalid].any()


def test_the_recorded_success_decides_which_episodes_are_done(policy: FlowPolicy) -> None:
    """An attempt that ends in a failure has terminated too."""
    failed = torch.tensor([False] * 5 + [True] * 3)
    rows = chunks(policy, replace(demonstrations(), success=failed))
    assert rows["steps_left"].tolist() == [0, 0, 0, 0, 0, 3, 2, 1]


def test_words_that_all_tasks_share_make_no_row_invalid(policy: FlowPolicy) -> None:
    losses = AuxiliaryLosses(
        policy, rl.LanguageLossConfig(), StatusLossConfig(weight=1.0, invalid_share=0.9)
    )
    table = replace(demonstrations(), tasks=(WORDS[0], WORDS[0]))
    rows = TensorDict.cat([chunks(policy, table)] * 20)
    drawn = losses.draws(rows)
    assert not (drawn["status_label"] == INVALID).any()
    assert (drawn["flow_row_weight"] == 1).all()


def test_the_flow_of_invalid_rows_has_no_gradient(policy: FlowPolicy) -> None:
    def step_loss(share: float) -> float:
        config = BCConfig(status=StatusLossConfig(weight=1e-9, invalid_share=share))
        step = CloningStep(policy, config)
        rows = chunks(policy, demonstrations())
        batch = rows.copy()
        torch.manual_seed(0)
        batch["noise"], batch["flow_time"] = policy.draw_noise(8), torch.rand(8)
        batch.update(step.auxiliary.draws(batch))
        policy.zero_grad()
        loss, _ = step.loss(batch)
        loss.backward()
        grad = policy.network.action_out_proj.weight.grad
        assert grad is not None
        return float(grad.abs().max())

    assert step_loss(1.0) < 1e-6
    assert step_loss(0.0) > 1e-3  # the control


def test_the_head_learns_to_tell_the_statuses_apart(policy: FlowPolicy) -> None:
    status = StatusLossConfig(weight=1.0, invalid_share=0.3)
    step = CloningStep(policy, BCConfig(status=status, learning_rate=3e-3, warmup_steps=0))
    rows = chunks(policy, demonstrations())
    torch.manual_seed(0)
    many = TensorDict.cat([rows] * 4)
    first = step(many)
    before = step.auxiliary.means()["status_loss"]
    assert before == pytest.approx(1.0986, abs=0.02)  # log 3, where it knows nothing
    for _ in range(80):
        step(many)
    step.auxiliary.means()
    step(many)
    assert step.auxiliary.means()["status_loss"] < 0.6 * before
    assert first > 0


def test_decisions_are_marked_with_their_status(policy: FlowPolicy) -> None:
    table = demonstrations()
    td = policy.observation_preprocessor(WORDS)(TensorDict(table.obs, [8]))
    with torch.no_grad():
        policy.network.options["status"].linear.bias[DONE] = 5.0  # type: ignore[union-attr, operator]
        inputs = ModelInput.of(td)
        decision = policy.decide(inputs)
        assert decision.marks["status"].tolist() == [DONE] * 8
        logits = status_logits(policy, policy.encode(inputs), decision.chunk)
    assert logits.shape == (8, 3)
    acted = Actor(policy)(td)
    assert acted["status"].tolist() == [DONE] * 8
    plain = policy.replace(network=fast_policy_network(policy))
    assert "status" not in Actor(plain)(td.exclude("status")).keys()  # the control


def fast_policy_network(policy: FlowPolicy) -> object:
    from pitune.policies import Pi0

    options = replace(policy.network.config.options, status=StatusConfig())
    return Pi0(replace(policy.network.config, options=options))


def test_what_the_status_needs_is_named(policy: FlowPolicy, tmp_path: Path) -> None:
    without = policy.replace(network=fast_policy_network(policy))
    with pytest.raises(ValueError, match=r"status\.weight=1\.0 needs a network with the status"):
        AuxiliaryLosses(without, rl.LanguageLossConfig(), StatusLossConfig(weight=1.0))
    losses = AuxiliaryLosses(policy, rl.LanguageLossConfig(), StatusLossConfig(weight=1.0))
    rows = demonstrations().preprocess(policy).chunks(4)
    with pytest.raises(ValueError, match=r"needs \['steps_left', 'other_prompt'\], which these"):
        losses.draws(rows)
    single = replace(demonstrations(), tasks=WORDS[:1])
    single.obs["task_id"] = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"needs \['other_prompt'\]"):
        losses.draws(chunks(policy, single))
