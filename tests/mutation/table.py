"""All mutants, and those that no test can kill."""

from __future__ import annotations

from tests.mutation.experience import EXPERIENCE
from tests.mutation.mutant import Mutant, mutants
from tests.mutation.off_policy import OFF_POLICY
from tests.mutation.policies import POLICIES
from tests.mutation.policy_gradient import POLICY_GRADIENT

MUTANTS: list[Mutant] = mutants(*POLICIES, *POLICY_GRADIENT, *OFF_POLICY, *EXPERIENCE)

SURVIVORS = {
    "rl/actor_critic/td.py: gradient to the next value": (
        "equivalent: `gradient_step` computes gradients of the optimizer's parameters only"
    ),
    "rl/algorithms/dsrl.py: gradient to the temperature": (
        "equivalent: `gradient_step` computes gradients of the optimizer's parameters only"
    ),
    "rl/experience/transitions.py: rows of a pass": "memory and speed only",
}
"""Why a mutant survives, by its name."""

SLOW_TESTS = (
    "test_a_sign_that_is_turned_shows_in_the_mean_and_not_in_the_second_moment",
    "test_a_memory_that_keeps_everything_is_seen",
    "test_with_zero_mean_the_second_moment_is_recovered",
    "test_the_frozen_policy_is_bit_identical_after_a_thousand_rounds",
    "test_cloning_the_reference_brings_a_policy_back",
    "test_memory_does_not_grow_over_many_pushes",
    "test_a_large_coefficient_keeps_the_policy_in_place",
    "test_a_sampler_that_ignores_the_noise_cannot_be_steered",
    "test_a_policy_that_does_as_demonstrated_is_left_alone",
    "test_the_exact_likelihood_stands_behind_get_dist",
    "test_flow_sdes_marginal_is_the_exact_likelihood_of_the_ode",
    "test_an_anchor_bounds_how_far_the_policy_follows_the_critics",
    "test_with_a_mean_covariance_and_bias_are_recovered",
    "test_with_the_identity_as_flow_noise_and_actions_have_equal_values",
    "test_dropout_keeps_the_covariance_right_where_nothing_was_demonstrated",
)
"""Tests that take seconds and are left out, so that a run takes minutes."""
