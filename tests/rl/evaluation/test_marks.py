"""The status head and failed FAST tokens in an evaluation, beside the simulator's success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fast_policies import REACH, fast_policy

from pitune import envs, rl
from pitune.experiments.evaluation.rows_file import StoredRow, line_of, of_line
from pitune.policies import Actor, FastDecodingConfig, FlowPolicy, NetworkOptions
from pitune.policies.network.options.status import DONE, StatusConfig
from pitune.rl.evaluation.outcome import EpisodeOutcome, Evaluation, text_of

pytest.importorskip("tokenizers")


def rows(pairs: list[tuple[bool | None, bool]]) -> Evaluation:
    return Evaluation(
        rows=tuple(
            EpisodeOutcome(
                index=i,
                seed=i,
                task_id=0,
                success_once=solved,
                success_at_end=False,
                length=1,
                status_done=done,
                undecoded=None if done is None else 2,
            )
            for i, (done, solved) in enumerate(pairs)
        )
    )


def played(policy: FlowPolicy) -> Evaluation:
    env = envs.make(REACH)
    try:
        return rl.evaluate(env, Actor(policy), 6)
    finally:
        env.close()


def test_the_status_head_is_counted_beside_the_simulator_and_changes_no_rate() -> None:
    pairs = [(True, True)] * 4 + [(True, False)] * 3 + [(False, True)] * 2 + [(False, False)]
    outcome = rows(pairs)  # type: ignore[arg-type]
    assert outcome.status_counts() == {
        "done_and_success": 4,
        "done_without_success": 3,
        "success_without_done": 2,
        "neither": 1,
    }
    assert outcome.success_rate == 0.6
    summary = outcome.summary()
    assert summary["undecoded"] == 20
    assert "status head: done in 4 successes and 3 failures, not done in 2 successes and 1 f" in (
        str(outcome)
    )
    assert "20 decisions had FAST tokens that were no chunk" in text_of(summary)

    # the control: without a head nothing is reported, and rates are the same
    plain = rows([(None, solved) for _, solved in pairs])
    assert plain.success_rate == outcome.success_rate
    assert plain.status_counts() is None
    assert not {"status", "undecoded"} & plain.summary().keys()
    assert "status head" not in str(plain)
    assert not {"status_done", "undecoded"} & plain.summary()["rows"][0].keys()


def test_an_environment_without_success_has_nothing_to_compare_with() -> None:
    outcome = replace(rows([(True, True)]), success_rule=None)
    assert outcome.status_counts() is None


def test_rows_are_written_and_read_with_the_marks() -> None:
    for done in (True, None):
        row = StoredRow("part", rows([(done, True)]).rows[0], True)
        assert of_line(line_of(row)) == row
    line = line_of(StoredRow("part", rows([(True, True)]).rows[0], True))
    with pytest.raises(ValueError, match="status_done='yes' is of another type"):
        of_line(line.replace('"status_done": true', '"status_done": "yes"'))


def test_an_evaluation_reports_the_head_of_its_policy(tmp_path: Path) -> None:
    options = NetworkOptions(status=StatusConfig(enabled=True))
    policy = fast_policy(tmp_path, options=options)
    policy = policy.replace(sampler=replace(policy.sampler, decoder="flow"))
    before = played(policy)
    assert [row.status_done for row in before.rows] == [False] * 6  # untrained: all ongoing
    with torch.no_grad():
        policy.network.options["status"].linear.bias[DONE] = 5.0  # type: ignore[union-attr, operator]
    after = played(policy)
    assert [row.status_done for row in after.rows] == [True] * 6
    assert [row.success_once for row in after.rows] == [row.success_once for row in before.rows]
    assert all(row.undecoded is None for row in after.rows)


@pytest.mark.filterwarnings("ignore:.*FAST tokens that are no chunk")
def test_an_evaluation_counts_decisions_that_are_no_chunk(tmp_path: Path) -> None:
    policy = fast_policy(tmp_path)
    assert [row.undecoded for row in played(policy).rows] == [0] * 6
    free = FastDecodingConfig(constrained=False, temperature=3.0)
    counts = [
        row.undecoded or 0
        for row in played(policy.replace(sampler=replace(policy.sampler, fast=free))).rows
    ]
    assert sum(counts) > 0
    assert "FAST tokens that were no chunk" in str(
        played(policy.replace(sampler=replace(policy.sampler, fast=free)))
    )
