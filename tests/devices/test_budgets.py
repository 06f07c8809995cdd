"""Waits, transfers, encodings and conversions per gradient step and per decision have a budget.

Every algorithm acts and learns on the pretend device, with a simulator of the host or one of the
device. A covering set has every algorithm and every option, and the slow tests every combination.
The numbers before these budgets were held are in docs/devices.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from counted_runs import Counts, counted
from device_runs import ALGORITHMS, COVERING, HORIZON
from tensordict import TensorDictBase
from torch import Tensor

from pitune import envs, rl
from pitune.policies import FlowPolicy
from pitune.rl.experience.sub_dict import sub_dict
from vision_policies import ENV

POLICIES = (
    "state",
    *(
        f"{family}{option}"
        for family in ("pi0", "pi05")
        for option in ("", " frozen", " lora", " frozen bf16", " lora bf16")
    ),
)
ON_HOST = ("ppo", "grpo", "dsrl")
"""Algorithms with a simulator of the host outside the slow tests: one for each form of a rollout,
with many entries of a decision, with whole episodes and with replay."""

STEP = "rl/gradient_step.py"
IN_UPDATE = {
    # of the rollout: rows to learn from (each member of EPO has its own), their transitions
    "rl/experience/sub_dict.py": 3,
    "rl/experience/transitions.py": 1,
    "rl/experience/reward_record.py": 1,
    # of replay: the rows that are written
    "rl/experience/replay.py": 1,
    # of policy gradients: value clipping and spread (for the best and for all members of EPO),
    # shares of the batch, whether the rewards inform, the last `approx_kl`, the value's fit
    "rl/policy_gradient/advantage.py": 6,
    "rl/policy_gradient/batch.py": 2,
    "rl/policy_gradient/information.py": 1,
    "rl/policy_gradient/policy_step.py": 1,
    "rl/policy_gradient/value.py": 2,
    # mean and largest deviation of likelihoods that are computed again below float32,
    # for the best and for all members of EPO
    "rl/policy_gradient/rescoring.py": 4,
    # of GRPO: which episodes are whole, and which groups have rewards that differ
    "rl/policy_gradient/episodes.py": 7,
    "rl/algorithms/grpo.py": 10,
    # which flow steps of a chain have noise
    "policies/likelihood/flow_steps.py": 2,
    # of an algorithm's own metrics and choices
    "rl/algorithms/fpo.py": 1,
    "rl/algorithms/epo.py": 2,
    "rl/algorithms/evolution/epo_evolution.py": 4,
    "rl/algorithms/evolution/epo_population.py": 1,
    "rl/algorithms/dgn.py": 4,
    "policies/noise_source.py": 1,
}
"""Most reads of an update by file, besides those of its gradient steps. Their number does not grow
with that of the steps. A file that is not named reads nothing."""
COPIES_PER_UPDATE = 60
"""Copies to the device in an update: of a rollout with all its entries."""


def in_rollout(found: Counts, kind: str, on_device: bool) -> dict[str, int]:
    """Return the most reads of a rollout by file. A file that is not named reads nothing."""
    decisions, resets = found.decisions, found.resets
    # the actions, memories and fingerprint from which a run goes on in the midst of episodes
    budget = {"envs/border.py": 1}
    if not on_device:
        return budget | {"envs/chunk_env.py": decisions}  # the actions
    preprocessed = decisions + resets  # observations after each of both
    return budget | {
        # the checks of a chunk and the ends of episodes, in one read
        "envs/deferred_checks.py": decisions,
        # the environments that have episodes left
        "envs/chunk_env.py": found.whole_episodes * (resets + decisions),
        # an instruction is chosen by the task, and the words of π0.5 hold the state
        "policies/preprocessing/model_input.py": preprocessed if kind != "state" else 0,
        "policies/preprocessing/preprocessor.py": preprocessed if kind.startswith("pi05") else 0,
    }


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

    def counts(name: str, kind: str, on_device: bool, **settings: Any) -> Counts:
        policy = tiny_policy(horizon=HORIZON, executed=HORIZON)
        return counted(name, kind, policy, demonstrations, on_device, **settings)

    return counts


def check(found: Counts, name: str, kind: str, on_device: bool) -> None:
    """Hold the budgets."""
    # update: one read in each gradient step, and those of its files
    update = found.update
    reads = update.files("sync", "to host")
    assert reads.pop("rl/gradient_step.py", 0) == found.losses, update.text()
    assert over(reads, IN_UPDATE) == {}, update.text()
    assert update.total("to device", "index") <= COPIES_PER_UPDATE, update.text()
    assert update.files("to device", "index").get("rl/gradient_step.py", 0) <= 1  # the indices

    # rollout
    rollout = found.rollout
    budget = in_rollout(found, kind, on_device)
    assert over(rollout.files("sync", "to host"), budget) == {}, rollout.text()

    # encodings of a frozen prefix: of the last observations, and not in gradient steps
    on_policy = name in ("ppo", "grpo", "fpo", "epo", "filtered_bc")
    if kind != "state" and on_policy and ("frozen" in kind or "lora" in kind):
        assert found.encoded <= found.decided
    # a weight is converted once after each step that changes it
    assert rollout.weight_casts <= found.held
    assert update.weight_casts <= found.held * (found.gradient_steps + 1)


def over(reads: dict[str, int], budget: dict[str, int]) -> dict[str, int]:
    """Return the files that read more than their budget."""
    return {file: num for file, num in reads.items() if num > budget.get(file, 0)}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_state_policy_stays_in_its_budget(name: str, run: Callable) -> None:
    check(run(name, "state", True), name, "state", True)


@pytest.mark.parametrize("name", ON_HOST)
def test_a_simulator_of_the_host_stays_in_its_budget(name: str, run: Callable) -> None:
    check(run(name, "state", False), name, "state", False)


@pytest.mark.parametrize(("name", "kind"), COVERING.items())
def test_a_policy_with_cameras_and_words_stays_in_its_budget(
    name: str, kind: str, run: Callable
) -> None:
    check(run(name, kind, True), name, kind, True)


HOST = "policies/host_prefixes.py"
COPIES_OF_PREFIX = {
    # a copy for each of four minibatches, and one for the spread of the last flow step
    "ppo": 4 + 1,
    "fpo": 4 + 1,
    # the same, one per minibatch for the other members' decisions, and one for their log-ratios
    # and each member's actions
    "epo": 4 + 1 + 4 + 3,
    "filtered_bc": 3,
    "grpo": 0,  # no group has successes and failures
}
"""Copies of each entry of a prefix to the device in an update, if the host holds the prefixes."""


@pytest.mark.parametrize("name", COPIES_OF_PREFIX)
def test_a_prefix_of_the_host_is_copied_once_per_minibatch(name: str, run: Callable) -> None:
    entries = 4  # of a prefix
    kept = run(name, "pi0 frozen", True)
    found = run(name, "pi0 frozen", True, prefix_gib=1e-6)
    assert found.encoded == kept.encoded  # none in gradient steps

    # rollout: each entry of a decision is copied without waiting, and there is one wait at the end
    rollout = found.rollout
    assert rollout.files("later to host") == {HOST: entries * found.decisions}, rollout.text()
    assert rollout.files("sync") == kept.rollout.files("sync") | {HOST: 1}, rollout.text()
    assert rollout.waits == kept.rollout.waits + 1, rollout.text()

    # update: nothing waits for the copies, and rows are read once for each choice of decisions
    update = found.update
    moved = [line for kind, line in update.lines if kind == "to device" and HOST in line]
    copies = max((update.lines["to device", line] for line in moved), default=0)
    assert copies == entries * COPIES_OF_PREFIX[name], update.text()
    choices = 6 if name == "epo" else 3
    assert update.waits <= kept.update.waits + choices, update.text()
    assert not {file for file in update.files("to host") if file not in (HOST, *IN_UPDATE, STEP)}


def test_a_prefix_that_is_copied_twice_exceeds_the_budget(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the minibatches hold none, so the policy and its reference copy it."""
    from pitune.rl import gradient_step

    def without(batch: TensorDictBase, rows: list[Tensor]) -> Iterator[TensorDictBase]:
        return (sub_dict(batch, part) for part in rows)

    settings = {"prefix_gib": 1e-6, "kl_coefficient": 0.1}
    once = run("ppo", "pi0 frozen", True, **settings).update
    monkeypatch.setattr(gradient_step, "with_prefixes", without)
    twice = run("ppo", "pi0 frozen", True, **settings).update
    assert twice.copied_bytes["to device"] > 1.5 * once.copied_bytes["to device"]
    assert twice.waits > once.waits


