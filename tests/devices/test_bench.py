"""`pitune bench` measures on an accelerator, and waits for it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pretend_device
import pytest
import torch

from pitune import policies, rl
from pitune.experiments.benchmarks.parts.clock import clock_of, seconds
from pitune.experiments.benchmarks.parts.table import PartsConfig, measure
from pitune.ranges import Device

SMALL = PartsConfig(
    num_envs=4,
    action_horizon=2,
    flow_steps=2,
    width=16,
    minibatch_size=4,
    algorithms=("ppo",),
    compile=False,
    growth=False,
    repeats=1,
    least_seconds=0.001,
)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Let settings name the device, and list the waits, which torch refuses for this device."""
    monkeypatch.setattr(Device, "fault", lambda *_: None)
    # its storage has no address, which the format of the files needs
    save = policies.save
    monkeypatch.setattr(policies, "save", lambda p, folder: save(deepcopy(p).cpu(), folder))
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    return waits


def test_every_part_is_measured_on_the_device(waits: list[torch.device]) -> None:
    device = str(pretend_device.device())
    rows, _ = measure(replace(SMALL, device=device, algorithms=("es", "ppo")))
    assert all(row.share > 0 for row in rows)
    assert len(waits) >= 2 * len(rows)


@pytest.mark.slow
def test_the_gradient_steps_of_every_algorithm_are_measured_on_the_device() -> None:
    device = str(pretend_device.device())
    rows, _ = measure(replace(SMALL, device=device, algorithms=()))
    assert {row.name.rpartition(" ")[2] for row in rows} >= set(rl.presets())


def test_pictures_in_bfloat16_are_measured_on_the_device() -> None:
    device = str(pretend_device.device())
    rows, _ = measure(replace(SMALL, device=device, size="tiny", dtype="bfloat16"))
    assert "gradient step, ppo" in [row.name for row in rows]


def test_the_clock_waits_for_the_device_after_a_first_call_that_is_not_measured() -> None:
    order: list[str] = []
    waiting = pretend_device.device()

    def act() -> int:
        order.append("act")
        return 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "synchronize", lambda _: order.append("wait"))
        patch.setattr("time.perf_counter", iter(range(10)).__next__)
        assert seconds(act, waiting, least=1.0) == 1.0
    assert order == ["act", "wait", "act", "wait"]


def test_work_on_the_host_is_measured_by_the_time_of_the_process() -> None:
    assert clock_of(torch.device("cpu")).__name__ == "process_time"
    assert clock_of(pretend_device.device()).__name__ == "perf_counter"
