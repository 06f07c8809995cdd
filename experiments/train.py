"""Fine-tune a pretrained policy in simulation.

    python -m experiments.train ppo --env.id mujoco/PickCube --checkpoint runs/pick/pretrained \
        --seed 1 --num-iterations 100 --out runs/pick/ppo
    python -m experiments.train filtered_bc --help

Another word for `ppo` is another algorithm. `--resume` goes on with the run in `--out`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pitune import envs, policies, rl
from pitune.experiments.errors import exit_with_message
from pitune.experiments.listing import algorithm_lines
from pitune.experiments.parsing import arguments, default_env, program, wants_help
from pitune.experiments.parsing import parse as parse_config
from pitune.experiments.recipes import with_variant
from pitune.experiments.runs.report import TrainingBar, closing_table, learning_curve
from pitune.experiments.runs.run import Run, WandbMode, plain
from pitune.experiments.runs.video import record_video
from pitune.policies.finetuning.memory import available_bytes, check_memory, parameter_report


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a pretrained policy in simulation."""

    algorithm: rl.AlgorithmConfig
    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    checkpoint: Path = Path("runs/quickstart/pretrained")
    """Folder of the pretrained policy: ours, openpi's, lerobot's or orbax."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """What a checkpoint of another format does not hold."""
    finetune: policies.FinetuneConfig = field(default_factory=policies.FinetuneConfig)
    """Which parameters are trained, and how memory is saved."""
    out: Path = Path("runs/latest")
    """New folder for the config, the metrics and the checkpoints."""
    seed: int = 0
    """Seed of the policy's noise and of the environments' starts."""
    num_iterations: int = 100
    """Rollouts to collect and learn from. After the last one new episodes begin, so a run that is
    resumed beyond it equals an uninterrupted one only from a multiple of `eval_every`."""
    num_chunks: int = 41
    """Chunk decisions per environment in one rollout."""
    eval_every: int = 20
    """Iterations between evaluations, each of which also saves a checkpoint."""
    eval_episodes: int = 200
    """Episodes per evaluation; a multiple of the number of environments."""
    max_minutes: float = float("inf")
    """Stop after the iteration in which this much time has gone into training [min]."""
    wandb: WandbMode = "offline"
    """Where Weights & Biases metrics go; `offline` writes them into --out."""
    stop_at: float = 1.0
    """End when the lower end of the validation's interval reaches this success rate [-]."""
    video: bool = True
    """Whether to film the policy before and after, where the machine can render."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the policy computes."""
    torch_threads: int = 1
    """Threads of PyTorch on the CPU. A small policy gains nothing from more, and if it is fixed
    the numbers do not depend on how many cores there are; raise it for large networks."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""

    def __post_init__(self) -> None:
        for name in (
            "num_iterations",
            "num_chunks",
            "eval_every",
            "eval_episodes",
            "torch_threads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def identity(self) -> dict[str, Any]:
        """Return what makes two runs the same run: everything but where it stops and reports."""
        values: dict[str, Any] = plain(self)
        for name in ("resume", "num_iterations", "max_minutes", "stop_at", "wandb", "video", "out"):
            values.pop(name)
        return {"algorithm_name": rl.name_of(self.algorithm), **values}


class Trainer:
    """One run: the loop between collecting and learning, and the state that resuming needs."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.torch_threads)
        open_run = Run.resume if config.resume else Run.create
        policy = policies.load(config.checkpoint, config.load).to(config.device)
        policies.apply_finetuning(policy, config.finetune)
        self.algorithm = rl.make(config.algorithm, policy)
        self._check_memory()
        self.env = envs.make(config.env)
        rl.check_fit(policy, self.env.spec)
        rl.check_needs(self.algorithm, self.env.spec)
        if config.eval_episodes % config.env.num_envs:
            raise ValueError(
                f"eval_episodes={config.eval_episodes} must be a multiple of "
                f"num_envs={config.env.num_envs}"
            )
        self.run = open_run(config.out, config.identity(), config.wandb)
        self.rollouts = rl.Rollouts(self.env, self.algorithm, config.num_chunks, config.seed)
        self.iteration = 0
        self.seconds = dict.fromkeys(("simulator", "policy", "update", "evaluation"), 0.0)
        self.before: dict[str, Any] = {}
        if config.resume:
            self._restore()

    def _check_memory(self) -> None:
        """Say what is trained and what that needs, and refuse what cannot fit."""
        policy = self.algorithm.actor.policy
        report = parameter_report(policy, self.config.algorithm.policy_minibatch)
        if policy.network.vlm is not None:
            Console(stderr=True).print(report.table())
        check_memory(report, available_bytes(policy.device))

    def train(self) -> dict[str, Any]:
        """Run to the end and return the summary, which is also in summary.json."""
        config, start = self.config, time.monotonic()
        if not self.before:
            self.before = self._final_evaluation()
            self._film("before")
            for note in (*self.algorithm.notes(), *self._cut_episodes()):
                Console(stderr=True).print(note, markup=False, highlight=False)
            self._checkpoint()
        with TrainingBar(config.num_iterations, self.iteration) as bar:
            while self.iteration < config.num_iterations:
                metrics = self._iterate()
                out_of_time = time.monotonic() - start > 60 * config.max_minutes
                last = self.iteration == config.num_iterations or out_of_time
                evaluated = last or self.iteration % config.eval_every == 0
                if evaluated:
                    metrics |= self._evaluate()
                self.run.log(self.iteration, metrics)
                if evaluated:  # after its row: what is killed in between writes both again
                    self._checkpoint(metrics["success_rate"])
                bar.update(self.iteration, metrics, self.rollouts.num_env_steps, self.env.spec)
                if last or metrics.get("success_rate_low", 0.0) >= config.stop_at:
                    break
        return self._finish()

    def _cut_episodes(self) -> list[str]:
        """Return a note if episodes begin anew, as they do at each evaluation, before they end."""
        horizon = self.algorithm.actor.policy.sampler.execution_horizon
        steps = self.config.eval_every * self.rollouts.num_chunks * horizon
        limit = self.env.spec.max_episode_steps
        if steps >= limit or not self.algorithm.needs.rollouts:
            return []
        return [
            f"episodes begin anew at each evaluation, after {steps} steps, but may last {limit}: "
            "their ends are never learned from. Raise eval_every or num_chunks"
        ]

    def _iterate(self) -> dict[str, float]:
        """Collect a rollout, learn from it, and return the metrics of both."""
        seconds, steps = dict(self.seconds), self.rollouts.num_env_steps
        start = time.perf_counter()
        rollout = self.rollouts.collect()
        collected = time.perf_counter()
        metrics = self.algorithm.update(rollout)
        simulator = self.rollouts.simulator_seconds
        self.seconds["simulator"] += simulator
        self.seconds["policy"] += collected - start - simulator
        self.seconds["update"] += time.perf_counter() - collected
        self.iteration += 1
        phases = {f"seconds/{key}": self.seconds[key] - seconds[key] for key in self.seconds}
        metrics |= rl.rollout_metrics(rollout) | phases
        metrics["env_steps"] = float(self.rollouts.num_env_steps)
        metrics["env_steps_per_second"] = (self.rollouts.num_env_steps - steps) / (
            collected - start
        )
        metrics["action_clip_fraction"] = self.env.num_clipped / max(1, self.env.num_entries)
        return metrics

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on the validation starts and return the metrics."""
        start = time.perf_counter()
        evaluation = rl.evaluate(
            self.env,
            self.algorithm.actor,
            self.config.eval_episodes,
            seed=self.config.seed,
            split="validation",
        )
        seconds = time.perf_counter() - start
        self.seconds["evaluation"] += seconds
        low, high = evaluation.interval
        return {
            "success_rate": evaluation.success_rate,
            "success_rate_low": low,
            "success_rate_high": high,
            "seconds/evaluation": seconds,
        }

    def _checkpoint(self, success_rate: float | None = None) -> None:
        """Save, and begin new episodes as a resumed run would."""
        progress = {
            "success_rate": self.before["ode"]["success_rate"]
            if success_rate is None
            else success_rate,
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

    def _final_evaluation(self) -> dict[str, Any]:
        """Evaluate on the test starts, as deployed and as it explores."""
        start = time.perf_counter()
        result = {
            name: rl.evaluate(
                self.env,
                self.algorithm.actor,
                self.config.eval_episodes,
                seed=self.config.seed,
                stochastic=name == "stochastic",
            ).summary()
            for name in ("ode", "stochastic")
        }
        self.seconds["evaluation"] += time.perf_counter() - start
        return result

    def _film(self, name: str) -> None:
        if self.config.video:
            file = self.config.out / f"{name}.mp4"
            record_video(self.config.env, self.algorithm.actor, file, self.config.seed)

    def _finish(self) -> dict[str, Any]:
        """Evaluate, report and close; return the summary."""
        after = self._final_evaluation()
        self._film("after")
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
        learning_curve(self.run.rows, self.before["ode"], self.config.out / "learning_curve.png")
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
        algorithm = with_variant(rl.preset(name.partition(":")[0]), name)
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
