"""`pretrain`: an interrupted cloning goes on, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, experiments, policies, rl
from pitune.experiments import pretrain as module
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.experiments.pretraining import state
from pitune.experiments.runs import progress
from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.dataset import EpisodeDataset


class Killed(BaseException):
    """Like a signal: not an error that anything handles."""


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., PretrainConfig]:
    monkeypatch.setattr(state, "SAVE_EVERY", 4)

    def make(**changes: Any) -> PretrainConfig:
        config = PretrainConfig(
            env=envs.EnvConfig(id="mock/Reach", num_envs=10, num_workers=0),
            out=tmp_path / "clone",
            num_demonstrations=3,
            gradient_steps=10,
        )
        return replace(config, **changes)

    return make


def clone_until_killed(config: PretrainConfig, owner: Any, function: str, call: int) -> None:
    original, calls = getattr(owner, function), iter(range(1, 1000))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, function, counted)
        with pytest.raises(Killed):
            pretrain(config)


@pytest.mark.parametrize(
    ("owner", "function", "call"),
    [
        (CloningStep, "__call__", 1),
        (CloningStep, "__call__", 7),
        (module, "save_cloning", 1),  # after the demonstrations are written
        (state, "save_cloning", 1),
        (policies, "save", 1),
    ],
)
def test_an_interrupted_cloning_goes_on_bit_for_bit(
    owner: Any, function: str, call: int, config_of: Callable, tmp_path: Path
) -> None:
    whole = config_of(out=tmp_path / "whole")
    pretrain(whole)
    config = config_of()
    clone_until_killed(config, owner, function, call)
    assert not (config.out / "pretrained").exists()
    pretrain(config)
    for name in ("pretrained/policy.safetensors", "demonstrations.safetensors"):
        assert (config.out / name).read_bytes() == (whole.out / name).read_bytes(), name
    assert sorted(file.name for file in config.out.iterdir()) == [
        "demonstrations.safetensors",
        "pretrain.json",
        "pretrained",
    ]


def test_cloning_goes_on_after_the_steps_that_were_saved(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = config_of()
    clone_until_killed(config, CloningStep, "__call__", 7)
    monkeypatch.setattr(experiments.pretrain, "_collect", lambda _: 1 / 0)  # not again
    pretrain(config)
    assert "cloning continues after 4 of 10 steps" in capsys.readouterr().err


def test_an_interrupted_cloning_with_other_settings_is_rejected(config_of: Callable) -> None:
    clone_until_killed(config_of(), CloningStep, "__call__", 7)
    with pytest.raises(ValueError, match=r"another config; different: seed: 0 -> 1\. Resume with"):
        pretrain(config_of(seed=1))


def test_a_finished_clone_is_kept_and_its_settings_are_recorded(config_of: Callable) -> None:
    config = config_of()
    pretrain(config)
    record = json.loads((config.out / "pretrain.json").read_text())
    assert record["config"]["gradient_steps"] == 10
    assert "torch" in record["provenance"]["packages"]
    with pytest.raises(FileExistsError, match="pretrained exists already; pass another --out or"):
        pretrain(config)


def test_progress_counts_demonstrations_and_steps(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "MIN_SECONDS_BETWEEN_LINES", 0.0)
    pretrain(config_of())
    shown = capsys.readouterr().err
    for words in ("demonstrations: 0/3", "demonstrations: 3/3", "cloning: 0/10", "cloning: 10/10"):
        assert words in shown


def test_a_clone_with_clean_beginnings_continues_chunks_by_them(config_of: Callable) -> None:
    config = config_of(real_time_delay=2, gradient_steps=1)
    pretrain(config)
    policy = policies.load(config.out / "pretrained")
    assert policy.info.real_time_delay == 2
    assert policy.sampler.real_time is not None
    assert policy.sampler.real_time.method == "trained"


def test_clean_beginnings_of_whole_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="real_time_delay=4 must be below action_horizon=4"):
        PretrainConfig(real_time_delay=4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(policies.load(folder / "pretrained").state_dict())


def equal(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_recorded_dataset_gives_the_clone_of_its_demonstrations(
    config_of: Callable, tmp_path: Path
) -> None:
    config = config_of(record=tmp_path / "data")
    pretrain(config)
    assert EpisodeDataset(tmp_path / "data").metadata.fps == 10.0
    repeated = DataConfig(padding="repeat")
    pretrain(config_of(dataset=tmp_path / "data", data=repeated, out=tmp_path / "again"))
    assert equal(config.out, tmp_path / "again")
    pretrain(config_of(dataset=tmp_path / "data", out=tmp_path / "masked"))
    assert not equal(config.out, tmp_path / "masked")


def test_the_success_rate_of_the_expert_is_stored(config_of: Callable, tmp_path: Path) -> None:
    config = config_of(record=tmp_path / "data")
    pretrain(config)
    facts = json.loads((tmp_path / "data/meta/pitune.json").read_text())
    ((solved, played),) = rl.Demonstrations.load(
        config.out / "demonstrations.safetensors"
    ).expert_success
    assert facts["expert"] == {"reach the green goal": {"solved": solved, "played": played}}
    assert played >= solved >= 3


def test_an_interrupted_cloning_of_a_stream_goes_on_bit_for_bit(
    config_of: Callable, tmp_path: Path
) -> None:
    pretrain(config_of(record=tmp_path / "data"))
    data = DataConfig(memory_gib=2e-6, window=3)
    config = config_of(dataset=tmp_path / "data", data=data, minibatch_size=8)
    pretrain(replace(config, out=tmp_path / "whole"))
    config = replace(config, out=tmp_path / "killed")
    clone_until_killed(config, CloningStep, "__call__", 7)
    pretrain(config)
    assert equal(tmp_path / "whole", tmp_path / "killed")


def test_recording_needs_an_expert_and_a_new_folder(config_of: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"record=.* stores the demonstrations of the expert"):
        config_of(dataset=tmp_path / "data", record=tmp_path / "other")
    with pytest.raises(FileExistsError, match=r"exists already; pass another --record"):
        pretrain(config_of(record=tmp_path))
