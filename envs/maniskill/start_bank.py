"""The start states of ManiSkill's episodes by seed, so that one reset starts many environments.

ManiSkill draws all starts of a reset from its first seed, and each reset builds random numbers for
all environments. So exact seeds would take one slow reset per environment. Instead, a simulation of
one environment on the CPU makes the start of each seed once, and the batch is set to these states.

A start consists of the states of all bodies, and of the task's own tensors with a row per
environment, such as a goal. Where this is not the whole start, `is_restorable` is False: for
example, the task draws the shapes of its objects, and a shape is no state.

Letters: E envs, N rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pitune.envs.workers.launch import fork_server

CAPACITY = 100_000
"""Starts that a bank keeps, of about 1 kB each. Beyond it the oldest ones are dropped."""
TOLERANCE = 1e-6
"""Largest difference of the observation of a restored start [simulator's units]. Starts are
restored up to the rounding of float32, mostly exactly."""
NUM_VERIFIED = 8
"""Starts that verify whether a task's starts are states."""

Start: TypeAlias = dict[str, Tensor]
"""Name -> state (1, ...). Names are `actors/<name>`, `articulations/<name>` and `own/<name>`."""


class StartBank:
    """Starts by seed, each made once.

    Example:
        >>> bank = StartBank(lambda seeds: [{"own/goal": torch.tensor([[s]])} for s in seeds])
        >>> bank.rows([4, 9, 4])["own/goal"].tolist()
        [[4], [9], [4]]
        >>> bank.num_made
        2

    Args:
        make: Returns the starts of distinct seeds.
        close: Ends the processes that make them, if there are any.
    """

    def __init__(
        self, make: Callable[[list[int]], list[Start]], close: Callable[[], None] | None = None
    ) -> None:
        self._make, self._close = make, close
        self._starts = OrderedDict[int, Start]()
        self.num_made = 0
        """Starts that were made so far."""

    def rows(self, seeds: list[int]) -> Start:
        """Return the starts of N seeds as one, with tensors (N, ...) on the CPU."""
        missing = [seed for seed in dict.fromkeys(seeds) if seed not in self._starts]
        made = dict(zip(missing, self._make(missing), strict=True)) if missing else {}
        self._starts |= made
        self.num_made += len(made)
        starts = [self._starts[seed] for seed in seeds]
        while len(self._starts) > CAPACITY:
            self._starts.popitem(last=False)
        return {name: torch.cat([start[name] for start in starts]) for name in starts[0]}

    def close(self) -> None:
        """End the processes that make starts."""
        if self._close is not None:
            self._close()


def take_start(simulation: Any) -> Start:
    """Return the start of a simulation of one environment that was just reset."""
    start: Start = {}
    for kind, bodies in simulation.get_state_dict().items():
        if kind in ("actors", "articulations"):  # the controllers are reset in any case
            start |= {f"{kind}/{name}": state.clone().cpu() for name, state in bodies.items()}
    own = _own_tensors(simulation)
    return start | {f"own/{name}": value.clone().cpu() for name, value in own}


def restore(simulation: Any, rows: Tensor, start: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Set environments to starts by one reset, and return ManiSkill's observation and info.

    Args:
        simulation: ManiSkill's environment, of E environments.
        rows: Environments to reset (N,) int64, ascending: ManiSkill assigns states in this order.
        start: Their starts (N, ...).
    """
    states: dict[str, dict[str, Tensor]] = {}
    own = dict(_own_tensors(simulation))
    for key, value in start.items():
        kind, _, name = key.partition("/")
        value = value.to(rows.device)
        if kind != "own":
            states.setdefault(kind, {})[name] = value
        elif name in own and own[name].shape[1:] == value.shape[1:]:
            setattr(simulation, name, own[name].index_copy(0, rows, value.to(own[name].dtype)))
    options = {"env_idx": rows, "reset_to_env_states": {"env_states": states}}
    raw, info = simulation.reset(seed=None, options=options)
    return raw, info


def is_restorable(simulation: Any) -> bool:
    """Return whether a simulation of one environment on the CPU can be set to a start.

    It is verified with the observations of a few starts, each restored in another episode that has
    moved.
    """
    row, action = torch.tensor([0]), torch.tensor(simulation.single_action_space.high)[None]
    for seed in range(NUM_VERIFIED):
        expected = simulation.reset(seed=[seed])[0].clone()
        start = take_start(simulation)
        simulation.reset(seed=[seed + NUM_VERIFIED])
        for _ in range(3):
            simulation.step(action)
        restored = restore(simulation, row, start)[0]
        if not torch.allclose(restored, expected, atol=TOLERANCE, rtol=0):
            return False
    return True


def make_starts(simulation: Any, seeds: list[int]) -> list[Start]:
    """Return the starts of seeds, made by a simulation of one environment on the CPU."""
    starts = []
    for seed in seeds:
        simulation.reset(seed=[seed])
        starts.append(take_start(simulation))
    return starts


class StartProcesses:
    """Processes with one simulation on the CPU each, which make the starts of a bank.

    They are processes because a simulation on the CPU and one on a GPU do not get along in one.

    Example:
        >>> processes = StartProcesses(build, num_workers=2)  # doctest: +SKIP
        >>> processes.is_restorable()  # doctest: +SKIP
        True
        >>> bank = StartBank(processes.make, processes.close)  # doctest: +SKIP

    Args:
        build: Makes a simulation of one environment on the CPU that observes the full state. It is
            pickled.
        num_workers: Number of processes.
    """

    def __init__(self, build: Callable[[], Any], num_workers: int) -> None:
        self._num_workers = num_workers
        self._pool = ProcessPoolExecutor(
            num_workers, mp_context=fork_server(), initializer=_open, initargs=(build,)
        )

    def is_restorable(self) -> bool:
        """Return whether the task's starts are states, see `is_restorable`."""
        return self._pool.submit(_is_restorable).result()

    def make(self, seeds: list[int]) -> list[Start]:
        """Return the starts of seeds."""
        parts = [seeds[index :: self._num_workers] for index in range(self._num_workers)]
        made: dict[int, Start] = {}
        for part, starts in zip(parts, self._pool.map(_make, parts), strict=True):
            made |= dict(zip(part, starts, strict=True))
        return [made[seed] for seed in seeds]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


_simulation: Any = None  # of this process


def _open(build: Callable[[], Any]) -> None:
    global _simulation
    torch.set_num_threads(1)
    _simulation = build()


def _is_restorable() -> bool:
    return is_restorable(_simulation)


def _make(seeds: list[int]) -> list[Start]:
    return make_starts(_simulation, seeds)


def _own_tensors(simulation: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of a task's own tensors with a row per environment."""
    for name, value in list(vars(simulation).items()):
        is_own = isinstance(value, Tensor) and not name.startswith("_")
        if is_own and value.ndim and len(value) == simulation.num_envs:
            yield name, value
