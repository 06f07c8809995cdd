"""Acting while learning: a second process collects the next rollout during the update.

The rollout of an update is collected with the weights from before the update in front of it. So the
actions are at most one update old, and a rollout that is older raises. The process is ours and not
TorchRL's MultiAsyncCollector, because that one hands on the parameters of the policy alone. The
exploration of `wsrl` and `dgn` also depends on their phase and on further networks.

Which rollouts an update gets depends on no clock, but their noise is drawn in another process than
the minibatches. The numbers are not those of a run that acts and learns in turn.

Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

import io
import os
import signal
import time
import traceback
import weakref
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from pitune import envs, rl
from pitune.envs.workers.launch import end_group, fork_server, kill_group, lead_group
from pitune.experiments.runs.loop.clock import WorkClock
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.training.policy import policy_to_train
from pitune.rl.experience.rollouts import Rollouts

MOST_UPDATES_BEHIND = 1
"""Updates by which the weights of a rollout may be behind those that learn from it."""


class ActingRollouts(Rollouts):
    """Rollouts of a process that acts while this one learns.

    It makes environments of its own. Those of this process are used for evaluations only, so that
    no episode is cut short by one.

    Args:
        config: Of the run, whose folder holds the initial policy.
        env: The environments of this process.
        algorithm: Learns in this process.

    Raises:
        ValueError: the algorithm is on-policy.

    Example:
        >>> rollouts = ActingRollouts(config, env, algorithm)  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    def __init__(
        self, config: TrainConfig, env: envs.CheckedEnv, algorithm: rl.Algorithm[Any]
    ) -> None:
        check_acting(config.algorithm)
        self.config = config
        self._connection: Connection | None = None
        self._is_asked = False
        self.updates_behind = 0
        """Updates by which the last rollout was behind."""
        super().__init__(env, algorithm, config.num_chunks, config.seed)

    def restart(self, iteration: int) -> None:
        """Continue the process from this iteration, whose episodes go on over evaluations."""
        self._iteration = iteration
        if self._connection is None:
            super().restart(iteration)  # for the specs and checks of this process

    def state(self) -> None:
        """Return nothing: the episodes of the other process cannot be repeated here."""

    def collect(self) -> TensorDictBase:
        """Return the next rollout (E, T), and have the one after it collected meanwhile.

        Raises:
            RuntimeError: the process has failed, or a rollout is older than allowed.
        """
        connection = self._connection or self._start()
        if not self._is_asked:
            self._ask(connection)
        # the rollout that was asked for before the last update
        start = time.perf_counter()
        received = self._receive(connection)
        waited = time.perf_counter() - start
        self.updates_behind = behind = self.algorithm.num_updates - received["updates"]
        if behind > MOST_UPDATES_BEHIND:
            raise RuntimeError(
                f"a rollout is {behind} updates behind, at most {MOST_UPDATES_BEHIND} are allowed; "
                "call collect() once before each update"
            )
        # the next one is collected during the update that follows
        self._ask(connection)
        # counts of the other process
        self.num_env_steps += received["steps"]
        # this process was in no simulator: of its wait, the same share as of the other's time
        self.seconds_elsewhere = received["seconds"]
        self.simulator_seconds = waited * received["simulator"] / received["seconds"]
        self.env.num_clipped += received["clipped"]
        self.env.num_entries += received["entries"]
        rows = TensorDict(received["rollout"], batch_size=[self.env.spec.num_envs])
        return rows.unflatten_keys(".").auto_batch_size_(2)

    def _start(self) -> Connection:
        """Start the process."""
        context = fork_server()
        self._connection, connection = context.Pipe()
        config = replace(self.config, resume=True)  # the policy is in the folder of the run
        arguments = (connection, config, self._iteration, dict(os.environ))
        process = context.Process(target=act, args=arguments, daemon=True)
        process.start()
        weakref.finalize(self, kill_group, process)
        connection.close()
        return self._connection

    def _ask(self, connection: Connection) -> None:
        """Ask for a rollout with the present weights."""
        self._is_asked = True
        connection.send_bytes(as_bytes(acting_state(self.algorithm)))

    def _receive(self, connection: Connection) -> dict[str, Any]:
        """Return the reply of the process.

        Raises:
            RuntimeError: it has failed or ended.
        """
        try:
            received = of_bytes(connection.recv_bytes())
        except (EOFError, OSError):
            raise RuntimeError(
                "the process that acts while this one learns has ended; resume the run with "
                "--resume, and look at the output above for its reason"
            ) from None
        if "error" in received:
            raise RuntimeError(f"acting while learning failed: {received['error']}")
        return received


