"""Instructions of environments: found in their usual places, in a table, and never empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pitune.envs.workers.observation import INSTRUCTION_KEYS
from pitune.envs.workers.tasks import TaskTable, as_words
from user_envs import make

PLACES = ["info", "text", "flat text", "attribute"]


@pytest.mark.parametrize("place", PLACES)
def test_one_instruction_is_found_in_any_usual_place(place: str) -> None:
    env = make("Words", kwargs={"place": place})
    assert env.spec.tasks == ("go to place 0",)
    assert env.reset(torch.arange(4))["task_id"].tolist() == [0] * 4
    assert env.spec.state_dim == 4


@pytest.mark.parametrize("key", INSTRUCTION_KEYS)
@pytest.mark.parametrize("place", ["info", "text"])
def test_an_instruction_has_any_usual_name(place: str, key: str) -> None:
    assert make("Words", kwargs={"place": place, "key": key}).spec.tasks == ("go to place 0",)


@pytest.mark.parametrize("key", INSTRUCTION_KEYS)
def test_an_instruction_among_the_keyword_arguments_counts(key: str) -> None:
    assert make("AnyArguments", kwargs={key: "open it"}).spec.tasks == ("open it",)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("place", PLACES)
def test_every_episode_has_the_task_of_its_words(place: str, num_workers: int) -> None:
    if num_workers and place != "info":
        pytest.skip("once with processes is enough")
    env = make("Words", num_workers=num_workers, kwargs={"place": place, "size": 7})
    assert env.spec.tasks == tuple(f"go to place {number}" for number in range(7))
    for first in range(0, 40, 4):
        obs = env.reset(torch.arange(first, first + 4))
        expected = (obs["state"][:, 0] * 100).round().long()
        assert torch.equal(obs["task_id"], expected)
        after = env.step(torch.zeros(4, 2), torch.tensor([True] * 4)).obs
        assert torch.equal(after["task_id"], expected)
    env.close()


def test_words_outside_the_table_are_refused_by_name() -> None:
    env = make("Words", instructions=("a", "go to place 0"), kwargs={"size": 3})
    assert env.spec.tasks == ("a", "go to place 0")
    message = r"the instruction 'go to place [12]', .* --env.options.instructions"
    with pytest.raises(ValueError, match=message):
        env.reset(torch.arange(4))


def test_chosen_words_replace_those_of_the_environment() -> None:
    env = make("Words", instruction="do it", kwargs={"size": 3})
    assert env.spec.tasks == ("do it",)
    assert env.reset(torch.arange(4))["task_id"].tolist() == [0] * 4
    assert make("Point", instruction="do it").spec.tasks == ("do it",)


def test_without_words_the_tasks_are_empty() -> None:
    assert make("Point").spec.tasks == ("",)
    with pytest.raises(ValueError, match=r"instructions=\('a', 'b'\) are 2, but .* 3 values"):
        TaskTable("gym/x", ("a", "b"), (), num_tasks=3)
    table = TaskTable("gym/x", ("a", "b", "c"), (), num_tasks=3)
    assert table.is_observed


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("open", "open"),
        (np.array(["open"]), "open"),
        (["open"], "open"),
        (b"open", "open"),
        (np.str_("open"), "open"),
        ("  ", None),
        (3, None),
        (None, None),
        (["open", "close"], None),
        ({"name": "open"}, None),
    ],
)
def test_only_a_text_is_an_instruction(value: object, words: str | None) -> None:
    assert as_words(value) == words
