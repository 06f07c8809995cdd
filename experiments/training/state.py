"""The parts of a training run, and their state in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from pitune import envs, rl
from pitune.experiments.distributed.other_rank import open_run
from pitune.experiments.distributed.start import join, own_random_numbers, rank_env
from pitune.experiments.distributed.state import Counts, check_drift
from pitune.experiments.runs import signals
from pitune.experiments.runs.evaluations import rank_of
from pitune.experiments.runs.loop.clock import PHASES, SaveTimer, WorkClock
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import report_memory
from pitune.experiments.runs.run import Run
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.training.acting import check_acting, rollouts_of
from pitune.experiments.training.policy import policy_to_train
from pitune.rl import ranks

NEEDED = ("success_rate", "env_steps", "seconds", "before", "clipped")
"""Entries of a checkpoint's progress without which it cannot be resumed from."""


class TrainState:
    """Policy, algorithm, environment and folder of one run, and the numbers that resuming needs.

    Args:
        config: Of the run.

    Example:
        >>> state = TrainState(TrainConfig(algorithm=rl.PPOConfig()))  # doctest: +SKIP
        >>> state.iteration  # doctest: +SKIP
        0
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        if config.act_while_learning:
            check_acting(config.algorithm)
        join(config)
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.torch_threads)
        self.run = self._open_run()
        try:
            self._prepare()
        except BaseException:
            self.run.abandon()  # so that the same command can be given again
            raise

    def _open_run(self) -> Run:
        """Return the run, whose folder this process then holds."""
        config, name = self.config, self.config.logger
        settings = config.identity(), config.wandb, {**config.limits(), **config.reports()}
        make = partial(Run.create, config.out, *settings, logger=name)
        if config.resume:
            make = partial(Run.resume, config.out, *settings, config.defaults(), logger=name)
        return open_run(make, config.out, config.identity())

    def _prepare(self) -> None:
        """Make policy, algorithm and environment, and check that they fit."""
        config = self.config
        # policy and algorithm
        policy = policy_to_train(config)
        self.algorithm = rl.make(config.algorithm, policy)
        report_memory(self.algorithm.actor.policy, config)

        # environment
        self.env = envs.make(rank_env(config.env))
        rl.check_fit(policy, self.env.spec)
        rl.check_needs(self.algorithm, self.env.spec)

        # state of the run
        own_random_numbers(config.seed)
        self.rollouts = rollouts_of(config, self.env, self.algorithm)
        self.iteration, self.ended_by = 0, ""
        self._clock = WorkClock(config.compile)
        self.seconds = dict.fromkeys((*PHASES, *self._clock.phases), 0.0)
        self._saving = SaveTimer(config.save_minutes)
        self.before: dict[str, Any] = {}
        self.restarts: list[int] = []
        self._pending_evaluation = False
        if config.resume:
            self._restore()
        self.run.connect()

    def _checkpoint(self, evaluation: Mapping[str, Any], pending: bool = False) -> None:
        """Save, and after an evaluation begin new episodes as a resumed run would.

        Args:
            evaluation: At this iteration, empty without one.
            pending: Whether a signal has postponed that evaluation.
        """
        progress = {
            "success_rate": evaluation.get("success_rate"),
            "rank": rank_of(evaluation) if evaluation else None,
            **Counts.of(self.rollouts).progress(),
            "seconds": self.seconds,
            "before": self.before,
            "restarts": self.restarts,
            "pending_evaluation": pending,
        }
        # episodes go on over a checkpoint, and begin anew after an evaluation
        goes_on = not evaluation and not pending
        episodes = self.rollouts.state() if goes_on else None
        with self._saving.measured():
            check_drift(self.algorithm)
            self.run.save(self.iteration, self.algorithm, progress, episodes)
            ranks.wait()
        self.seconds["save"] += self._saving.last
        if not goes_on:
            self.rollouts.restart(self.iteration)

    def _restore(self) -> None:
        # progress
        progress = self.run.load_latest(self.algorithm, NEEDED)
        self.iteration, self.before = progress["iteration"], progress["before"]
        self.seconds |= progress["seconds"]
        self.restarts = progress.get("restarts", [])  # absent from runs of pitune 0.2 and before
        self._pending_evaluation = progress.get("pending_evaluation", False)

        # random numbers and episodes
        other_ranks = progress.get("ranks", 1) != ranks.world()
        if other_ranks:
            own_random_numbers(self.config.seed, self.iteration)
        episodes = self.run.episodes  # those of before, or new ones
        if ranks.on_any(episodes is None or not self.rollouts.repeat(episodes)):
            evaluated = self.iteration % self.config.eval_every == 0 and not other_ranks
            if not evaluated and self.iteration < self.config.num_iterations:
                self.restarts = [*self.restarts, self.iteration]
                screen.note(signals.restart_note(self.iteration, repeated=episodes is not None))
            self.rollouts.restart(self.iteration)

        # after the repetition, which counts too
        Counts.in_progress(progress).restore(self.rollouts)
