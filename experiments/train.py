"""Fine-tune a pretrained policy in simulation.

    pitune train ppo --env.id mujoco/PickCube --checkpoint runs/pick/pretrained \
        --seed 1 --num-iterations 100 --out runs/pick/ppo
    pitune train filtered_bc --help

The first argument names the algorithm.

    pitune train --resume runs/pick/ppo

continues a run with its own settings. SIGTERM, SIGHUP and Ctrl-C end it with a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.listing import algorithm_lines
from pitune.experiments.command_line.parsing import arguments, default_env, program, wants_help
from pitune.experiments.command_line.parsing import parse as parse_config
from pitune.experiments.health.monitor import HealthMonitor
from pitune.experiments.health.outcome import reasons
from pitune.experiments.recipes import preset
from pitune.experiments.runs.evaluations import cut_note, evaluate_both, rank_of, validate
from pitune.experiments.runs.folder.base import kept_policy, load_and_keep
from pitune.experiments.runs.learning_curve import learning_curve
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import TrainingProgress, closing_table
from pitune.experiments.runs.resume import with_saved_options
from pitune.experiments.runs.run import Run
from pitune.experiments.runs.signals import (
    StoppedBySignal,
    StopRequest,
    exit_on_signal,
    stop_note,
    stop_request,
)
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.runs.video import before_after, record_video
from pitune.policies.finetuning.memory import available_bytes, check_memory, parameter_report

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
        config = self.config
        settings = config.identity(), config.wandb, {**config.limits(), **config.reports()}
        if config.resume:
            return Run.resume(config.out, *settings, config.defaults())
        return Run.create(config.out, *settings)

    def _prepare(self) -> None:
        """Make policy, algorithm and environment, and check that they fit."""
        config = self.config
        # policy and algorithm
        load = kept_policy if config.resume else load_and_keep
        policy = load(config.out, config.checkpoint, config.load).to(config.device)
        policies.apply_finetuning(policy, config.finetune)
        self.algorithm = rl.make(config.algorithm, policy)
        self._check_memory()

        # environment
        self.env = envs.make(config.env)
        rl.check_fit(policy, self.env.spec)
        rl.check_needs(self.algorithm, self.env.spec)

        # state of the run
        self.rollouts = rl.Rollouts(self.env, self.algorithm, config.num_chunks, config.seed)
        self.iteration = 0
        self.seconds = dict.fromkeys(("simulator", "policy", "update", "evaluation"), 0.0)
        self.before: dict[str, Any] = {}
        self.ended_by = ""
        self.restarts: list[int] = []
        self._pending_evaluation = False
        if config.resume:
            self._restore()
        self.run.connect()

    def _check_memory(self) -> None:
        """Print the trainable parameters and the memory estimate, and fail if it cannot fit."""
        policy = self.algorithm.actor.policy
        report = parameter_report(policy, self.config.algorithm.policy_minibatch)
        if policy.network.vlm is not None:
            screen.print(report.table())
        check_memory(report, available_bytes(policy.device))

    def train(self) -> dict[str, Any]:
        """Run to the end and return the summary, which is also in summary.json.

        Raises:
            StoppedBySignal: SIGTERM, SIGHUP or Ctrl-C arrived. A checkpoint is written before.
        """
        with stop_request() as request:
            try:
                with request.raising():
                    if not self.before:
                        self._begin()
                self._iterations(request)
                with request.raising():
                    return self._finish()
            except BaseException:
                self.run.abandon()
                raise

    def _iterations(self, request: StopRequest) -> None:
        """Collect and learn until a limit is reached."""
        config, start = self.config, time.monotonic()
        # warnings, which continue those of a resumed run
        identity, rows = config.identity(), self.run.rows
        name, before = rl.name_of(self.config.algorithm), self.before["deployed"]
        monitor = HealthMonitor(name, identity, before, rows)
        if self._pending_evaluation:
            with request.raising():
                evaluation = self._evaluate()
            self.run.amend(evaluation)
            self._checkpoint(evaluation)

        # iterations
        with screen.task("training", config.num_iterations, self.iteration) as task:
            progress = TrainingProgress(task, self.env.spec)
            self.ended_by = self._reached_limit()
            while not self.ended_by:
                metrics = self._iterate_or_stop(request)
                out_of_time = time.monotonic() - start > 60 * config.max_minutes
                last = self.iteration >= config.num_iterations or out_of_time
                due = last or self.iteration % config.eval_every == 0
                evaluation = self._evaluate_unless_stopped(request) if due else {}
                self.run.log(self.iteration, metrics | evaluation)
                # after its row: a kill in between writes both again
                if evaluation or request.stopped is not None:
                    self._checkpoint(evaluation, pending=due and not evaluation)
                progress.update(self.iteration, metrics | evaluation, self.rollouts.num_env_steps)
                for warning in monitor.warnings(self.run.rows):
                    screen.note(f"warning: {warning}")
                if request.stopped is not None:
                    screen.note(stop_note(self.config.out, self.iteration, exact=due))
                    raise request.stopped
                self.ended_by = self._reached_limit(out_of_time)

    def _reached_limit(self, out_of_time: bool = False) -> str:
        """Return the limit that ends the run, in words, or nothing."""
        config, row = self.config, [{}, *self.run.rows][-1]
        if row.get("success_rate_low", -math.inf) >= config.stop_at:
            return (
                f"the interval of the validation episodes is above stop_at={config.stop_at:g} "
                f"since iteration {self.iteration}"
            )
        if self.iteration >= config.num_iterations:
            return f"all num_iterations={config.num_iterations} are done"
        return f"max_minutes={config.max_minutes:g} are over" if out_of_time else ""

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
            screen.note(stop_note(self.config.out, self.run.saved_iteration(), exact=True))
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
        for note in (*self.algorithm.notes(), *self._cut_episodes()):
            screen.note(note)
        self._checkpoint(self.before["deployed"])

    def _cut_episodes(self) -> list[str]:
        """Return a note if evaluations cut every episode short before it can end."""
        horizon = self.algorithm.actor.policy.sampler.execution_horizon
        steps = self.config.eval_every * self.rollouts.num_chunks * horizon
        note = cut_note(steps, self.env.spec.max_episode_steps)
        return [note] if note and self.algorithm.needs.rollouts else []

    def _iterate(self) -> dict[str, float]:
        """Collect a rollout, learn from it, and return the metrics of both."""
        seconds, steps = dict(self.seconds), self.rollouts.num_env_steps
        # rollout and update
        start = time.perf_counter()
        rollout = self.rollouts.collect()
        collected = time.perf_counter()
        metrics = self.algorithm.update(rollout)

        # time of each phase
        simulator = self.rollouts.simulator_seconds
        self.seconds["simulator"] += simulator
        self.seconds["policy"] += collected - start - simulator
        self.seconds["update"] += time.perf_counter() - collected
        self.iteration += 1
        phases = {f"seconds/{key}": self.seconds[key] - seconds[key] for key in self.seconds}

        # metrics
        metrics |= rl.rollout_metrics(rollout) | phases
        metrics["env_steps"] = float(self.rollouts.num_env_steps)
        metrics["env_steps_per_second"] = (self.rollouts.num_env_steps - steps) / (
            collected - start
        )
        metrics["action_clip_fraction"] = self.env.num_clipped / max(1, self.env.num_entries)
        return metrics

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
        """Save, and begin new episodes as a resumed run would.

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
        self.run.save(self.iteration, self.algorithm, progress)
        self.rollouts.restart(self.iteration)

    def _restore(self) -> None:
        progress = self.run.load_latest(self.algorithm, NEEDED)
        self.iteration, self.seconds = progress["iteration"], progress["seconds"]
        self.before = progress["before"]
        self.env.num_clipped, self.env.num_entries = progress["clipped"]
        self.rollouts.num_env_steps = progress["env_steps"]
        self.restarts = progress.get("restarts", [])  # absent from runs of pitune 0.2 and before
        self._pending_evaluation = progress.get("pending_evaluation", False)
        if self.iteration % self.config.eval_every and self.iteration < self.config.num_iterations:
            self.restarts = [*self.restarts, self.iteration]
            screen.note(
                f"the run continues between two evaluations, at iteration {self.iteration}, with "
                "new episodes: later numbers are not those of an uninterrupted run"
            )
        self.rollouts.restart(self.iteration)

    def _film(self, name: str) -> None:
        if self.config.video:
            file = self.config.out / f"{name}.mp4"
            config = self.config
            record_video(config.env, self.algorithm.actor, file, config.seed, config.eval_episodes)

    def _finish(self) -> dict[str, Any]:
        """Evaluate, report, close, and return the summary."""
        # evaluation and film
        after = self._final_evaluation()
        self._film("after")
        if self.config.video:
            before_after(self.config.out)

        # summary
        summary = {
            "algorithm": rl.name_of(self.config.algorithm),
            "env": self.config.env.id,
            "seed": self.config.seed,
            "iterations": self.iteration,
            "ended_by": self.ended_by,
            "restarts": self.restarts,
            "learned_nothing": reasons(
                self.run.rows, self.config.identity(), self.run.has_changed()
            ),
            "env_steps": self.rollouts.num_env_steps,
            "train_seconds": sum(self.seconds.values()),
            "before": self.before,
            "after": after,
            "seconds": self.seconds,
            "checkpoint": str(self.run.checkpoints()[-1]),
            "best_checkpoint": str(self.run.best_checkpoint()),
        }

        # files
        learning_curve(self.run.rows, summary, self.config.out / "learning_curve.png")
        self.run.finish(summary)
        self.env.close()
        return summary


