"""Workers on other machines: Ray actors with the interface of a worker process.

A chunk of steps is one message there and one back. Ray and pitune must be installed on every
machine of the cluster, in the same versions.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from pitune.envs.workers.launch import limit_to_one_thread
from pitune.envs.workers.process import WorkerDiedError
from pitune.envs.workers.remote.ahead import take_steps
from pitune.envs.workers.serve import Failure
from pitune.envs.workers.sub_envs import Factory, SubEnvs
from pitune.extras import install_command

KEPT_VARIABLES = ("PYTHONPATH", "MUJOCO_GL", "PYOPENGL_PLATFORM")
"""Variables of this process that a locally started Ray hands on."""


class Simulators:
    """The content of a Ray actor: sub-environments that handle one request after the other.

    Example:
        >>> import functools, gymnasium
        >>> actor = Simulators()
        >>> factory = functools.partial(gymnasium.make, "Pendulum-v1")
        >>> actor.handle("start", (factory, "pendulum", 2, 0), {"shared": False})
        >>> actor.handle("reset", ([0], [7]), {}).obs["state"].shape
        (1, 3)
    """

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)  # the workers of a machine share its cores
        self._sub_envs: SubEnvs | None = None

    def handle(self, method: str, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        """Return the result of a method of `SubEnvs`, or the failure of one that raises."""
        try:
            if method == "start":
                self._sub_envs = SubEnvs(*arguments, **settings)
                return None
            if self._sub_envs is None:
                raise RuntimeError("no sub-environment could be made")
            if method == "take_steps":
                return take_steps(self._sub_envs, *arguments)
            return getattr(self._sub_envs, method)(*arguments, **settings)
        except BaseException as error:
            return Failure.of(error)


class RayWorker:
    """A Ray actor with several sub-environments.

    Example:
        >>> import functools, gymnasium
        >>> factory = functools.partial(gymnasium.make, "Pendulum-v1")
        >>> worker = RayWorker(range(2), factory, "pendulum")  # doctest: +SKIP
        >>> worker.receive(timeout=180.0)  # doctest: +SKIP
        >>> worker.stop()  # doctest: +SKIP

    Args:
        rows: Which of the E environments it holds.
        factory: Makes one sub-environment and is picklable.
        env_id: Name for messages.
        address: Of the Ray cluster. None starts Ray on this machine, if it does not run here yet.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address.
    """

    def __init__(
        self, rows: range, factory: Factory, env_id: str, address: str | None = None
    ) -> None:
        self.rows = rows
        self._arguments = (factory, env_id, len(rows), rows.start)
        self._ray = connect(address)
        # a cluster counts its cores, and Ray on this machine has only these actors
        kind = self._ray.remote(num_cpus=0 if address is None else 1, max_restarts=0)(Simulators)
        self._kind = kind.options(scheduling_strategy="SPREAD")
        self._start()

    def _start(self) -> None:
        """Start the actor, which makes its environments."""
        self._actor = self._kind.remote()
        self.send("start", *self._arguments, shared=False)

    def send(self, method: str, *arguments: Any, **settings: Any) -> None:
        """Send one request. The reply to an earlier one is dropped."""
        self._reply = self._actor.handle.remote(method, arguments, settings)

    def receive(self, timeout: float) -> Any:
        """Return the result of the last request.

        Args:
            timeout: Longest time to wait for it [s].

        Raises:
            WorkerDiedError: there is no reply, and there will be none.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(self._reply, timeout=timeout)
        except errors.GetTimeoutError:
            raise WorkerDiedError(f"gave no answer within {timeout:g} s") from None
        except errors.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkerDiedError(f"ended with its Ray actor ({reason})") from None

    def restart(self) -> None:
        """Replace the actor by a new one, which makes its environments again."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """End the actor. It may have ended already, and Ray too."""
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor, no_restart=True)


def connect(address: str | None) -> Any:
    """Return the module of Ray, connected to a cluster or started on this machine.

    Args:
        address: See `RayWorker`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"workers_on='ray' needs the package ray; run `{install_command('ray')}`, or pass "
            "--env.workers-on processes"
        ) from error
    if ray.is_initialized():
        return ray
    # rendering and import paths, as in this process
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    try:
        with limit_to_one_thread():
            ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level="warning",
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", **variables}},
            )
    except (ConnectionError, ValueError) as error:
        raise ValueError(
            f"ray_address={address!r}: there is no Ray cluster ({error}); start one with "
            "`ray start --head`, or leave the address out for Ray on this machine"
        ) from error
    return ray
