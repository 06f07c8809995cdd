"""`DelayedChunkEnv`: the robot goes on executing the old chunk while the new one is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import envs
from pitune.envs import ChunkEnv, DelayedChunkEnv, EpisodeSeeds

E, h, R = 3, 3, 2


def constant(delay: int) -> Any:
    return lambda number, generator: torch.full((number,), delay)


def make(delay: int | None, steps: int = R, **settings: Any) -> ChunkEnv:
    """Return an environment of a delay, or one without any."""
    config = envs.EnvConfig(id="mock/Reach", num_envs=E, num_workers=0, max_episode_steps=7)
    env, seeds = envs.make(config), EpisodeSeeds(E, seed=0, split="train")
    if delay is None:
        return ChunkEnv(env, h, seeds, **settings)
    return DelayedChunkEnv(
        env, h, seeds, remainder_steps=steps, draw_delay=constant(delay), **settings
    )


def plan(number: int, steps: int) -> Tensor:
    """Return a plan (E, steps, 2) of a decision, whose entries differ."""
    return 0.01 * torch.arange(E * steps * 2).reshape(E, steps, 2) - 0.1 * number


def play(env: ChunkEnv, steps: int, num: int = 4) -> list[TensorDictBase]:
    """Return the observations and outcomes of decisions with the plans above."""
    td, rows = env.reset(), []
    for number in range(num):
        td, following = env.step_and_maybe_reset(td.set("action", plan(number, steps)))
        rows.append(td)
        td = following
    return rows


def executed_actions(env: ChunkEnv, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Record the actions (E, 2) of all steps."""
    actions: list[Tensor] = []
    original = env.env.step

    def step(action: Tensor, active: Tensor, *rest: Any, **named: Any) -> Any:
        actions.append(action.clone())
        return original(action, active, *rest, **named)

    monkeypatch.setattr(env.env, "step", step)
    return actions


def test_without_a_delay_it_is_the_plain_environment_bit_for_bit() -> None:
    plain, late = play(make(None), h), play(make(0, steps=0), h)
    for expected, row in zip(plain, late, strict=True):
        names = set(expected.keys(True, True))
        added = {"remainder", "delay"}
        assert set(row.keys(True, True)) - names == {
            *added,
            *(("next", name) for name in added),
        }
        for name in names:
            assert torch.equal(expected[name], row[name]), name


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_the_robot_executes_the_old_chunk_until_the_new_one_arrives(
    delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(delay)
    actions = executed_actions(env, monkeypatch)
    first, second = play(env, h + R, num=2)
    old, new = plan(0, h + R), plan(1, h + R)
    assert torch.equal(torch.stack(actions[:h], 1), old[:, :h])  # the first chunk is awaited
    expected = torch.cat([old[:, h : h + delay], new[:, delay:h]], dim=1)
    assert torch.equal(torch.stack(actions[h : 2 * h], 1), expected)

    # the observation holds the old chunk's rest
    assert first["delay"].tolist() == [-1] * E
    assert not first["remainder"].any()
    assert second["delay"].tolist() == [delay] * E
    assert torch.equal(second["remainder"], old[:, h:])
    assert torch.equal(second["next", "remainder"], new[:, h:])


def test_a_new_episode_begins_without_an_old_chunk() -> None:
    rows = play(make(2), h + R, num=6)
    ends = torch.stack([row["next", "done"].flatten() for row in rows], 1)  # (E, 6)
    delays = torch.stack([row["delay"] for row in rows], 1)
    begins = torch.cat([torch.ones(E, 1, dtype=torch.bool), ends[:, :-1]], dim=1)
    assert begins[:, 1:].any()
    assert torch.equal(delays == -1, begins)
    for number, row in enumerate(rows):
        assert not row["remainder"][begins[:, number]].any()
        has_rest = row["remainder"].flatten(1).abs().sum(1) > 0  # type: ignore[union-attr]
        assert (begins[:, number] | has_rest).all()


def test_preprocessing_gets_the_old_chunk_of_every_decision() -> None:
    def preprocess(td: TensorDictBase) -> TensorDictBase:
        return td.set("double", 2 * td["remainder"])

    rows = play(make(1, preprocess=preprocess), h + R)
    for row in rows:
        assert torch.equal(row["double"], 2 * row["remainder"])
        assert torch.equal(row["next", "double"], 2 * row["next", "remainder"])


def test_drawn_delays_differ_between_rollouts_and_repeat_with_the_seed() -> None:
    def delays(episode: int) -> list[list[int]]:
        config = envs.EnvConfig(id="mock/Reach", num_envs=E, num_workers=0)
        seeds = EpisodeSeeds(E, seed=0, split="train")
        seeds.episodes += episode

        def draw(number: int, generator: torch.Generator) -> Tensor:
            return torch.randint(0, R + 1, (number,), generator=generator)

        env = DelayedChunkEnv(envs.make(config), h, seeds, remainder_steps=R, draw_delay=draw)
        return [row["next", "delay"].tolist() for row in play(env, h + R, num=8)]

    first = delays(0)
    assert first == delays(0) != delays(1_000_000)
    assert {value for row in first for value in row} >= {0, 1, 2}
    assert any(len(set(row)) > 1 for row in first)  # a draw for each environment


def test_a_plan_without_the_actions_of_the_next_delay_is_refused() -> None:
    env = make(2)
    td = env.reset().set("action", plan(0, h))
    with pytest.raises(ValueError, match=r"must be \(3, 5, 2\): environments, execution_horizon"):
        env.step(td)


def test_the_specs_match_the_entries() -> None:
    env = make(1)
    td = env.rollout(3)
    assert td["action"].shape == (E, 3, h + R, 2)
    assert env.observation_spec["remainder"].shape == (E, R, 2)
    row: TensorDict = env.reset()
    for name in ("remainder", "delay"):
        assert env.observation_spec[name].is_in(row[name])
