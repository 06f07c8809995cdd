"""Two ranks against one process with the union of their batches, for every algorithm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import on_ranks
from tensordict import TensorDictBase
from union import alike, same_draws, updates

from pitune import envs, policies, rl
from settings import changed

NUM_UPDATES = 8
NUM_ENVS, NUM_CHUNKS = 8, 4
ROWS = NUM_ENVS * NUM_CHUNKS
OFF_POLICY = {
    "capacity": ROWS,
    "minibatch_size": ROWS,
    "warmup_decisions": ROWS // 2,
    "warmup_rounds": 2,
    "updates_per_decision": 2 / ROWS,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", {"normalize_returns": True, "critic_warmup": 0}),
    "ppo, regularized": (
        "ppo",
        {"kl_coefficient": 0.1, "bc_coefficient": 0.5, "scored_steps": "one", "num_parts": 2},
    ),
    "fpo": ("fpo", {"critic_warmup": 0}),
    "grpo": ("grpo", {"group_size": 2}),
    "grpo, trajectories": ("grpo", {"group_size": 2, "level": "trajectory"}),
    "epo": ("epo", {"critic_warmup": 0, "evolve_every": 2, "num_members": 4}),
    "filtered_bc": ("filtered_bc", {}),
    "bc": ("bc", {"minibatch_size": 32}),
    "recap": ("recap", {"minibatch_size": 64, "value_minibatch_size": 32, "positive_share": 0.5}),
    "dsrl": ("dsrl", OFF_POLICY),
    "dsrl, sac": ("dsrl", {**OFF_POLICY, "variant": "sac"}),
    "wsrl": ("wsrl", {**OFF_POLICY, "cloning_coefficient": 0.5}),
    "dgn": ("dgn", {**OFF_POLICY, "minibatch_size": 2 * ROWS, "schedule": "success"}),
}
FAST = ("ppo", "bc", "dsrl")
"""The others are slow tests."""
Make = Callable[[str], tuple[Callable[[], rl.Algorithm], list[TensorDictBase]]]


@pytest.fixture
def new(small_preset: Callable, half_trained: Path) -> Make:
    """Return a maker of the algorithm of a case, and the rollouts of its first policy."""

    def make(case: str) -> tuple[Callable[[], rl.Algorithm], list[TensorDictBase]]:
        name, changes = CASES[case]
        defaults = {} if "minibatch_size" in changes else {"minibatch_size": ROWS}
        config = changed(small_preset(name), **defaults, **changes)

        def algorithm() -> rl.Algorithm:
            torch.manual_seed(0)
            return rl.make(config, policies.load(half_trained))

        env = envs.EnvConfig(id="mock/Reach", num_envs=NUM_ENVS, num_workers=0, max_episode_steps=7)
        torch.manual_seed(0)
        rollouts = rl.Rollouts(envs.make(env), algorithm(), NUM_CHUNKS, seed=0)
        return algorithm, [alike(rollouts.collect()) for _ in range(NUM_UPDATES)]

    return make


def learned(
    algorithm: Callable[[], rl.Algorithm], rollouts: list[TensorDictBase], epo: bool
) -> dict[str, Any]:
    learner = algorithm()
    same_draws(all_of_them=epo)
    return updates(learner, rollouts)


def largest(one: Any, other: Any) -> float:
    return max(
        (float((a.float() - b.float()).abs().max()) for a, b in zip(one, other, strict=True)),
        default=0.0,
    )


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow) for c in CASES],
)
def test_two_ranks_learn_as_one_process_with_the_union_batch(
    new: Make, case: str, tmp_path: Path
) -> None:
    algorithm, rollouts = new(case)
    work = partial(learned, algorithm, rollouts, case == "epo")
    (one,) = on_ranks(work, 1, tmp_path / "one")
    first, second = on_ranks(work, 2, tmp_path / "two")

    # gradients of the first steps, which must exist
    assert first["gradients"].keys() == one["gradients"].keys()
    assert one["gradients"]
    for name, gradients in one["gradients"].items():
        # also in relation to their size, because some are as small as 1e-3
        size = min(1.0, max(float(gradient.abs().max()) for gradient in gradients))
        assert largest(gradients, first["gradients"][name]) < 1e-6 * size, name

    # parameters, which have changed, and are equal bit for bit between the ranks
    assert first["drifted"] == []
    start = algorithm().actor.policy.state_dict()
    moved = [
        key for key, v in start.items() if not torch.equal(v, one["parameters"][f"policy.{key}"])
    ]
    assert moved
    for key, value in one["parameters"].items():
        assert torch.equal(first["parameters"][key], second["parameters"][key]), key
        assert largest([value], [first["parameters"][key]]) < 1e-5, key
