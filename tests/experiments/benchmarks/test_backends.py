"""The comparison of the tabletop's physics engines, with the C engine on both sides."""

from __future__ import annotations

import torch

from pitune.experiments.benchmarks.backends import C, errors, make, play, steps_per_second


def test_equal_engines_have_no_error_and_noise_makes_one() -> None:
    first, again, noisy = (play(make("PickCube", 3, C), noise) for noise in (0, 0, 1e-3))
    assert torch.equal(errors(first, again), torch.zeros(3))
    assert ((errors(first, noisy) > 1e-7) & (errors(first, noisy) < 1e-2)).all()
    assert first.success.all()


def test_errors_count_while_both_episodes_run() -> None:
    first, again = play(make("PickCube", 2, C)), play(make("PickCube", 2, C))
    ended = ~first.running[:, :, None]
    moved = torch.where(ended, first.states + 1.0, first.states)
    object.__setattr__(again, "states", moved)
    assert ended.any()
    assert torch.equal(errors(first, again), torch.zeros(2))
    object.__setattr__(again, "states", first.states + 1.0)
    torch.testing.assert_close(errors(first, again), torch.ones(2))


def test_speed_is_measured() -> None:
    assert steps_per_second(make("PickCube", 2, C, 10**6), 0.05) > 10