def train(config: TrainConfig) -> dict[str, Any]:
    """Run a training and return its summary."""
    return Trainer(config).train()


def parse(args: Sequence[str]) -> TrainConfig:
    """Read the config from command line arguments: the algorithm's name, then any options.

    Args:
        args: The name may be followed by a colon and a variant or likelihood: `ppo:flow_noise`.

    Raises:
        ValueError: no algorithm has this name, or an option is unknown or has no valid value.
    """
    args = args if wants_help(args) else with_saved_options(args)
    name = args[0] if args and not args[0].startswith("-") else ""
    if name:
        algorithm = preset(name)
        description = f"{rl.registry.entry(rl.name_of(algorithm)).description}\n\n{__doc__}"
    elif wants_help(args):
        algorithm = rl.AlgorithmConfig()
        description = (
            f"{__doc__}\n\n  ALGORITHM is one of\n{algorithm_lines()}\n\n"
            f"`{program('train')} ppo --help` lists the options of ppo."
        )
    else:
        names = ", ".join(sorted(rl.presets()))
        raise ValueError(f"the first argument names the algorithm; registered: {names}")
    return parse_config(
        TrainConfig,
        args[1:] if name else args,
        prog=f"{program('train')} {name or 'ALGORITHM'}",
        description=description,
        default=TrainConfig(algorithm=algorithm, env=default_env(args)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message(), exit_on_signal():
        closing_table(train(parse(arguments(argv))))


if __name__ == "__main__":
    main()
