"""A simulator and a policy on two devices give the rollout of one device, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pretend_device
import pytest
import torch
from counted_runs import DeviceSimulator
from tensordict import TensorDictBase
from torch import Tensor

from pitune import envs, policies, rl
from pitune.envs import CheckedEnv, ChunkEnv, DelayedChunkEnv, EpisodeSeeds, MemoryChunkEnv
from pitune.envs.border import moved_together, read_together
from pitune.envs.mock.reach import Script
from vision_policies import ENV, vision_policy

LENGTHS, H = (2, 5, 7, 9), 3
ENDS = ("success", "time", "failure", "time")
E = len(LENGTHS)


def one_delay(number: int, generator: torch.Generator) -> Tensor:
    return torch.ones(number, dtype=torch.int64)


KINDS: dict[str, Callable[..., ChunkEnv]] = {
    "plain": ChunkEnv,
    "delayed": lambda *args, **named: DelayedChunkEnv(
        *args, remainder_steps=1, draw_delay=one_delay, **named
    ),
    "memory": lambda *args, **named: MemoryChunkEnv(*args, memory_shape=(2, 3), **named),
}


def make(kind: str, place: str, num_episodes: int | None) -> ChunkEnv:
    """Return an environment whose episodes end at different times."""
    simulator, device = Script(E, lengths=LENGTHS, ends=ENDS), pretend_device.device()
    env = CheckedEnv(DeviceSimulator(simulator) if place == "on the device" else simulator)
    seeds = EpisodeSeeds(E, seed=0, split="train")
    named = {} if place == "one device" else {"device": device}
    return KINDS[kind](env, H, seeds, num_episodes, **named)


def play(env: ChunkEnv, num: int = 6) -> TensorDictBase:
    """Return decisions (E, num) with actions that differ, on the host."""
    generator = torch.Generator().manual_seed(0)
    td, rows = env.reset(), []
    for _ in range(num):
        action = torch.rand(env.action_spec.shape, generator=generator)
        td["action"] = action.to(env.device)
        td["written_memory"] = torch.rand(E, 2, 3, generator=generator).to(env.device)
        td, following = env.step_and_maybe_reset(td)
        rows.append(td.cpu())
        td = following
    return torch.stack(rows, 1)


def differences(first: TensorDictBase, second: TensorDictBase, most: float = 0.0) -> list[Any]:
    """Return the entries that differ by more than `most`, or that only one of both has."""
    keys = set(first.keys(True, True)) ^ set(second.keys(True, True))
    both = set(first.keys(True, True)) & set(second.keys(True, True))
    pairs = {key: (first[key].double(), second[key].double()) for key in both}
    return [
        *keys,
        *(key for key, pair in pairs.items() if not (pair[0] - pair[1]).abs().max() <= most),
    ]


@pytest.mark.parametrize("num_episodes", [None, 2])
@pytest.mark.parametrize("place", ["on the host", "on the device"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_devices_give_the_decisions_of_one(
    kind: str, place: str, num_episodes: int | None
) -> None:
    expected = play(make(kind, "one device", num_episodes))
    found = play(make(kind, place, num_episodes))
    assert expected["next", "done"].sum() > E
    assert differences(expected, found) == []


def test_an_end_that_the_host_does_not_know_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    env = make("plain", "on the host", None)
    read = env._read_ends

    def forgetting(checked: CheckedEnv, num: Tensor, done: Tensor) -> int:
        return read(checked, num, done & (torch.arange(E) > 0))

    monkeypatch.setattr(env, "_read_ends", forgetting)
    assert differences(play(make("plain", "one device", None)), play(env))


@pytest.mark.parametrize("family", ["pi0", "pi05"])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_policy_with_pictures_and_words_collects_the_same(family: Any, on_device: bool) -> None:
    """Within the rounding of the device's attention."""
    rollouts = []
    for device in (torch.device("cpu"), pretend_device.device()):
        env = envs.make(ENV)
        if on_device and device.type != "cpu":
            env = CheckedEnv(DeviceSimulator(env.env))  # type: ignore[arg-type]
        policy = policies.apply_finetuning(vision_policy(family), policies.FinetuneConfig())
        algorithm = rl.make(rl.preset("ppo"), policy.to(device))
        collector = rl.Rollouts(env, algorithm, 5, seed=0)
        torch.manual_seed(0)
        rollouts.append([collector.collect().cpu() for _ in range(2)])
    for first, second in zip(*rollouts, strict=True):
        assert differences(first, second, most=1e-4) == []


def test_tensors_move_together_in_one_copy() -> None:
    values = {
        "flag": torch.tensor([True, False, True]),
        "number": torch.arange(5).view(5, 1),
        "share": torch.rand(3, 2, generator=torch.Generator().manual_seed(0)),
        "nothing": torch.zeros(0, 4),
    }
    with pretend_device.count() as events:
        moved = moved_together(values, pretend_device.device())
    assert events.total() == events.total("to device") == 1
    with pretend_device.count() as events:
        read = read_together(moved)  # type: ignore[arg-type]
    assert events.total() == events.waits == 1
    for key, value in values.items():
        assert moved[key].dtype == value.dtype
        assert torch.equal(read[key], value)