@pytest.mark.slow
@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_stays_in_its_budget_with_every_policy(
    name: str, kind: str, on_device: bool, run: Callable
) -> None:
    check(run(name, kind, on_device), name, kind, on_device)


def test_the_covering_set_has_every_algorithm_and_every_option() -> None:
    assert tuple(COVERING) == ALGORITHMS
    words = {word for kind in COVERING.values() for word in kind.split()}
    assert words == {"pi0", "pi05", "frozen", "lora", "bf16"}


@pytest.mark.parametrize("line", ["policy_gradient/policy_step.py", "gradient_step.py"])
def test_a_further_read_in_each_gradient_step_exceeds_the_budget(
    line: str, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: `.item()` of the loss, in files that have a budget of their own."""
    from pitune.rl.algorithms import ppo

    original, reads = ppo.critic_loss, "def read(loss):\n    loss.detach().item()\n"
    here: dict[str, Callable[[Tensor], None]] = {}
    exec(compile(reads, str(Path(rl.__file__).resolve().parent / line), "exec"), here)

    def reading(*args: Any) -> tuple[Tensor, Any]:
        loss, metrics = original(*args)
        here["read"](loss)
        return loss, metrics

    monkeypatch.setattr(ppo, "critic_loss", reading)
    found = run("ppo", "state", True)
    with pytest.raises(AssertionError, match=f"rl/{line}"):
        check(found, "ppo", "state", True)
