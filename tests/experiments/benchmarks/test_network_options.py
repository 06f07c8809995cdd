"""`pitune bench network_options`: clones at equal compute, not repeated after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pitune import envs
from pitune.experiments.benchmarks.network_options import (
    OPTIONS,
    NetworkOptionsConfig,
    collected,
    held_out_loss,
    main,
    measure,
    new_policy,
    step_cost,
)
from pitune.experiments.benchmarks.option_clones import Clone, table

ENV = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=6)


@pytest.fixture
def config(tmp_path: Path) -> NetworkOptionsConfig:
    return NetworkOptionsConfig(
        env=ENV,
        options=("plain", "registers"),
        seeds=(0,),
        demonstrations=3,
        held_out=2,
        gradient_steps=20,
        minibatch_size=8,
        episodes=4,
        out=tmp_path / "out",
    )


def test_dearer_options_take_fewer_steps_and_clones_are_not_repeated(
    config: NetworkOptionsConfig,
) -> None:
    first = measure(config)
    assert [(c.option, c.seed) for c in first] == [("plain", 0), ("registers", 0)]
    plain, registers = first
    assert (plain.cost, plain.steps) == (1.0, 20)
    assert registers.steps == round(20 / registers.cost) < 20
    assert registers.parameters > plain.parameters
    again = measure(replace(config, seeds=(0, 1), options=("plain",)))
    assert again[:2] == first
    assert [(c.option, c.seed) for c in again[2:]] == [("plain", 1)]
    file = config.out / "network_options.json"
    assert len(json.loads(file.read_text())["clones"]) == 3
    with pytest.raises(ValueError, match=r"network_options.json has other settings; pass another"):
        measure(replace(config, gradient_steps=21))


def test_the_held_out_loss_is_the_velocity_s_whatever_is_trained(
    config: NetworkOptionsConfig,
) -> None:
    env = envs.make(config.env)
    train, held_out = collected(config, env)
    assert (train.num_episodes, held_out.num_episodes) == (3, 2)
    torch.manual_seed(0)
    policy = new_policy(config, "plain", train)
    chunks = held_out.preprocess(policy).chunks(4)
    expected = held_out_loss(policy, chunks)
    assert held_out_loss(policy, chunks) == expected  # the same draws
    options = policy.network.config.options
    weighted = replace(options, prediction=replace(options.prediction, loss="action"))
    policy.network.config = replace(policy.network.config, options=weighted)
    assert held_out_loss(policy, chunks) == pytest.approx(expected, rel=1e-4)
    assert step_cost(config, policy, train) > 0


def test_the_table_has_a_row_for_each_option() -> None:
    rows = [Clone("plain", seed, 20, 1.0, 100, 0.5, 0.6, 2 * seed, 4, 1.0) for seed in (0, 1)]
    shown = table([*rows, Clone("wider", 0, 15, 1.3, 200, 0.4, 0.5, 4, 4, 1.0)])
    columns = {str(column.header): list(column.cells) for column in shown.columns}
    assert columns["option"] == ["plain", "wider"]
    assert columns["success [%]"] == ["0.0 50.0", "100.0"]
    assert str(columns["all seeds [%]"][0]).startswith("25.0 (")


def test_an_unknown_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert OPTIONS["plain"].names == []
    with pytest.raises(SystemExit):
        main(["--options", "telepathy"])
    assert "options names ['telepathy']; valid are ['plain'," in capsys.readouterr().err
