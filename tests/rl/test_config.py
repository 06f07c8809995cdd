"""Ranges of settings: each is checked where it is declared, and the defaults are as they were."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pitune import rl
from pitune.rl.policy_gradient.config import (
    AdvantageConfig,
    ClipConfig,
    CriticBasedConfig,
    PPOClipConfig,
    UpdateConfig,
)
from settings import changed

OUT_OF_RANGE: list[tuple[Any, str, float, str]] = [
    (UpdateConfig(), "num_epochs", 0, "at least 1"),
    (UpdateConfig(), "minibatch_size", 0, "at least 1"),
    (UpdateConfig(), "num_parts", 0, "at least 1"),
    (UpdateConfig(), "max_grad_norm", 0.0, "above 0"),
    (UpdateConfig(), "target_kl", -0.1, "above 0"),
    (AdvantageConfig(), "discount", 1.01, "above 0 and at most 1"),
    (AdvantageConfig(), "discount", math.nan, "above 0 and at most 1"),
    (AdvantageConfig(), "gae_lambda", -0.1, "at least 0 and at most 1"),
    (ClipConfig(), "low", 0.0, "above 0 and at most 1"),
    (ClipConfig(), "low", 1.5, "above 0 and at most 1"),
    (ClipConfig(), "high", 0.0, "above 0"),
    (PPOClipConfig(), "low", 2.0, "above 0 and at most 1"),
    (PPOClipConfig(), "value", 0.0, "above 0"),
    (CriticBasedConfig(), "actor_learning_rate", 0.0, "above 0"),
    (CriticBasedConfig(), "critic_learning_rate", -1e-3, "above 0"),
    (CriticBasedConfig(), "critic_warmup", -1, "at least 0"),
    (rl.PPOConfig(), "kl_coefficient", -1.0, "at least 0"),
    (rl.PPOConfig(), "actor_learning_rate", 0.0, "above 0"),
    (rl.PPOConfig(), "entropy_coefficient", -1.0, "at least 0"),
    (rl.PPOConfig(), "bc_coefficient", -1.0, "at least 0"),
    (rl.FPOConfig(), "log_ratio_clamp", 0.0, "above 0"),
    (rl.FPOConfig(), "critic_learning_rate", 0.0, "above 0"),
    (rl.GRPOConfig(), "learning_rate", 0.0, "above 0"),
    (rl.GRPOConfig(), "discount", 1.5, "above 0 and at most 1"),
    (rl.GRPOConfig(), "min_kept", -0.5, "at least 0"),
    (rl.EPOConfig(), "num_members", 0, "at least 1"),
    (rl.EPOConfig(), "log_ratio_cap", 0.0, "above 0"),
    (rl.EPOConfig(), "fitness_decay", 1.5, "at least 0 and at most 1"),
    (rl.EPOConfig(), "evolve_every", -1, "at least 0"),
    (rl.BCConfig(), "learning_rate", 0.0, "above 0"),
    (rl.BCConfig(), "gradient_steps", 0, "at least 1"),
    (rl.BCConfig(), "minibatch_size", 0, "at least 1"),
    (rl.BCConfig(), "final_fraction", 2.0, "at least 0 and at most 1"),
    (rl.BCConfig(), "ema_decay", 1.0, "at least 0 and below 1"),
    (rl.BCConfig(), "warmup_steps", -1, "at least 0"),
    (rl.OffPolicyConfig(), "discount", -0.1, "above 0 and at most 1"),
    (rl.OffPolicyConfig(), "minibatch_size", 0, "at least 1"),
    (rl.OffPolicyConfig(), "num_parts", 0, "at least 1"),
    (rl.OffPolicyConfig(), "capacity", 0, "at least 1"),
    (rl.OffPolicyConfig(), "warmup_rounds", -1, "at least 0"),
    (rl.OffPolicyConfig(), "critic_learning_rate", 0.0, "above 0"),
    (rl.OffPolicyConfig(), "target_update_rate", 1.1, "above 0 and at most 1"),
    (rl.ActorCriticConfig(), "actor_learning_rate", 0.0, "above 0"),
    (rl.ActorCriticConfig(), "cloning_coefficient", -1.0, "at least 0"),
    (rl.ActorCriticConfig(), "max_grad_norm", 0.0, "above 0"),
    (rl.DSRLConfig(), "temperature_learning_rate", 0.0, "above 0"),
    (rl.WSRLConfig(), "warmup_std", -0.1, "at least 0"),
    (rl.DGNConfig(), "noise_learning_rate", 0.0, "above 0"),
    (rl.DGNConfig(), "success_threshold", 1.5, "at least 0 and at most 1"),
    (rl.DGNConfig(), "exploration_std", -0.1, "at least 0"),
]


@pytest.mark.parametrize(("config", "name", "value", "valid"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(config: Any, name: str, value: float, valid: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value} must be {valid}$"):
        changed(config, **{name: value})


def test_the_ends_of_a_range_are_valid() -> None:
    assert changed(rl.PPOConfig(), discount=1.0, gae_lambda=0.0).advantage.discount == 1.0
    assert replace(rl.PPOConfig().clip, low=1.0).low == 1.0
    assert changed(rl.PPOConfig(), target_kl=math.inf, dual=math.inf).update.target_kl == math.inf
    assert rl.BCConfig(learning_rate=None).learning_rate is None


def test_blocks_keep_the_defaults_of_each_algorithm() -> None:
    """Discount, time limit and minibatch differ between algorithms though they share blocks."""
    ppo, off_policy = rl.PPOConfig(), rl.OffPolicyConfig()
    assert (ppo.advantage.discount, ppo.advantage.time_limit) == (0.99, "terminal")
    assert (off_policy.discount, off_policy.time_limit) == (0.99, "bootstrap")
    assert rl.GRPOConfig().discount == 1.0
    sizes = {name: config.policy_minibatch for name, config in rl.presets().items()}
    assert sizes == {
        "ppo": 512,
        "grpo": 512,
        "fpo": 512,
        "epo": 512,
        "es": 1,
        "recap": 512,
        "bc": 512,
        "filtered_bc": 512,
        "dsrl": 1,
        "wsrl": 128,
        "dgn": 128,
    }
