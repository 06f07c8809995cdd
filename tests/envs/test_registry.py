"""`registry`: environments by name, and adapters that are added to the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from pitune import envs
from pitune.envs import CheckedEnv, EnvConfig, EnvOptions, make, registry
from pitune.envs.mock.reach import Reach
from pitune.envs.tabletop.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class PlaneOptions(EnvOptions):
    """Options of a prefix that the tests register."""

    num_tasks: int = 1


def make_plane(name: str, config: EnvConfig) -> Reach:
    return Reach(config.num_envs, num_tasks=config.typed_options(PlaneOptions).num_tasks)


@pytest.fixture
def table() -> Iterator[None]:
    """Restore the table of adapters after the test."""
    before = dict(registry._ADAPTERS)
    yield
    registry._ADAPTERS.clear()
    registry._ADAPTERS.update(before)


@pytest.mark.parametrize(
    ("id", "nearest"),
    [
        ("mujco/PickCube", "mujoco/PickCube"),
        ("mani_skill/PickCube-v1", "maniskill/PickCube-v1"),
        ("mujco", "mujoco/..."),
        ("mock/Rech", "mock/Reach"),
        ("mock/script", "mock/Script"),
        ("mock/TwoGoal", "mock/TwoGoals"),
        ("mujoco/PickCub", "PickCube"),
        ("gym/Pendulun-v1", "Pendulum-v1"),
    ],
)
def test_a_misspelt_name_raises_with_the_nearest(id: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=re.escape(nearest)) as raised:
        make(EnvConfig(id=id, num_envs=1, num_workers=0))
    assert id.split("/")[-1] in str(raised.value)


@pytest.mark.parametrize("id", ["/", "mujoco", "mujoco/", "zzz/PickCube", "PickCube"])
def test_a_name_without_prefix_or_task_raises_with_the_prefixes(id: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown environment id='{id}'") as raised:
        make(EnvConfig(id=id, num_envs=1))
    for prefix in ("gym", "libero", "maniskill", "metaworld", "mock", "mujoco"):
        assert f"'{prefix}'" in str(raised.value)
    assert "mujoco/PickCube" in str(raised.value)


@pytest.mark.parametrize("num_envs", [0, -2])
def test_fewer_than_one_environment_is_refused(num_envs: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs={num_envs} must be at least 1"):
        make(EnvConfig(id="mock/Reach", num_envs=num_envs))


@pytest.mark.parametrize(
    ("id", "default"),
    [
        ("mock/Reach", 20),
        ("mock/Script", 5),
        ("mock/TwoGoals", 4),
        ("mujoco/PushCube", 60),
        ("gym/Pendulum-v1", 200),
    ],
)
def test_the_time_limit_is_the_tasks_own_by_default(id: str, default: int) -> None:
    reward: Literal["sparse", "dense"] = "dense" if id.startswith("gym/") else "sparse"
    for requested, expected in ((None, default), (3, 3)):
        config = EnvConfig(
            id=id, num_envs=2, num_workers=0, max_episode_steps=requested, reward=reward
        )
        env = make(config)
        assert isinstance(env, CheckedEnv)
        assert env.spec.max_episode_steps == expected
        assert (env.spec.id, env.spec.num_envs) == (id, 2)
        env.close()


def test_settings_reach_the_environment() -> None:
    config = EnvConfig(id="mock/Reach", num_envs=1, cameras=("a", "b"), image_size=8)
    spec = make(config).spec
    assert spec.cameras == {"a": (3, 8, 8), "b": (3, 8, 8)}


# Registration


def test_a_registered_prefix_is_made_with_its_options(table: None) -> None:
    envs.register("plane", make_plane, PlaneOptions, tasks=lambda: ["Reach"])
    assert envs.prefixes()["plane"] is PlaneOptions
    assert envs.known_tasks("plane") == ("Reach",)
    options = PlaneOptions(num_tasks=2)
    env = make(EnvConfig(id="plane/Reach", num_envs=2, options=options))
    assert isinstance(env, CheckedEnv)
    assert len(env.spec.tasks) == 2
    assert len(make(EnvConfig(id="plane/Reach", num_envs=2)).spec.tasks) == 1


def test_a_prefix_needs_neither_options_nor_a_list_of_tasks(table: None) -> None:
    envs.register("plane", lambda name, config: Reach(config.num_envs))
    assert envs.known_tasks("plane") == ()
    assert envs.config_for("plane/x").options == EnvOptions()
    assert make(EnvConfig(id="plane/a/b", num_envs=2)).spec.num_envs == 2


def test_the_factory_gets_the_part_of_the_id_after_the_first_slash(table: None) -> None:
    names = []

    def factory(name: str, config: EnvConfig) -> Reach:
        names.append((name, config.task, config.prefix))
        return Reach(config.num_envs)

    envs.register("plane", factory)
    make(EnvConfig(id="plane/package:a/b", num_envs=1))
    assert names == [("package:a/b", "package:a/b", "plane")]


@pytest.mark.parametrize("prefix", ["", "my env", "a/b", "a-b", "3d"])
def test_a_prefix_that_is_no_word_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=f"prefix='{prefix}' must be a word of letters, digits"):
        envs.register(prefix, make_plane)


def test_a_prefix_that_is_taken_is_refused() -> None:
    for prefix in envs.prefixes():
        with pytest.raises(ValueError, match=f"prefix='{prefix}' is already registered; choose an"):
            envs.register(prefix, make_plane)
    assert registry._ADAPTERS["mock"].factory is not make_plane


class NoDataclass(EnvOptions):
    """Would lose its fields silently."""

    num_tasks: int = 1


@dataclass(frozen=True, kw_only=True)
class WithoutDefault(EnvOptions):
    """Cannot be made without arguments."""

    num_tasks: int


@pytest.mark.parametrize("options", [dict, NoDataclass, PlaneOptions()])
def test_options_that_are_no_dataclass_of_the_base_are_refused(options: object) -> None:
    with pytest.raises(TypeError, match=r"of plane/ must be a dataclass that derives from pitune"):
        envs.register("plane", make_plane, options)  # type: ignore[arg-type]
    assert "plane" not in envs.prefixes()


def test_options_without_defaults_are_refused() -> None:
    message = r"options=WithoutDefault of plane/ cannot be made without arguments .*num_tasks.*give"
    with pytest.raises(ValueError, match=message):
        envs.register("plane", make_plane, WithoutDefault)
    assert "plane" not in envs.prefixes()


# Lists and configs


def test_the_built_in_prefixes_have_options_of_their_own() -> None:
    assert list(envs.prefixes()) == ["gym", "libero", "maniskill", "metaworld", "mock", "mujoco"]
    options = set(envs.prefixes().values())
    assert len(options) == 6
    assert EnvOptions not in options


def test_the_embedded_simulators_tasks_are_all_listed() -> None:
    assert envs.known_tasks("mujoco") == tuple(TASKS)


def test_the_listed_ids_of_gymnasium_are_registered() -> None:
    import gymnasium

    assert set(envs.known_tasks("gym")) <= set(gymnasium.registry)
    env = make(
        EnvConfig(id="gym/MountainCarContinuous-v0", num_envs=1, num_workers=0, reward="dense")
    )
    assert env.spec.action_dim == 1


def test_tasks_of_an_unknown_prefix_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown environment id='mok/...'; did you mean 'mock/"):
        envs.known_tasks("mok")


def test_a_config_for_an_environment_has_its_default_options() -> None:
    config = envs.config_for("maniskill/PickCube-v1", num_envs=3)
    assert config == EnvConfig(
        id="maniskill/PickCube-v1", num_envs=3, options=envs.ManiSkillOptions()
    )
    options = envs.ManiSkillOptions(backend="cpu")
    assert envs.config_for("maniskill/PickCube-v1", options=options).options is options
    with pytest.raises(ValueError, match="unknown environment id='mani/PickCube'"):
        envs.config_for("mani/PickCube")


def test_options_of_another_prefix_are_refused_by_name() -> None:
    options = envs.MetaWorldOptions()
    message = (
        r"options=MetaWorldOptions\(.*\) cannot be used with id='mock/Reach', which takes "
        r"MockOptions; make the config with envs.config_for\('mock/Reach'\)"
    )
    with pytest.raises(ValueError, match=message):
        make(EnvConfig(id="mock/Reach", options=options))
    with pytest.raises(ValueError, match=message):
        envs.config_for("mock/Reach", options=options)
