"""The exchange of instructions: no task keeps its words, and the policy reads the others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pitune import envs, rl
from pitune.policies import Actor
from pitune.rl.evaluation.instructions import shuffled_instructions
from vision_policies import ENV, vision_policy


@pytest.mark.parametrize(
    "tasks",
    [("a", "b"), ("a", "b", "c"), tuple("abcdefghij"), ("a", "a", "b", "b"), tuple("aaabcd")],
)
@pytest.mark.parametrize("seed", range(20))
def test_no_task_keeps_its_words_and_none_is_lost(tasks: tuple[str, ...], seed: int) -> None:
    given = shuffled_instructions(tasks, seed)
    assert sorted(given) == sorted(tasks)
    assert all(mine != other for mine, other in zip(tasks, given, strict=True))
    assert given == shuffled_instructions(tasks, seed)


def test_seeds_choose_different_exchanges() -> None:
    assert len({shuffled_instructions(tuple("abcdefgh"), seed) for seed in range(20)}) > 10


@pytest.mark.parametrize("tasks", [(), ("push",), ("push", "push")])
def test_one_task_is_refused(tasks: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no task has other words"):
        shuffled_instructions(tasks, 0)


def test_too_many_equal_words_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of the 5 tasks have the same words 'a'"):
        shuffled_instructions(("a", "a", "a", "b", "c"), 0)


def test_the_policy_reads_the_instructions_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = envs.make(ENV)
    policy = vision_policy()
    read: list[list[str]] = []
    tokenize = policy.preprocessor.tokens

    def record(tasks: list[str], *others: Any) -> Any:
        read.append(tasks)
        return tokenize(tasks, *others)

    monkeypatch.setattr(policy.preprocessor, "tokens", record)
    own = rl.evaluate(env, Actor(policy), 4)
    other = rl.evaluate(env, Actor(policy), 4, instructions=["stay"])
    assert read == [list(env.spec.tasks), ["stay"]]
    assert [row.seed for row in own.rows] == [row.seed for row in other.rows]


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (["stay", "go"], "must have one entry for each of the 1 tasks of mock/Reach"),
        (["stay"], "the policy has no prompt"),
    ],
)
def test_instructions_that_would_not_be_read_are_refused(
    instructions: list[str], message: str, tiny_policy: Callable
) -> None:
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2, num_workers=0))
    with pytest.raises(ValueError, match=message):
        rl.evaluate(env, Actor(tiny_policy()), 4, instructions=instructions)
