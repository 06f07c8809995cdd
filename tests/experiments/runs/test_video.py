"""`video`: films show what is deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDictBase

from pitune import envs, rl
from pitune.experiments.runs.video import _frames, record_video
from pitune.policies import FlowSDEConfig, LikelihoodActor

CONFIG = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=6)


def test_a_film_shows_the_deployed_policy(tiny_policy: Callable) -> None:
    """For the plain actor its ODE; for one that steers its policy, what that does."""
    acted: list[torch.Tensor] = []

    class Seen(LikelihoodActor):
        def forward(self, td: TensorDictBase) -> TensorDictBase:
            td = super().forward(td)
            acted.append(td["action"])
            return td

    actor = Seen(tiny_policy(), FlowSDEConfig())
    obs = envs.make(CONFIG).reset(envs.EpisodeSeeds(4, 3, "test").next(torch.arange(4)))
    frames = _frames(envs.make(CONFIG), actor, seed=3)
    assert len(frames) == 7  # the start and six steps
    torch.manual_seed(3)
    expected = actor.policy.sample_actions(actor.policy.model_input(obs))
    assert torch.equal(acted[0], expected)


def test_a_film_of_a_population_is_its_best_member_s(tiny_policy: Callable) -> None:
    torch.manual_seed(0)
    algorithm = rl.EPO(rl.EPOConfig(), tiny_policy())
    torch.nn.init.normal_(algorithm.actor.population.to_policy)
    films = []
    for member in (0, 1):
        algorithm.actor.best = member
        films.append(_frames(envs.make(CONFIG), algorithm.actor, seed=0))
    assert any((a != b).any() for a, b in zip(*films, strict=False))


def test_a_film_is_written(tiny_policy: Callable, tmp_path: Path) -> None:
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert record_video(CONFIG, actor, tmp_path / "film.mp4", seed=0)
    assert (tmp_path / "film.mp4").stat().st_size > 100
