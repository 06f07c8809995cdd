"""The registry of algorithms: entries, variants and traits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pitune import rl
from pitune.rl.algorithms.fpo import plus_plus


def test_entries_are_sorted_and_described() -> None:
    entries = rl.registry.entries()
    assert [entry.name for entry in entries] == sorted(rl.presets())
    assert all(entry.description.endswith(".") for entry in entries)
    assert all(type(rl.preset(entry.name)) is entry.config for entry in entries)


def test_the_traits_of_the_built_in_algorithms() -> None:
    traits = ("off_policy", "whole_episodes", "reads_demonstrations", "unseen_demonstrations")
    held = {t: {e.name for e in rl.registry.entries() if getattr(e, t)} for t in traits}
    assert held == {
        "off_policy": {"dgn", "dsrl", "wsrl"},
        "whole_episodes": {"grpo", "recap", "es"},
        "reads_demonstrations": {"bc", "dgn", "recap"},
        "unseen_demonstrations": {"dgn"},
    }


def test_a_variant_changes_nested_settings_and_nothing_else() -> None:
    entry, default = rl.registry.entry("wsrl"), rl.WSRLConfig()
    changed = entry.variant("no_warmup")
    assert isinstance(changed, rl.WSRLConfig)
    assert default.learner.off_policy.warmup_decisions != 0
    off_policy = replace(default.learner.off_policy, warmup_decisions=0)
    assert changed == replace(default, learner=replace(default.learner, off_policy=off_policy))


def test_a_variant_may_be_a_function_and_starts_from_the_config_that_is_given() -> None:
    config = rl.FPOConfig(advantage=rl.AdvantageConfig(discount=0.5))
    assert rl.registry.entry("fpo").variant("plus_plus", config) == plus_plus(config)


def test_every_variant_can_be_made() -> None:
    for entry in rl.registry.entries():
        for word in entry.variants:
            assert isinstance(entry.variant(word), entry.config)


def test_an_unknown_variant_is_refused() -> None:
    message = "unknown variant 'x' in algorithm='dsrl:x'; valid after the colon: sac, noise_aliased"
    with pytest.raises(ValueError, match=message):
        rl.registry.entry("dsrl").variant("x")
