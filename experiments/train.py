"""Fine-tune a pretrained policy in simulation.

    pitune train ppo --env.id mujoco/PickCube --checkpoint runs/pick/pretrained \
        --seed 1 --num-iterations 100 --out runs/pick/ppo
    pitune train filtered_bc --help

The first argument names the algorithm. `--resume` continues the run in `--out`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.listing import algorithm_lines
from pitune.experiments.command_line.parsing import arguments, default_env, program, wants_help
from pitune.experiments.command_line.parsing import parse as parse_config
from pitune.experiments.health.monitor import HealthMonitor
from pitune.experiments.recipes import preset
from pitune.experiments.runs.evaluations import cut_note, evaluate_both, validate
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.report import TrainingProgress, closing_table, learning_curve
from pitune.experiments.runs.run import Run
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.runs.update_progress import update_progress
from pitune.experiments.runs.video import before_after, record_video
from pitune.policies.finetuning.memory import available_bytes, check_memory, parameter_report


class Trainer:
    """One run: the loop of collecting and learning, and the state that resuming needs.

    Example:
        >>> config = TrainConfig(algorithm=rl.PPOConfig())
        >>> summary = Trainer(config).train()  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        # policy and algorithm
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.torch_threads)
        open_run = Run.resume if config.resume else Run.create
        policy = policies.load(config.checkpoint, config.load).to(config.device)
        policies.apply_finetuning(policy, config.finetune)
        self.algorithm = rl.make(config.algorithm, policy)
        self._check_memory()

        # environment
        self.env = envs.make(config.env)
        rl.check_fit(policy, self.env.spec)
        rl.check_needs(self.algorithm, self.env.spec)
        if config.eval_episodes % config.env.num_envs:
            raise ValueError(
                f"eval_episodes={config.eval_episodes} must be a multiple of "
                f"num_envs={config.env.num_envs}"
            )

        # run, written only after all checks
        self.run = open_run(config.out, config.identity(), config.wandb, config.limits())
        self.rollouts = rl.Rollouts(self.env, self.algorithm, config.num_chunks, config.seed)
        self.iteration = 0
        self.seconds = dict.fromkeys(("simulator", "policy", "update", "evaluation"), 0.0)
        self.before: dict[str, Any] = {}
        if config.resume:
            self._restore()

    def _check_memory(self) -> None:
        """Print the trainable parameters and the memory estimate, and fail if it cannot fit."""
        policy = self.algorithm.actor.policy
        report = parameter_report(policy, self.config.algorithm.policy_minibatch)
        if policy.network.vlm is not None:
            screen.print(report.table())
        check_memory(report, available_bytes(policy.device))

    def train(self) -> dict[str, Any]:
        """Run to the end and return the summary, which is also in summary.json."""
        config, start = self.config, time.monotonic()
        if not self.before:
            self._begin()

        # warnings, which continue those of a resumed run
        identity, rows = config.identity(), self.run.rows
        name, before = rl.name_of(self.config.algorithm), self.before["deployed"]
        monitor = HealthMonitor(name, identity, before, rows)

        # iterations
        with screen.task("training", config.num_iterations, self.iteration) as task:
            progress = TrainingProgress(task, self.env.spec)
            while self.iteration < config.num_iterations:
                metrics = self._iterate()
                out_of_time = time.monotonic() - start > 60 * config.max_minutes
                last = self.iteration == config.num_iterations or out_of_time
                evaluated = last or self.iteration % config.eval_every == 0
                if evaluated:
                    metrics |= self._evaluate()
                self.run.log(self.iteration, metrics)
                if evaluated:  # after its row: a kill in between writes both again
                    self._checkpoint(metrics["success_rate"])
                progress.update(self.iteration, metrics, self.rollouts.num_env_steps)
                for warning in monitor.warnings(self.run.rows):
                    screen.note(f"warning: {warning}")
                if last or metrics.get("success_rate_low", 0.0) >= config.stop_at:
                    break
        return self._finish()

    def _begin(self) -> None:
        """Evaluate and film the policy as it is, print the notes, and save the start."""
        self.before = self._final_evaluation()
        self._film("before")
        for note in (*self.algorithm.notes(), *self._cut_episodes()):
            screen.note(note)
        self._checkpoint()

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
        with update_progress(self.algorithm):
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

    def _checkpoint(self, success_rate: float | None = None) -> None:
        """Save, and begin new episodes as a resumed run would."""
        if success_rate is None:
            success_rate = self.before["deployed"]["success_rate"]
        progress = {
            "success_rate": success_rate,
            "env_steps": self.rollouts.num_env_steps,
            "seconds": self.seconds,
            "before": self.before,
            "clipped": [self.env.num_clipped, self.env.num_entries],
        }
        self.run.save(self.iteration, self.algorithm, progress)
        self.rollouts.restart(self.iteration)

    def _restore(self) -> None:
        progress = self.run.load_latest(self.algorithm)
        self.iteration, self.seconds = progress["iteration"], progress["seconds"]
        self.before = progress["before"]
        self.env.num_clipped, self.env.num_entries = progress["clipped"]
        self.rollouts.num_env_steps = progress["env_steps"]
        self.rollouts.restart(self.iteration)

    def _film(self, name: str) -> None:
        if self.config.video:
            file = self.config.out / f"{name}.mp4"
            record_video(self.config.env, self.algorithm.actor, file, self.config.seed)

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
            "env_steps": self.rollouts.num_env_steps,
            "train_seconds": sum(self.seconds.values()),
            "before": self.before,
            "after": after,
            "seconds": self.seconds,
            "checkpoint": str(self.run.checkpoints()[-1]),
            "best_checkpoint": str(self.run.best_checkpoint()),
        }

        # files
        start = self.before["deployed"]
        learning_curve(self.run.rows, start, self.config.out / "learning_curve.png")
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
    with exit_with_message():
        closing_table(train(parse(arguments(argv))))


if __name__ == "__main__":
    main()
