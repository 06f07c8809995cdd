"""One row of metrics from those of all ranks, and the settings that ranks share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pitune import envs, rl
from pitune.experiments.distributed.metrics import merged
from pitune.experiments.distributed.start import check_settings, rank_env
from pitune.experiments.runs.folder.rank_state import dealt
from pitune.experiments.train import TrainConfig
from pitune.rl import ranks
from settings import changed


def test_a_row_has_sums_of_counts_the_slowest_times_and_means() -> None:
    first = {"loss": 1.0, "replay_size": 8.0, "seconds/update": 1.0, "ratio_deviation": 0.1}
    second = {**first, "loss": 2.0, "seconds/update": 3.0, "ratio_deviation": 0.3, "only": 5.0}
    assert merged([first, second]) == {
        "loss": 1.5,
        "replay_size": 16.0,
        "seconds/update": 3.0,
        "ratio_deviation": 0.3,
        "only": 5.0,
    }


def test_equal_values_stay_the_same_to_the_last_bit() -> None:
    value = 0.1 + 0.2
    assert merged([{"x": value}] * 3)["x"] == value


@pytest.mark.parametrize("name", ["ppo", "dgn", "epo"])
def test_every_minibatch_of_an_algorithm_is_a_multiple_of_the_ranks(name: str) -> None:
    config = TrainConfig(algorithm=rl.preset(name))
    check_settings(config, 2)
    odd = replace(config, algorithm=changed(rl.preset(name), minibatch_size=129))
    with pytest.raises(ValueError, match="minibatch_size=129 is shared by 2 ranks"):
        check_settings(odd, 2)


def test_the_minibatch_of_the_value_is_a_multiple_of_the_ranks() -> None:
    config = TrainConfig(algorithm=rl.RecapConfig(value_minibatch_size=9))
    with pytest.raises(ValueError, match="value_minibatch_size=9 is shared by 2 ranks"):
        check_settings(config, 2)


def test_ranks_do_not_act_while_they_learn() -> None:
    config = TrainConfig(algorithm=rl.preset("wsrl"), act_while_learning=True)
    with pytest.raises(ValueError, match="act_while_learning=True cannot be combined with 2 ranks"):
        check_settings(config, 2)


def test_a_simulator_on_cuda_takes_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    config = envs.config_for("maniskill/PickCube-v1")
    assert rank_env(config) == config
    monkeypatch.setattr(ranks, "local_rank", lambda: 3)
    assert rank_env(config).typed_options(envs.ManiSkillOptions).gpu == 3
    plain = envs.config_for("mock/Reach")
    assert rank_env(plain) is plain


def test_waiting_episodes_are_dealt_out_whole() -> None:
    rows = {"episode": torch.tensor([0, 0, 1, 2]), "x": torch.arange(4)}
    states = [{"pending": [rows], "num": 3}, {"pending": [rows], "num": 3}]
    parts = [dealt(states, rank, 2)["pending"] for rank in range(2)]
    assert [part["x"].tolist() for part in parts[0]] == [[0, 1, 3]] * 2
    assert [part["x"].tolist() for part in parts[1]] == [[2]] * 2
    assert dealt(states, 0, 2)["num"] == 3
