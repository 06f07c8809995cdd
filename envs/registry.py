"""Environments by name: the prefix before the slash selects the adapter.

An adapter is a factory `(name, config) -> VectorEnv` in a table that code outside this repository
can extend with `register`. A factory imports its simulator when it is called, so a simulator that
is not used is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass, replace
from difflib import get_close_matches
from math import isclose
from typing import Any

from pitune.envs.checked import CheckedEnv
from pitune.envs.config import EnvConfig, EnvOptions
from pitune.envs.success import check_rule
from pitune.envs.suite.env import make_suite
from pitune.envs.suite.members import Suites, members_of
from pitune.envs.vector_env import EnvSpec, VectorEnv

EnvFactory = Callable[[str, EnvConfig], VectorEnv]
"""Makes the environment `name` of one prefix. `config.options` is of the registered class."""
SuiteFactory = Callable[[tuple[str, ...], EnvConfig], VectorEnv]
"""Makes the suite of these members (names of one prefix). `config.id` is the suite's."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One row of the table.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> adapter = Adapter(
        ...     factory=lambda name, config: Reach(config.num_envs),
        ...     options=EnvOptions,
        ...     tasks=lambda: ("Reach",),
        ... )
        >>> adapter.factory("Reach", EnvConfig(num_envs=2)).spec.num_envs
        2
    """

    factory: EnvFactory
    """Makes an environment."""
    options: type[EnvOptions]
    """Class of the adapter's options."""
    tasks: Callable[[], Iterable[str]]
    """Lists known names without the prefix."""
    suites: Callable[[], Suites] = dict
    """Lists the named suites with their members."""
    suite_factory: SuiteFactory | None = None
    """Makes a suite, or None for one that consists of an environment of each member."""


SPARSE_REWARD = "1 on success"
"""Definition of the reward `sparse`."""
SPARSE_PREFIXES = ("gym", "libero", "maniskill", "metaworld", "mock", "mujoco")
"""Adapters whose reward `sparse` is defined so. Other environments have a reward of their own."""
OTHER_OPTIONS = (
    "backend",
    "held_tasks",
    "camera",
    "device",
    "exact_seeds",
    "gpu",
    "num_threads",
    "obs_mode",
    "render_size",
    "shadows",
)
"""Options of adapters that have no influence on rewards."""

_ADAPTERS: dict[str, Adapter] = {}


def register(
    prefix: str,
    factory: EnvFactory,
    options: type[EnvOptions] = EnvOptions,
    *,
    tasks: Callable[[], Iterable[str]] = tuple,
    suites: Callable[[], Suites] = dict,
    suite_factory: SuiteFactory | None = None,
) -> None:
    """Add an adapter, so that `make` accepts `<prefix>/<name>` and `<prefix>/[<name>,<name>]`.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> register("plane", lambda name, config: Reach(config.num_envs))  # doctest: +SKIP
        >>> env = make(config_for("plane/Reach", num_envs=2))  # doctest: +SKIP

    Args:
        prefix: A word that no other adapter has.
        factory: Makes the environment. Imports its simulator when it is called.
        options: Frozen, keyword-only dataclass of the adapter's options, all with defaults.
        tasks: Lists the names for `known_tasks`, if possible without the simulator.
        suites: Lists the named suites with their members.
        suite_factory: Makes a suite. By default an environment of each member is made.

    Raises:
        ValueError: the prefix is taken or is no word, or the options have no defaults.
        TypeError: the options are no dataclass derived from `EnvOptions`.
    """
    if not prefix.isidentifier():
        raise ValueError(
            f"prefix={prefix!r} must be a word of letters, digits and underscores; "
            "the slash and the task follow it in an environment's id"
        )
    if prefix in _ADAPTERS:
        raise ValueError(f"prefix={prefix!r} is already registered; choose another word")
    if not (isinstance(options, type) and issubclass(options, EnvOptions) and _is_plain(options)):
        raise TypeError(
            f"options={options!r} of {prefix}/ must be a dataclass that derives from "
            "pitune.envs.EnvOptions; decorate it with @dataclass(frozen=True, kw_only=True)"
        )
    try:
        options()
    except TypeError as error:
        raise ValueError(
            f"options={options.__name__} of {prefix}/ cannot be made without arguments ({error}); "
            "give every field a default"
        ) from error
    _ADAPTERS[prefix] = Adapter(
        factory=factory, options=options, tasks=tasks, suites=suites, suite_factory=suite_factory
    )


def prefixes() -> dict[str, type[EnvOptions]]:
    """Return the registered prefixes in alphabetical order, each with the class of its options.

    Example:
        >>> prefixes()["maniskill"].__name__
        'ManiSkillOptions'
    """
    return {prefix: _ADAPTERS[prefix].options for prefix in sorted(_ADAPTERS)}


def known_tasks(prefix: str) -> tuple[str, ...]:
    """Return the names that are listed for a prefix, or nothing where none are listed.

    The adapter may accept other names too.

    Example:
        >>> known_tasks("mock")
        ('Reach', 'Recall', 'Script', 'TwoGoals')

    Raises:
        ValueError: the prefix is unknown.
    """
    return tuple(_adapter(f"{prefix}/...").tasks())