def rollouts_of(
    config: TrainConfig, env: envs.CheckedEnv, algorithm: rl.Algorithm[Any]
) -> Rollouts:
    """Return the rollouts of a run: in turn with the updates, or while they are made."""
    if config.act_while_learning:
        return ActingRollouts(config, env, algorithm)
    return Rollouts(env, algorithm, config.num_chunks, config.seed)


def check_acting(config: rl.AlgorithmConfig) -> None:
    """Reject an algorithm that learns from the actions of its present policy only.

    Raises:
        ValueError: it does.
    """
    name = rl.name_of(config)
    if not rl.registry.entry(name).off_policy:
        names = ", ".join(entry.name for entry in rl.registry.entries() if entry.off_policy)
        raise ValueError(
            f"act_while_learning=True is not supported by {name}, which is on-policy: its rollouts "
            f"must be of the present policy; leave it out, or use one of {names}"
        )


def acting_state(algorithm: rl.Algorithm[Any]) -> dict[str, Any]:
    """Return all that another process needs to act as an algorithm."""
    return {
        "policy": algorithm.actor.policy.state_dict(),
        "networks": {name: part.state_dict() for name, part in algorithm.networks.items()},
        "extra": algorithm.extra_state(),
        "updates": algorithm.num_updates,
    }


def load_acting_state(algorithm: rl.Algorithm[Any], state: Mapping[str, Any]) -> None:
    """Act from now on as the algorithm of `acting_state` did."""
    algorithm.actor.policy.load_state_dict(state["policy"])
    for name, part in algorithm.networks.items():
        part.load_state_dict(state["networks"][name])
    algorithm.load_extra_state(state["extra"])
    algorithm.num_updates = state["updates"]


def act(
    connection: Connection, config: TrainConfig, iteration: int, environment: Mapping[str, str]
) -> None:
    """Collect a rollout for each state that arrives, until the learner is gone.

    Args:
        connection: To the learner.
        config: Of the run.
        iteration: Of the learner, from which the episodes are numbered.
        environment: The learner's environment variables.
    """
    lead_group()
    os.environ.update(environment)
    # Ctrl-C reaches the whole process group, but only the learner decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # the same algorithm as the learner's, with random numbers of its own
        torch.set_num_threads(config.torch_threads)
        torch.manual_seed(config.seed + 1_000_003 * (iteration + 1))
        env = envs.make(config.env)
        algorithm = rl.make(config.algorithm, policy_to_train(config))
        rollouts = Rollouts(env, algorithm, config.num_chunks, config.seed)
        rollouts.restart(iteration)
        clock = WorkClock(config.compile)
        while True:
            # present weights in, a rollout out
            load_acting_state(algorithm, of_bytes(connection.recv_bytes()))
            connection.send_bytes(as_bytes(_rollout(rollouts, env, clock)))
    except (EOFError, OSError):
        pass  # the learner has ended
    except Exception:
        connection.send_bytes(as_bytes({"error": traceback.format_exc()}))
    end_group()


def _rollout(rollouts: Rollouts, env: envs.CheckedEnv, clock: WorkClock) -> dict[str, Any]:
    """Return a rollout, its counts and its times."""
    steps, clipped, entries = rollouts.num_env_steps, env.num_clipped, env.num_entries
    start = clock()
    rollout = rollouts.collect()
    seconds = clock() - start
    return {
        "rollout": dict(rollout.cpu().flatten_keys(".").items()),
        "updates": rollouts.algorithm.num_updates,
        "steps": rollouts.num_env_steps - steps,
        "seconds": seconds,
        "simulator": rollouts.simulator_seconds,
        "clipped": env.num_clipped - clipped,
        "entries": env.num_entries - entries,
    }


def as_bytes(state: Mapping[str, Any]) -> bytes:
    """Return tensors and numbers as bytes, which share no memory with this process."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    return file.getvalue()


def of_bytes(content: bytes) -> dict[str, Any]:
    """Return the result of `as_bytes` as it was, on the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
