"""Gymnasium's interface of today for environments that were written for an older one.

Older ones return four results from `step`, the observation alone from `reset`, and take no seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.utils import seeding


class TodaysInterface(gymnasium.Wrapper):
    """An environment whose `reset` and `step` take and return Gymnasium's arguments of today.

    Example:
        >>> class Old(gymnasium.Env):
        ...     def reset(self):
        ...         return 0.0
        ...     def step(self, action):
        ...         return 1.0, 0.5, True, {"TimeLimit.truncated": True}
        >>> env = TodaysInterface(Old())
        >>> env.reset(seed=3), env.step(None)[2:4]
        ((0.0, {}), (False, True))

    Args:
        env: The environment, without wrappers of `gymnasium.make`.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._arguments = [name for name in ("seed", "options") if takes_argument(env.reset, name)]

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The spec of the environment: this wrapper is no part of it."""
        return self.env.spec

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, also where `reset` takes no seed or returns no info."""
        if seed is not None and "seed" not in self._arguments:
            self._seed(seed)
        given = {"seed": seed, "options": options}
        returned = self.env.reset(**{name: given[name] for name in self._arguments})  # type: ignore[arg-type]
        pair: Any = returned
        if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Mapping | None):
            return pair[0], dict(pair[1] or {})
        return returned, {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Take a step. The one flag of four results is split by `TimeLimit.truncated`."""
        returned: Any = self.env.step(action)
        if not isinstance(returned, tuple) or len(returned) != 4:
            return returned
        obs, reward, done, info = returned
        cut = isinstance(info, Mapping) and bool(info.get("TimeLimit.truncated", False))
        return obs, reward, bool(done) and not cut, bool(done) and cut, info

    def _seed(self, seed: int) -> None:
        """Seed an environment whose `reset` takes no seed."""
        method = getattr(self.env.unwrapped, "seed", None)
        if callable(method):
            method(seed)
        else:
            self.env.unwrapped.np_random = seeding.np_random(seed)[0]


def takes_argument(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function or a class takes a keyword argument, True if that is unknown.

    Example:
        >>> takes_argument(lambda size, **others: None, "render_mode")
        True
        >>> takes_argument(lambda size: None, "render_mode")
        False
    """
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return True
    kinds = {parameter.kind for parameter in parameters.values()}
    return name in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def make_with_interface(creator: Callable[..., Any], **kwargs: Any) -> Any:
    """Return an environment of a creator with the interface of today."""
    env = creator(**kwargs)
    # Gymnasium has a message for objects that are not its environments
    return TodaysInterface(env) if isinstance(env, gymnasium.Env) else env
