"""The result of an evaluation as JSON values."""

from __future__ import annotations

from dataclasses import replace

from pitune import envs
from pitune.experiments.evaluation.record import _environment


def test_the_split_of_fixed_starts_is_that_which_was_played() -> None:
    spec = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=1, num_workers=0)).spec
    assert _environment(spec)["starts"] is None
    split = _environment(replace(spec, num_starts=50))["starts"]
    assert sum(map(len, split.values())) == 50
    shared = _environment(replace(spec, num_starts=50, shared_starts=True))["starts"]
    assert shared == {
        key: list(starts) for key, starts in envs.start_split(50, shared=True).items()
    }
    assert shared != split
