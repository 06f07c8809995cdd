"""`recap`, iterated on own rollouts, beside cloning of the same data with and without a filter.

    python -m pitune.experiments.benchmarks.learning.iterated --seeds 0 1 2 --out runs/iterated

For each seed it records attempts of an expert that errs at times, and clones them once. From this
clone each arm goes on: in each update it acts, and takes the same number of gradient steps. `bc`
and `filtered` clone the data that `recap` has, all of them or the successful episodes, and
`filtered_bc` clones its own latest successes. All arms play the same test starts after each update.
Results are written into --out as JSON, and the same command goes on where it was interrupted.
`--table` prints the results so far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDictBase

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.learning.iterated_tables import tables
from pitune.experiments.benchmarks.learning.recap import SEGMENT
from pitune.experiments.benchmarks.learning.results import check_settings
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.progress import screen
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.ranges import PositiveFloat, PositiveInt, Seed, Settings, Share
from pitune.rl.algorithms.bc import clone
from pitune.rl.algorithms.recap.episodes import join
from pitune.rl.algorithms.recap.learner import Recap
from pitune.rl.datasets.demonstrations import RandomChunks
from pitune.rl.experience.attempts import collect_attempts
from pitune.rl.experience.demonstrations import IS_PAD

Arm = Literal["bc", "filtered", "filtered_bc", "recap", "inverted"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Iterate `recap` and its controls from one clone of recorded attempts.

    Example:
        >>> BenchmarkConfig(seeds=(0,)).cloning.gradient_steps
        100
    """

    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of attempts, clones and rollouts. The test starts are the same for all."""
    arms: tuple[Arm, ...] = ("bc", "filtered", "filtered_bc", "recap", "inverted")
    """Arms that are run."""
    out: Path = Path("runs/iterated")
    """Folder of attempts, clones and results."""
    env_id: str = "mock/Reach"
    """An environment with an expert."""
    num_envs: PositiveInt = 50
    """Environments that step together."""
    num_attempts: PositiveInt = 100
    """Recorded episodes."""
    error_share: Share = 0.7
    """Share of the expert's segments that are random [-]."""
    clone_steps: PositiveInt = 300
    """Gradient steps of the clone."""
    updates: PositiveInt = 6
    """Updates of each arm."""
    num_chunks: PositiveInt = 10
    """Decisions in each environment before an update."""
    gradient_steps: PositiveInt = 100
    """Steps of cloning in an update."""
    learning_rate: PositiveFloat = 1e-3
    """AdamW's step size, the same in all updates [-]."""
    value_steps: PositiveInt = 100
    """Steps of RECAP's value in an update."""
    advantage_steps: PositiveInt = SEGMENT
    """Control steps of RECAP's advantage."""
    eval_episodes: PositiveInt = 300
    """Test episodes of each seed, after each update."""
    table: bool = False
    """Print the tables of the results in --out, and run nothing."""

    @property
    def env(self) -> envs.EnvConfig:
        """The environment, in this process."""
        return envs.config_for(self.env_id, num_envs=self.num_envs, num_workers=0)

    @property
    def cloning(self) -> rl.BCConfig:
        """The cloning of all arms."""
        return rl.BCConfig(
            gradient_steps=self.gradient_steps,
            minibatch_size=128,
            learning_rate=self.learning_rate,
            decay_steps=0,
            final_fraction=1.0,
        )

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that all results of a folder share."""
        free = ("seeds", "arms", "out", "table")
        return {name: value for name, value in plain(self).items() if name not in free}


class SameData(Recap):
    """Clones the data of `recap` without an indicator: its control at equal data.

    Args:
        config: Settings of `recap`. Those of its value have no use.
        policy: Trained in place.
        solved_only: Whether only successful episodes are cloned.

    Example:
        >>> algorithm = SameData(rl.RecapConfig(), policy, solved_only=True)  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    def __init__(
        self, config: rl.RecapConfig, policy: policies.FlowPolicy, *, solved_only: bool
    ) -> None:
        super().__init__(config, policy)
        self.solved_only = solved_only

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        self._add(rollout)
        data: Any = join(self.recorded, self.own)
        if self.solved_only:
            data = data[data["solved"]]
        chunks = data.select(MODEL_INPUT, "action", IS_PAD, strict=False)
        loss = clone(self.step, RandomChunks(chunks), self.config.cloning.gradient_steps)
        self.num_updates += 1
        return {"decisions": float(len(data)), "flow_loss": loss}


