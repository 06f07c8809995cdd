"""`pitune bench delay`: success and seam jerk under delays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from pitune import envs, policies
from pitune.experiments.benchmarks.delay import (
    METHODS,
    DelayBenchmarkConfig,
    Recorder,
    measure,
    report,
    write,
)
from pitune.policies import DelayConfig, DelayedActor


def small_policy() -> policies.FlowPolicy:
    torch.manual_seed(0)
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=3)
    return policies.small_policy(states, actions, action_horizon=6, sampler=sampler)


def test_all_methods_are_measured_and_written(tmp_path: Path) -> None:
    policy = small_policy()
    policies.save(policy, tmp_path / "plain")
    info = policies.PolicyInfo(real_time_delay=2)
    policies.save(policy.replace(info=info), tmp_path / "trained")
    config = DelayBenchmarkConfig(
        plain=(tmp_path / "plain",),
        trained=(tmp_path / "trained",),
        env=envs.EnvConfig(id="mock/Reach", num_envs=3, num_workers=0),
        delays=(0, 2),
        episodes=4,
        jerk_dims=(0,),
        out=tmp_path / "out",
    )
    cells = measure(config)
    assert [(cell.method, cell.delay) for cell in cells] == [
        (m, d) for m in METHODS for d in (0, 2)
    ]
    assert all(cell.episodes == 4 and cell.jerk > 0 for cell in cells)
    assert report(config, cells).row_count == 8
    write(config, cells)
    record = json.loads((tmp_path / "out" / "delay.json").read_text())
    assert len(record["cells"]) == 8
    assert (tmp_path / "out" / "delay.png").is_file()


def test_the_recorder_separates_episodes_and_leaves_out_waiting_environments() -> None:
    policy = small_policy()
    recorder = Recorder(DelayedActor(policy, DelayConfig()))
    # env 0 plays two episodes, env 1 plays one and then waits
    times = [(0.0, 0.0), (0.2, 0.2), (0.4, 0.4), (0.6, 0.6), (0.0, 0.6), (0.2, 0.6)]
    for elapsed in times:
        state = torch.randn(2, 4)
        td = TensorDict({"state": state, "elapsed": torch.tensor(elapsed)[:, None]}, [2])
        recorder(policy.observation_preprocessor(())(td))
    lengths = sorted(len(actions) for actions in recorder.episodes())
    # 4 decisions of 3 actions, less the last two; the episode of 2 decisions is left out
    assert lengths == [6, 6]
    assert isinstance(recorder.episodes()[0], np.ndarray)


def test_without_a_checkpoint_it_says_so() -> None:
    with pytest.raises(ValueError, match="there is no checkpoint; name some with --plain or"):
        measure(DelayBenchmarkConfig())
