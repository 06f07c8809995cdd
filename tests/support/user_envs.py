"""Environments as users write them, one fault or habit each, as `gym/user_envs:<Name>-v0`.

The base is a point in the plane that must reach the origin. `make` returns one under the contract.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from pitune import envs

NUMBERS = spaces.Box(-10, 10, (4,), np.float32)


class Point(gymnasium.Env):
    """State (x, y, 0, time). A start is uniform in the square, success is near the origin."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space: spaces.Space = NUMBERS
        self.action_space: spaces.Space = spaces.Box(-1, 1, (2,), np.float32)
        self.point, self.time = np.zeros(2), 0

    def obs(self) -> Any:
        return np.array([*self.point, 0.0, self.time], np.float32)

    def draw(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.point, self.time = self.draw(), 0
        return self.obs(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.point = np.clip(self.point + 0.2 * np.ravel(action)[:2], -2, 2)
        self.time += 1
        solved = bool(np.linalg.norm(self.point) < 0.15)
        return self.obs(), float(solved), solved, False, {"success": solved}

    def render(self) -> Any:
        return np.full((16, 16, 3), 50, np.uint8)

    def expert_action(self) -> np.ndarray:
        return np.clip(-self.point / 0.2, -1, 1).astype(np.float32)


# Randomness


class NumpyStart(Point):
    def draw(self) -> np.ndarray:
        return np.random.uniform(-1, 1, 2)  # noqa: NPY002


class PythonStart(Point):
    def draw(self) -> np.ndarray:
        return np.array([random.uniform(-1, 1), random.gauss(0, 1)])


class TorchStart(Point):
    def draw(self) -> np.ndarray:
        return torch.rand(2).numpy().astype(float)


class NoisySensor(Point):
    """Draws at every step, also normal numbers, of which numpy keeps every second one."""

    def obs(self) -> Any:
        obs = super().obs()
        obs[2] = np.random.normal() + random.random() + torch.randn(()).item()  # noqa: NPY002
        return obs


class SeededWhenMade(Point):
    """Its own generator, seeded from the global one when it is made."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.generator = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002

    def draw(self) -> np.ndarray:
        return self.generator.uniform(-1, 1, 2)


class Unseeded(Point):
    generator = np.random.default_rng()

    def draw(self) -> np.ndarray:
        return self.generator.uniform(-1, 1, 2)


class Curriculum(Point):
    """The number of resets changes the start."""

    resets = 0

    def draw(self) -> np.ndarray:
        self.resets += 1
        return super().draw() * min(1, self.resets / 5)


class SharedCounter(Point):
    """All instances of a process share a counter, which is the first entry of the state."""

    counter = 0

    def draw(self) -> np.ndarray:
        type(self).counter += 1
        return np.array([type(self).counter / 10, 1.0])


# Global state of the process


class Meddler(Point):
    """Changes all that a process has once, in every method."""

    def meddle(self) -> None:
        import warnings

        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        warnings.simplefilter("error")
        np.seterr(all="raise")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.chdir("/")

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.meddle()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.meddle()
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, ...]:
        self.meddle()
        return super().step(action)

    def render(self) -> Any:
        self.meddle()
        return super().render()

    def close(self) -> None:
        self.meddle()


class RelativeFolder(Point):
    """Enters a folder when it is made and stays there, as if it were alone."""

    def __init__(self, folder: str, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        os.chdir(folder)

    def obs(self) -> Any:
        obs = super().obs()
        obs[2] = float(Path("here.txt").is_file())
        return obs


class Leaver(Point):
    """Leaves the process in a way and in a method that its arguments name."""

    def __init__(self, how: str, when: str, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.how, self.when, self.calls = how, when, 0
        self.leave("make")

    def leave(self, method: str) -> None:
        if method != self.when:
            return
        if self.how == "sys.exit":
            sys.exit(0)
        if self.how == "os._exit":
            os._exit(0)
        if self.how == "os.abort":
            os.abort()
        if self.how == "raise":
            raise RuntimeError("the gripper fell off")
        if self.how == "hang":
            time.sleep(600)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.calls += 1
        named = {2: "later reset", 3: "third reset"}.get(self.calls, "")
        self.leave("reset")
        self.leave(named)
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, ...]:
        if self.time == 3:
            self.leave("step")
        return super().step(action)

    def render(self) -> Any:
        self.leave("render")
        return super().render()

    def close(self) -> None:
        self.leave("close")


class Parent(Point):
    """Runs a process of its own, whose id is the third entry of the state."""

    def __init__(self, kind: str = "subprocess", render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        if kind == "subprocess":
            self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            self.pid = self.child.pid
        else:
            import multiprocessing

            context: Any = multiprocessing.get_context(kind)
            process = context.Process(target=time.sleep, args=(600,))
            process.start()
            self.pid = process.pid or 0

    def obs(self) -> Any:
        return np.array([*self.point, self.pid, self.time], np.float32)


# Starts and numbers


class BadStarts(Point):
    """Seeds below `share` of 2^31 have a start that raises, is not finite, or never comes."""

    def __init__(self, how: str, share: float = 0.25, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.how, self.share = how, share

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        obs, info = super().reset(seed=seed)
        if seed is not None and 100 < seed < self.share * 2**31:
            if self.how == "raise":
                raise RuntimeError("cannot place the objects")
            if self.how == "exit":
                sys.exit(1)
            obs[0] = np.nan if self.how == "nan" else np.inf
        return obs, info


class BadNumber(Point):
    """The fourth step of an episode returns an unusable reward or state."""

    def __init__(self, reward: Any = 0.0, state: float = 0.0, **_: Any) -> None:
        super().__init__()
        self.reward, self.state = reward, state

    def step(self, action: Any) -> tuple[Any, ...]:
        obs, reward, *rest = super().step(action)
        if self.time == 4:
            obs[2], reward = self.state, self.reward
        return obs, reward, *rest


class Shaped(Point):
    """Its own reward is the negative distance, and success does not end an episode."""

    def step(self, action: Any) -> tuple[Any, ...]:
        obs, *_, info = super().step(action)
        return obs, -float(np.linalg.norm(self.point)) - 0.01, False, False, info


class NoRate(Point):
    metadata = {"render_modes": [], "render_fps": 0}  # noqa: RUF012


# Interfaces


class Arrays(Point):
    """Rewards and flags of shape (1,)."""

    def step(self, action: Any) -> tuple[Any, ...]:
        obs, *values, info = super().step(action)
        return obs, *(np.array([value]) for value in values), info


class FourResults(Point):
    def step(self, action: Any) -> tuple[Any, ...]:
        obs, reward, terminated, _, info = super().step(action)
        cut = self.time >= 5 and not terminated
        return obs, reward, terminated or cut, {**info, "TimeLimit.truncated": cut}


class ObsOnly(Point):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class NoSeed(Point):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class SeedMethod(Point):
    def seed(self, number: int) -> None:
        self.generator = np.random.default_rng(number)

    def draw(self) -> np.ndarray:
        return self.generator.uniform(-1, 1, 2)

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NoInfo(Point):
    def step(self, action: Any) -> tuple[Any, ...]:
        return *super().step(action)[:4], None


class NoRenderMode(Point):
    def __init__(self) -> None:
        super().__init__()


class Words(Point):
    """Gives its instruction in one of the usual places."""

    language_instruction: Any = None

    def __init__(self, place: str = "info", size: int = 1, key: str = "instruction", **kwargs: Any):
        super().__init__(kwargs.get("render_mode"))
        self.place, self.key = place, key
        self.table = [f"go to place {number}" for number in range(size)]
        if place == "text":
            self.observation_space = spaces.Dict({"state": NUMBERS, key: spaces.Text(40)})
        if place == "flat text":
            self.observation_space = spaces.Dict({"arm": NUMBERS, key: spaces.Text(40)})

    def obs(self) -> Any:
        obs = super().obs()
        if self.place == "text":
            return {"state": obs, self.key: self.words}
        return {"arm": obs, self.key: self.words} if self.place == "flat text" else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        gymnasium.Env.reset(self, seed=seed)
        number = int(self.np_random.integers(len(self.table)))
        self.words = self.table[number]
        self.point, self.time = np.array([number / 100, 1.0]), 0
        if self.place == "attribute":
            self.language_instruction = self.words
        return self.obs(), {self.key: self.words} if self.place == "info" else {}


class AnyArguments(Point):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(kwargs.get("render_mode"))


class Seen(Point):
    """Observes what a test wants. `make_seen` makes one."""

    def __init__(self, space: spaces.Space, value: Any, later: Any = ...) -> None:
        super().__init__()
        self.observation_space, self.value, self.later = space, value, later

    def obs(self) -> Any:
        return self.value if self.later is ... or self.time == 0 else self.later


for _name, _class in list(globals().items()):
    if isinstance(_class, type) and issubclass(_class, Point) and _class is not Seen:
        gymnasium.register(f"{_name}-v0", f"user_envs:{_name}", max_episode_steps=12)


def make(name: str, num_envs: int = 4, num_workers: int = 0, **settings: Any) -> envs.CheckedEnv:
    """Return `gym/user_envs:<name>-v0`; `kwargs` among the settings are the environment's."""
    options = envs.GymOptions(
        kwargs=settings.pop("kwargs", {}), instructions=settings.pop("instructions", ())
    )
    return envs.make(
        envs.EnvConfig(
            id=f"gym/user_envs:{name}-v0",
            num_envs=num_envs,
            num_workers=num_workers,
            options=options,
            **settings,
        )
    )


def play(env: envs.CheckedEnv, num_steps: int, seed: int = 0) -> tuple[list[list], int, int]:
    """Play zero actions, and return all states, the episodes that ended and the invalid ones."""
    num_envs = env.spec.num_envs
    seeds, everyone = envs.EpisodeSeeds(num_envs, seed, "train"), torch.arange(num_envs)
    states = [env.reset(seeds.next(everyone), everyone)["state"].tolist()]
    ended = invalid = 0
    for _ in range(num_steps):
        result = env.step(torch.zeros(num_envs, env.spec.action_dim), everyone >= 0)
        states.append(result.obs["state"].tolist())
        over = (result.terminated | result.truncated).nonzero().flatten()
        ended, invalid = ended + len(over), invalid + int(result.info["invalid"].sum())
        if len(over):
            states.append(env.reset(seeds.next(over), over)["state"].tolist())
    return states, ended, invalid


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