def run(config: BenchmarkConfig) -> None:
    """Run all that is not in --out yet.

    Raises:
        ValueError: --out holds results of other settings.
    """
    torch.set_num_threads(1)
    check_settings(config.out, config.fixed)
    for seed in config.seeds:
        folder = config.out / f"seed_{seed}"
        missing = [arm for arm in config.arms if not (folder / f"{arm}.json").exists()]
        if missing:
            _run_seed(config, folder, seed, missing)


def _run_seed(config: BenchmarkConfig, folder: Path, seed: int, arms: Sequence[Arm]) -> None:
    """Write the record of each arm of a seed, and before them the attempts and their clone."""
    folder.mkdir(exist_ok=True)
    env = envs.make(config.env)
    if not (folder / "clone").exists():
        _clone(config, env, folder, seed)
    for arm in arms:
        start = time.perf_counter()
        torch.manual_seed(seed)
        algorithm = _algorithm(config, folder, arm)
        rollouts = rl.Rollouts(env, algorithm, config.num_chunks, seed)
        metrics, plays = [], {"0": _play(config, env, algorithm)}
        for update in range(1, config.updates + 1):
            metrics.append(algorithm.update(rollouts.collect()))
            plays[str(update)] = _play(config, env, algorithm)
        record = {
            "seed": seed,
            "arm": arm,
            "metrics": metrics,
            "seconds": time.perf_counter() - start,
            "plays": {name: evaluation.summary() for name, evaluation in plays.items()},
        }
        (folder / f"{arm}.json").write_text(json.dumps(record) + "\n")
        screen.note(f"seed {seed}, {arm}: {plays[str(config.updates)]}")
    env.close()


def _clone(config: BenchmarkConfig, env: envs.CheckedEnv, folder: Path, seed: int) -> None:
    """Record attempts, and write the clone of all of them."""
    attempts = collect_attempts(
        env, config.num_attempts, seed, error_share=config.error_share, segment=SEGMENT
    )
    file = folder / "attempts.safetensors"
    attempts.save(file)
    torch.manual_seed(seed)
    policy = policies.small_policy(
        attempts.obs["state"],
        attempts.action,
        action_horizon=SEGMENT,
        sampler=policies.SamplerConfig(execution_horizon=SEGMENT),
    )
    cloning = replace(config.cloning, demonstrations=file, gradient_steps=config.clone_steps)
    algorithm = rl.make(cloning, policy)
    algorithm.update(rl.Rollouts(env, algorithm, 1, seed).collect())
    policies.save(algorithm.deployed_policy(), folder / "clone")


def _algorithm(config: BenchmarkConfig, folder: Path, arm: Arm) -> rl.Algorithm[Any]:
    policy = policies.load(folder / "clone")
    if arm == "filtered_bc":
        return rl.make(rl.FilteredBCConfig(cloning=config.cloning), policy)
    recap = rl.RecapConfig(
        demonstrations=folder / "attempts.safetensors",
        advantage_steps=config.advantage_steps,
        indicator="inverted" if arm == "inverted" else "advantage",
        value_steps=config.value_steps,
        cloning=config.cloning,
    )
    if arm in ("bc", "filtered"):
        return SameData(recap, policy, solved_only=arm == "filtered")
    return rl.make(replace(recap, cloning=replace(recap.cloning, condition_dropout=0.3)), policy)


def _play(
    config: BenchmarkConfig, env: envs.CheckedEnv, algorithm: rl.Algorithm[Any]
) -> rl.Evaluation:
    actor = policies.Actor(algorithm.deployed_policy())
    return rl.evaluate(env, actor, config.eval_episodes, seed=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig,
            arguments(argv),
            prog="python -m pitune.experiments.benchmarks.learning.iterated",
            description=__doc__,
        )
        if config.table:
            print(tables(config.out))
        else:
            run(config)


if __name__ == "__main__":
    main()
