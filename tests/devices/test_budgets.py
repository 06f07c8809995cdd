"""Waits, transfers, encodings and conversions per gradient step and per decision have a budget.

Every algorithm acts and learns on the pretend device, with a simulator of the host and one of the
device. The numbers before these budgets were held are in docs/devices.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from counted_runs import HORIZON, Counts, counted

from pitune import envs, rl
from pitune.policies import FlowPolicy
from vision_policies import ENV

ALGORITHMS = (
    *("ppo", "grpo", "fpo", "epo", "filtered_bc"),
    *("bc", "dsrl", "dsrl:noise_aliased", "wsrl", "dgn"),
)
WITHOUT_STATE_TOKEN = ("epo",)
"""Algorithms that need π0's state token, which π0.5 does not have."""
POLICIES = (
    "state",
    *(
        f"{family}{option}"
        for family in ("pi0", "pi05")
        for option in ("", " frozen", " lora", " frozen bf16", " lora bf16")
    ),
)
COVERING = {
    "ppo": "pi0 frozen bf16",
    "grpo": "pi05 lora",
    "fpo": "pi05 frozen",
    "epo": "pi0 lora bf16",
    "filtered_bc": "pi0 frozen",
    "bc": "pi05 lora bf16",
    "dsrl": "pi05 frozen bf16",
    "dsrl:noise_aliased": "pi0 frozen",
    "wsrl": "pi0 lora",
    "dgn": "pi05 frozen bf16",
}
"""A policy with cameras and words for each algorithm, so that every option is met."""

WAITS_PER_UPDATE = 28
"""Reads of an update besides those of its gradient steps: its batch, its advantages, its memory."""
WAITS_PER_DECISION = 10
"""Reads of a decision with a simulator of the host: of the chunk, and of the rollout's entries."""
WAITS_PER_ROLLOUT = 8
"""Reads of a rollout with a simulator of the device besides one per control step: of its actions
and of the seeds of new episodes."""
COPIES_PER_UPDATE = 60
"""Copies to the device in an update: of a rollout with all its entries."""


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with demonstrations that have the policies' cameras."""
    file = tmp_path_factory.mktemp("demonstrations") / "demonstrations.safetensors"
    env = envs.make(replace(ENV, num_envs=5))
    rl.collect_demonstrations(env, 10, seed=0).save(file)
    return file


@pytest.fixture
def run(
    tiny_policy: Callable[..., FlowPolicy], demonstrations: Path
) -> Callable[[str, str, bool], Counts]:
    """Return the counts of an algorithm with a policy and a place of the simulator."""

    def counts(name: str, kind: str, on_device: bool) -> Counts:
        policy = tiny_policy(horizon=HORIZON, executed=HORIZON)
        return counted(name, kind, policy, demonstrations, on_device)

    return counts


def check(found: Counts, name: str, kind: str, on_device: bool) -> None:
    """Hold the budgets."""
    # update
    update = found.update
    assert found.losses >= found.gradient_steps
    assert update.waits <= found.losses + WAITS_PER_UPDATE, update.text()
    assert update.total("to device", "index") <= COPIES_PER_UPDATE, update.text()
    in_steps = {
        line: num for (_, line), num in update.lines.items() if "rl/gradient_step.py" in line
    }
    assert sum(in_steps.values()) <= found.losses + 1, in_steps  # and the indices, once

    # rollout
    if found.decisions:
        rollout = found.rollout
        if on_device:
            assert rollout.waits <= found.control_steps + WAITS_PER_ROLLOUT, rollout.text()
        else:
            assert rollout.waits <= WAITS_PER_DECISION * found.decisions, rollout.text()

    # encodings of a frozen prefix: of the last observations, and not in gradient steps
    on_policy = name in ("ppo", "grpo", "fpo", "epo", "filtered_bc")
    if kind != "state" and on_policy and ("frozen" in kind or "lora" in kind):
        assert found.encoded <= found.decided
    # a weight is converted once after each step that changes it
    assert found.rollout.weight_casts <= found.held
    assert update.weight_casts <= found.held * (found.gradient_steps + 1)


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_state_policy_stays_in_its_budget(name: str, on_device: bool, run: Callable) -> None:
    check(run(name, "state", on_device), name, "state", on_device)


@pytest.mark.parametrize(("name", "kind"), COVERING.items())
def test_a_policy_with_cameras_and_words_stays_in_its_budget(
    name: str, kind: str, run: Callable
) -> None:
    check(run(name, kind, True), name, kind, True)


@pytest.mark.slow
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_stays_in_its_budget_with_every_policy(
    name: str, kind: str, on_device: bool, run: Callable
) -> None:
    if name in WITHOUT_STATE_TOKEN and kind.startswith("pi05"):
        with pytest.raises(ValueError, match="this network has none"):
            run(name, kind, on_device)
        return
    check(run(name, kind, on_device), name, kind, on_device)


def test_the_covering_set_has_every_algorithm_and_every_option() -> None:
    assert tuple(COVERING) == ALGORITHMS
    words = {word for kind in COVERING.values() for word in kind.split()}
    assert words == {"pi0", "pi05", "frozen", "lora", "bf16"}


def test_a_read_in_each_gradient_step_exceeds_the_budget(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: one further read, of the loss."""
    from pitune.rl.algorithms import ppo

    original = ppo.critic_loss

    def reading(*args: object) -> object:
        loss, metrics = original(*args)
        for _ in range(3):
            float(loss.detach())
        return loss, metrics

    monkeypatch.setattr(ppo, "critic_loss", reading)
    found = run("ppo", "state", True)
    with pytest.raises(AssertionError):
        check(found, "ppo", "state", True)
