"""Fine-tune a pretrained policy in simulation: the loop of a run, from its start to its summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pitune import rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments
from pitune.experiments.distributed.metrics import of_all_ranks
from pitune.experiments.distributed.state import check_drift
from pitune.experiments.films.training import before_after, record_video
from pitune.experiments.health.monitor import HealthMonitor
from pitune.experiments.runs import signals
from pitune.experiments.runs.evaluations import cut_notes, evaluate_both, validate
from pitune.experiments.runs.learning_curve import learning_curve
from pitune.experiments.runs.loop.clock import memory_in_use
from pitune.experiments.runs.loop.outcome import outcome_of
from pitune.experiments.runs.loop.update import learn
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import TrainingProgress, closing_table
from pitune.experiments.runs.signals import StoppedBySignal, StopRequest
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.training.arguments import parse as parse
from pitune.experiments.training.state import TrainState
from pitune.rl import ranks


class Trainer(TrainState):
    """One run: the loop of collecting and learning.

    Example:
        >>> config = TrainConfig(algorithm=rl.PPOConfig())
        >>> summary = Trainer(config).train()  # doctest: +SKIP
    """

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
                request.agree()
                out_of_time = ranks.on_any(time.monotonic() - start > 60 * config.max_minutes)
                last = self.iteration >= config.num_iterations or out_of_time
                due = last or self.iteration % config.eval_every == 0
                evaluation = self._evaluate_unless_stopped(request) if due else {}
                self.run.log(self.iteration, metrics | evaluation)
                # after its row: a kill in between writes both again
                stops, saves = request.stopped is not None, ranks.on_any(self._saving.is_due())
                if evaluation or stops or saves:
                    self._checkpoint(evaluation, pending=due and not evaluation)
                progress.update(self.iteration, metrics | evaluation, int(metrics["env_steps"]))
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
        start = self._clock()
        rollout = self.rollouts.collect()
        collected = self._clock()
        metrics = learn(self.run, self.iteration + 1, self.algorithm, rollout)

        # time of each phase
        simulator = self.rollouts.simulator_seconds
        self.seconds["simulator"] += simulator
        self.seconds["policy"] += collected - start - simulator
        self.seconds["update"] += self._clock() - collected
        self.iteration += 1
        phases = {f"seconds/{key}": self.seconds[key] - seconds[key] for key in self.seconds}
        num_steps = self.rollouts.num_env_steps
        collecting = self.rollouts.seconds_elsewhere or collected - start
        check_drift(self.algorithm, self.iteration)
        row = {
            **metrics,
            **rl.rollout_metrics(rollout),
            **phases,
            "seconds/save": self._saving.spent_since_last_row(),
            **self._clock.compile_row(self.seconds),
            **memory_in_use(),
            "env_steps": float(num_steps),
            "env_steps_per_second": (num_steps - steps) / collecting,
            "action_clip_fraction": self.env.num_clipped / max(1, self.env.num_entries),
        }
        return of_all_ranks(row)

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on the validation starts and return the metrics."""
        start, config = self._clock(), self.config
        metrics = validate(self.env, self.algorithm.actor, config.eval_episodes, config.seed)
        seconds = self._clock() - start
        self.seconds["evaluation"] += seconds
        return {**metrics, "seconds/evaluation": seconds}

    def _final_evaluation(self) -> dict[str, Any]:
        """Evaluate on the test starts, deployed and exploring."""
        start, config = self._clock(), self.config
        result = evaluate_both(self.env, self.algorithm.actor, config.eval_episodes, config.seed)
        self.seconds["evaluation"] += self._clock() - start
        return result

    def _film(self, name: str) -> None:
        config, file = self.config, self.config.out / f"{name}.mp4"
        if config.video and not ranks.rank():
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
            "env_steps": ranks.total(self.rollouts.num_env_steps),
            "before": self.before,
            "after": after,
        }
        if not ranks.rank():
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
        summary = train(parse(arguments(argv)))
        if not ranks.rank():
            closing_table(summary)
        ranks.stop()


if __name__ == "__main__":
    main()