def known_suites(prefix: str) -> Suites:
    """Return the named suites of a prefix with their members.

    Example:
        >>> known_suites("metaworld")["MT10"][:2]
        ('reach-v3', 'push-v3')

    Raises:
        ValueError: the prefix is unknown.
    """
    return _adapter(f"{prefix}/...").suites()


def config_for(env_id: str, **changes: Any) -> EnvConfig:
    """Return the config of an environment with the default options of its adapter.

    Example:
        >>> config_for("maniskill/PickCube-v1", num_envs=8).options.control_mode
        'pd_ee_delta_pos'

    Args:
        env_id: Prefix, slash and name.
        changes: Fields of `EnvConfig` other than `id`.

    Raises:
        ValueError: the prefix is unknown, or `options` belong to another adapter.
    """
    config = EnvConfig(id=env_id, **changes)
    return replace(config, options=config.typed_options(_adapter(env_id).options))


def make(config: EnvConfig) -> CheckedEnv:
    """Make an environment.

    Example:
        >>> make(EnvConfig(id="mock/Reach", num_envs=4)).spec.state_dim
        4

    Raises:
        ValueError: the prefix or the task is unknown (the message suggests the nearest name), or
            the environment cannot honor a setting.
        ImportError: the simulator is not installed. The message contains the command to install it.
    """
    if config.num_envs < 1:
        raise ValueError(f"num_envs={config.num_envs} must be at least 1")
    if config.ray_address is not None and config.workers_on != "ray":
        raise ValueError(
            f"ray_address={config.ray_address!r} is used with workers_on='ray' only, and "
            f"workers_on={config.workers_on!r}; pass --env.workers-on ray or --env.ray-address None"
        )
    adapter = _adapter(config.id)
    config = replace(config, options=config.typed_options(adapter.options))
    check_rule(config.success)
    members = members_of(config.id, adapter.suites())
    if members is None:
        _check_suite_name(config, adapter)
        env = adapter.factory(config.task, config)
    elif adapter.suite_factory is not None:
        env = adapter.suite_factory(members, config)
    else:
        env = make_suite(adapter.factory, members, config)
    env = _with_settings(env, config)
    return CheckedEnv(env, config.success, _reward_of(config, env.spec))


def _check_suite_name(config: EnvConfig, adapter: Adapter) -> None:
    """Raise ValueError for a name that is nearly that of a suite and no task's."""
    suites = adapter.suites()
    near = get_close_matches(config.task, suites, n=2, cutoff=0.75)
    if near and config.task not in adapter.tasks():
        names = [f"{config.prefix}/{name}" for name in near]
        raise ValueError(f"unknown suite id={config.id!r}; did you mean {' or '.join(names)}?")


def _reward_of(config: EnvConfig, spec: EnvSpec) -> str:
    """Return the definition of an environment's reward, equal for equal rewards."""
    if spec.reward:
        return spec.reward
    if config.reward == "sparse" and config.prefix in SPARSE_PREFIXES:
        return SPARSE_REWARD
    options = {key: value for key, value in vars(config.options).items() if value}
    given = {key: value for key, value in options.items() if key not in OTHER_OPTIONS}
    return f"{config.reward} reward of {config.id}, {spec.max_episode_steps} steps, {given}"


def _with_settings(env: VectorEnv, config: EnvConfig) -> VectorEnv:
    """Return an environment with the settings that are the same for all adapters.

    Raises:
        ValueError: it cannot honor one of them.
    """
    spec = env.spec
    if config.workers_on != "processes" and not hasattr(env, "announce"):
        env.close()
        raise ValueError(
            f"workers_on={config.workers_on!r} is not supported by {config.id}, which is not made "
            "of single CPU simulators in workers; leave it out"
        )
    if config.control_hz is not None and not isclose(config.control_hz, spec.control_hz):
        env.close()
        raise ValueError(
            f"control_hz={config.control_hz:g} is not supported by {config.id}, which takes "
            f"{spec.control_hz:g} control steps per second; leave it out"
        )
    if config.instruction is not None and spec.tasks != (config.instruction,):
        if len(spec.tasks) > 1:
            env.close()
            raise ValueError(
                f"instruction={config.instruction!r} cannot replace the {len(spec.tasks)} "
                f"instructions of {config.id}, {list(spec.tasks)[:5]}; leave it out"
            )
        env.spec = replace(spec, tasks=(config.instruction,))
    return env


def _adapter(env_id: str) -> Adapter:
    """Return the adapter of an id."""
    prefix, _, name = env_id.partition("/")
    if prefix in _ADAPTERS and name:
        return _ADAPTERS[prefix]
    nearest = get_close_matches(prefix, _ADAPTERS, n=1)
    hint = f"; did you mean {nearest[0] + '/' + (name or '...')!r}?" if nearest else ";"
    raise ValueError(
        f"unknown environment id={env_id!r}{hint} valid: a prefix of {sorted(_ADAPTERS)}, "
        "a slash and a task, e.g. 'mujoco/PickCube'; import the module that registers another one"
    )


def _is_plain(options: type[EnvOptions]) -> bool:
    """Return whether a class was itself decorated as a dataclass, and did not inherit this."""
    return is_dataclass(options) and "__dataclass_fields__" in vars(options)
