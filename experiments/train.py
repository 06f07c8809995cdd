"""Fine-tune a pretrained policy in simulation: the loop of a run, from its start to its summary."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pitune import envs, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments
from pitune.experiments.films.training import before_after, record_video
from pitune.experiments.health.monitor import HealthMonitor
from pitune.experiments.runs import signals
from pitune.experiments.runs.evaluations import cut_notes, evaluate_both, rank_of, validate
from pitune.experiments.runs.learning_curve import learning_curve
from pitune.experiments.runs.loop.clock import PHASES, SaveTimer, memory_in_use
from pitune.experiments.runs.loop.outcome import outcome_of
from pitune.experiments.runs.loop.update import learn
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import TrainingProgress, closing_table, report_memory
from pitune.experiments.runs.run import Run
from pitune.experiments.runs.signals import StoppedBySignal, StopRequest
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.train_arguments import parse as parse
from pitune.experiments.train_policy import policy_to_train

NEEDED = ("success_rate", "env_steps", "seconds", "before", "clipped")
"""Entries of a checkpoint's progress without which it cannot be resumed from."""


class Trainer:
    """One run: the loop of collecting and learning, and the state that resuming needs.

    Example:
        >>> config = TrainConfig(algorithm=rl.PPOConfig())
        >>> summary = Trainer(config).train()  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
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
        if config.resume:
            return Run.resume(config.out, *settings, config.defaults(), logger=name)
        return Run.create(config.out, *settings, logger=name)

    def _prepare(self) -> None:
        """Make policy, algorithm and environment, and check that they fit."""
        config = self.config
        policy = policy_to_train(config)
        self.algorithm = rl.make(config.algorithm, policy)
        report_memory(self.algorithm.actor.policy, config)

        self.env = envs.make(config.env)
        rl.check_fit(policy, self.env.spec)
        rl.check_needs(self.algorithm, self.env.spec)

        # state of the run
        self.rollouts = rl.Rollouts(self.env, self.algorithm, config.num_chunks, config.seed)
        self.iteration, self.ended_by = 0, ""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._saving = SaveTimer(config.save_minutes)
        self.before: dict[str, Any] = {}
        self.restarts: list[int] = []
        self._pending_evaluation = False
        if config.resume:
            self._restore()
        self.run.connect()

    def train(self) -> dict[str, Any]:
        """Run to the end and return the summary, which is also in summary.json.

        Raises:
            StoppedBySignal: SIGTERM, SIGHUP or Ctrl-C arrived. A checkpoint is written before.
        """
        with signals.stop_request() as request:
            try:
                with request.raising():
                    if not self.before:
                        self._begin()
                self._iterations(request)
                with request.raising():
                    return self._finish()
            except BaseException as error:
                self.run.abandon()
                signals.note_of_disk(error, self.config.out)
                raise

    def _iterations(self, request: StopRequest) -> None:
        """Collect and learn until a limit is reached."""
        config, start = self.config, time.monotonic()
        # warnings, which continue those of a resumed run
        name, before = rl.name_of(config.algorithm), self.before["deployed"]
        monitor = HealthMonitor(name, config.identity(), before, self.run.rows)
        if self._pending_evaluation:
            with request.raising():
                evaluation = self._evaluate()
            self.run.amend(evaluation)
            self._checkpoint(evaluation)

        # iterations
        with screen.task("training", config.num_iterations, self.iteration) as task:
            progress = TrainingProgress(task, self.env.spec)
            self.ended_by = config.limit_reached(self.iteration, self.run.recent)
            while not self.ended_by:
                metrics = self._iterate_or_stop(request)
                out_of_time = time.monotonic() - start > 60 * config.max_minutes
                last = self.iteration >= config.num_iterations or out_of_time
                due = last or self.iteration % config.eval_every == 0
                evaluation = self._evaluate_unless_stopped(request) if due else {}
                self.run.log(self.iteration, metrics | evaluation)
                # after its row: a kill in between writes both again
                if evaluation or request.stopped is not None or self._saving.is_due():
                    self._checkpoint(evaluation, pending=due and not evaluation)
                progress.update(self.iteration, metrics | evaluation, self.rollouts.num_env_steps)
                for warning in monitor.warnings(self.run.recent):
                    screen.note(f"warning: {warning}")
                if request.stopped is not None:
                    exact = due or self.rollouts.state() is not None
                    screen.note(signals.stop_note(self.config.out, self.iteration, exact))
                    raise request.stopped
                self.ended_by = config.limit_reached(self.iteration, self.run.recent, out_of_time)

    def _iterate_or_stop(self, request: StopRequest) -> dict[str, float]:
        """Iterate, and end in order if a signal has stopped the environment's processes too.

        Raises:
            StoppedBySignal: that is so. The iteration is repeated when the run is resumed.
        """
        try:
            return self._iterate()
        except Exception as error:
            if request.stopped is None:
                raise
            screen.note(f"iteration {self.iteration + 1} is lost ({error})")
            screen.note(signals.stop_note(self.config.out, self.run.saved_iteration(), exact=True))
            raise request.stopped from error

    def _evaluate_unless_stopped(self, request: StopRequest) -> dict[str, float]:
        """Evaluate, or return nothing if a signal has arrived or arrives meanwhile."""
        clipped = self.env.num_clipped, self.env.num_entries
        try:
            with request.raising():
                return self._evaluate()
        except StoppedBySignal:
            self.env.num_clipped, self.env.num_entries = clipped
            return {}

    def _begin(self) -> None:
        """Evaluate and film the policy as it is, print the notes, and save the start."""
        self.before = self._final_evaluation()
        self._film("before")
        num_chunks = self.config.eval_every * self.config.num_chunks
        cut = cut_notes(self.algorithm, num_chunks, self.env.spec.max_episode_steps)
        for note in (*self.algorithm.notes(), *self.rollouts.notes, *cut):
            screen.note(note)
        self._checkpoint(self.before["deployed"])

    def _iterate(self) -> dict[str, float]:
        """Collect a rollout, learn from it, and return the metrics of both."""
        seconds, steps = dict(self.seconds), self.rollouts.num_env_steps
        # rollout and update
        start = time.perf_counter()
        rollout = self.rollouts.collect()
        collected = time.perf_counter()
        metrics = learn(self.run, self.iteration + 1, self.algorithm, rollout)

        # time of each phase
        simulator = self.rollouts.simulator_seconds
        self.seconds["simulator"] += simulator
        self.seconds["policy"] += collected - start - simulator
        self.seconds["update"] += time.perf_counter() - collected
        self.iteration += 1
        phases = {f"seconds/{key}": self.seconds[key] - seconds[key] for key in self.seconds}
        num_steps = self.rollouts.num_env_steps
        return {
            **metrics,
            **rl.rollout_metrics(rollout),
            **phases,
            "seconds/save": self._saving.spent_since_last_row(),
            **memory_in_use(),
            "env_steps": float(num_steps),
            "env_steps_per_second": (num_steps - steps) / (collected - start),
            "action_clip_fraction": self.env.num_clipped / max(1, self.env.num_entries),
        }

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on the validation starts and return the metrics."""
        start, config = time.perf_counter(), self.config
        metrics = validate(self.env, self.algorithm.actor, config.eval_episodes, config.seed)
        seconds = time.perf_counter() - start
        self.seconds["evaluation"] += seconds
        return {**metrics, "seconds/evaluation": seconds}

    def _final_evaluation(self) -> dict[str, Any]:
        """Evaluate on the test starts, deployed and exploring."""
        start, config = time.perf_counter(), self.config
        result = evaluate_both(self.env, self.algorithm.actor, config.eval_episodes, config.seed)
        self.seconds["evaluation"] += time.perf_counter() - start
        return result

    def _checkpoint(self, evaluation: Mapping[str, Any], pending: bool = False) -> None:
        """Save, and after an evaluation begin new episodes as a resumed run would.

        Args:
            evaluation: At this iteration, empty without one.
            pending: Whether a signal has postponed that evaluation.
        """
        progress = {
            "success_rate": evaluation.get("success_rate"),
            "rank": rank_of(evaluation) if evaluation else None,
            "env_steps": self.rollouts.num_env_steps,
            "seconds": self.seconds,
            "before": self.before,
            "clipped": [self.env.num_clipped, self.env.num_entries],
            "restarts": self.restarts,
            "pending_evaluation": pending,
        }
        goes_on = not evaluation and not pending
        episodes = self.rollouts.state() if goes_on else None
        with self._saving.measured():
            self.run.save(self.iteration, self.algorithm, progress, episodes)
        self.seconds["save"] += self._saving.last
        if not goes_on:
            self.rollouts.restart(self.iteration)

    def _restore(self) -> None:
        progress = self.run.load_latest(self.algorithm, NEEDED)
        self.iteration, self.before = progress["iteration"], progress["before"]
        self.seconds |= progress["seconds"]
        self.restarts = progress.get("restarts", [])  # absent from runs of pitune 0.2 and before
        self._pending_evaluation = progress.get("pending_evaluation", False)

        episodes = self.run.episodes  # those of before, or new ones
        if episodes is None or not self.rollouts.repeat(episodes):
            evaluated = self.iteration % self.config.eval_every == 0
            if not evaluated and self.iteration < self.config.num_iterations:
                self.restarts = [*self.restarts, self.iteration]
                screen.note(signals.restart_note(self.iteration, repeated=episodes is not None))
            self.rollouts.restart(self.iteration)

        # after the repetition, which counts too
        self.env.num_clipped, self.env.num_entries = progress["clipped"]
        self.rollouts.num_env_steps = progress["env_steps"]

    def _film(self, name: str) -> None:
        config, file = self.config, self.config.out / f"{name}.mp4"
        if config.video:
            record_video(config.env, self.algorithm.actor, file, config.seed, config.eval_episodes)
            if name == "after":
                before_after(config.out)

    def _finish(self) -> dict[str, Any]:
        """Evaluate, report, close, and return the summary."""
        config, after = self.config, self._final_evaluation()
        self._film("after")
        summary = {
            **outcome_of(config, self.run, self.env.spec),
            "train_seconds": sum(self.seconds.values()),
            "seconds": self.seconds,
            "iterations": self.iteration,
            "ended_by": self.ended_by,
            "restarts": self.restarts,
            "env_steps": self.rollouts.num_env_steps,
            "before": self.before,
            "after": after,
        }
        learning_curve(self.run.rows, summary, config.out / "learning_curve.png")
        self.run.finish(summary)
        self.env.close()
        return summary


def train(config: TrainConfig) -> dict[str, Any]:
    """Run a training and return its summary."""
    return Trainer(config).train()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message(), signals.exit_on_signal():
        closing_table(train(parse(arguments(argv))))


if __name__ == "__main__":
    main()
