"""`next_steps`: the algorithm to compare with one."""

from __future__ import annotations

import pytest

from pitune.experiments.recipes import preset
from pitune.experiments.runs.next_steps import other_algorithm
from pitune.policies import FastLikelihoodConfig


@pytest.mark.parametrize(
    ("name", "other"), [("ppo", "filtered_bc"), ("filtered_bc", "ppo"), ("dsrl:sac", "filtered_bc")]
)
def test_the_other_algorithm_needs_successes_alone(name: str, other: str) -> None:
    assert other_algorithm(name) == other


@pytest.mark.parametrize("name", ["ppo:fast", "grpo:fast", "filtered_bc:fast"])
def test_the_other_algorithm_of_tokens_trains_tokens_without_further_settings(name: str) -> None:
    other = other_algorithm(name)
    assert other != name
    config = preset(other)
    assert isinstance(config.likelihood, FastLikelihoodConfig)  # type: ignore[attr-defined]
    assert not hasattr(config, "cloning")
