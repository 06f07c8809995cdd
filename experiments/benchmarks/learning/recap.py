"""`recap`, `bc` and `bc` on successes, from the same recorded attempts of mixed quality.

    python -m pitune.experiments.benchmarks.learning.recap --seeds 0 1 2 --out runs/attempts

For each seed it records attempts of an expert that errs at times, and clones them in five arms:
all of them, the successful ones, and all under RECAP's indicator or one of its two controls. Each
arm plays the same test starts, `recap` with several scales of guidance too. Results are written
into --out as JSON, and the same command goes on where it was interrupted. `--table` prints the
results so far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.learning.recap_tables import DEPLOYED, tables
from pitune.experiments.benchmarks.learning.results import check_settings
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.progress import screen
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.ranges import PositiveInt, Seed, Settings, Share
from pitune.rl.experience.attempts import collect_attempts
from pitune.rl.experience.demonstrations import Demonstrations

Arm = Literal["bc", "filtered", "recap", "inverted", "shuffled"]

SEGMENT = 4
"""Steps of a segment of the expert and of a chunk [control steps]."""
GUIDANCE = {
    "negative": GuidanceConfig(advantage="negative"),
    **{f"s = {s:g}": GuidanceConfig(scale=s) for s in (-1, 0, 0.5, 1, 2, 4, 8)},
    **{f"apg, s = {s:g}": GuidanceConfig(scale=s, form="apg") for s in (1, 2, 4, 8)},
}
"""Everything that `recap` acts with."""
FEW = ("negative", DEPLOYED, "s = 1")
"""Guidances without the sweep."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Clone recorded attempts with and without an indicator of their advantage.

    Example:
        >>> BenchmarkConfig(seeds=(0,)).cloning.decay_steps
        600
    """

    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of attempts and clones. The test starts are the same for all."""
    arms: tuple[Arm, ...] = ("bc", "filtered", "recap", "inverted", "shuffled")
    """Arms that are run."""
    out: Path = Path("runs/attempts")
    """Folder of attempts and results."""
    env_id: str = "mock/Reach"
    """An environment with an expert."""
    num_envs: PositiveInt = 50
    """Environments that step together."""
    num_attempts: PositiveInt = 200
    """Recorded episodes."""
    error_share: Share = 0.7
    """Share of the expert's segments that are random [-]."""
    gradient_steps: PositiveInt = 600
    """Steps of cloning."""
    value_steps: PositiveInt = 200
    """Steps of RECAP's value."""
    advantage_steps: PositiveInt = SEGMENT
    """Control steps of RECAP's advantage."""
    sweep: bool = True
    """Whether `recap` plays with all scales of guidance, or with 0 and 1 alone."""
    eval_episodes: PositiveInt = 300
    """Test episodes of each seed."""
    table: bool = False
    """Print the tables of the results in --out, and run nothing."""

    @property
    def env(self) -> envs.EnvConfig:
        """The environment, in this process."""
        return envs.config_for(self.env_id, num_envs=self.num_envs, num_workers=0)

    @property
    def cloning(self) -> rl.BCConfig:
        """The cloning of all arms."""
        steps = self.gradient_steps
        return rl.BCConfig(gradient_steps=steps, minibatch_size=128, decay_steps=steps)

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that all results of a folder share."""
        free = ("seeds", "arms", "out", "table")
        return {name: value for name, value in plain(self).items() if name not in free}


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
    """Record the attempts of a seed, and write the record of each arm."""
    folder.mkdir(exist_ok=True)
    env = envs.make(config.env)
    attempts = collect_attempts(
        env, config.num_attempts, seed, error_share=config.error_share, segment=SEGMENT
    )
    solved = attempts.chosen(attempts.solved())
    attempts.save(folder / "attempts.safetensors")
    solved.save(folder / "solved.safetensors")
    for arm in arms:
        start = time.perf_counter()
        metrics, policy = _trained(config, env, folder, arm, seed, attempts)
        plays = (tuple(GUIDANCE) if config.sweep else FEW) if arm == "recap" else (DEPLOYED,)
        found = {name: _play(config, env, policy, GUIDANCE[name]) for name in plays}
        record = {
            "seed": seed,
            "arm": arm,
            "attempts": attempts.num_episodes,
            "solved_attempts": solved.num_episodes,
            "steps": len(attempts.action),
            "metrics": metrics,
            "seconds": time.perf_counter() - start,
            "plays": {name: evaluation.summary() for name, evaluation in found.items()},
        }
        (folder / f"{arm}.json").write_text(json.dumps(record) + "\n")
        screen.note(f"seed {seed}, {arm}: {found[DEPLOYED]}")
    env.close()


def _trained(
    config: BenchmarkConfig,
    env: envs.CheckedEnv,
    folder: Path,
    arm: Arm,
    seed: int,
    attempts: Demonstrations,
) -> tuple[dict[str, float], policies.FlowPolicy]:
    """Return the metrics and the policy of an arm."""
    # the same initial weights in all arms
    torch.manual_seed(seed)
    policy = policies.small_policy(
        attempts.obs["state"],
        attempts.action,
        action_horizon=SEGMENT,
        sampler=policies.SamplerConfig(execution_horizon=SEGMENT),
    )
    algorithm = rl.make(_algorithm(config, folder, arm), policy)
    # an empty rollout, because no arm acts while it learns
    metrics = algorithm.update(rl.Rollouts(env, algorithm, 1, seed).collect())
    return metrics, algorithm.deployed_policy()


def _algorithm(config: BenchmarkConfig, folder: Path, arm: Arm) -> rl.AlgorithmConfig:
    attempts = folder / "attempts.safetensors"
    if arm == "bc":
        return replace(config.cloning, demonstrations=attempts)
    if arm == "filtered":
        return replace(config.cloning, demonstrations=folder / "solved.safetensors")
    return rl.RecapConfig(
        demonstrations=attempts,
        rollouts=False,
        advantage_steps=config.advantage_steps,
        indicator="advantage" if arm == "recap" else arm,
        value_steps=config.value_steps,
        cloning=replace(config.cloning, condition_dropout=0.3),
    )


def _play(
    config: BenchmarkConfig,
    env: envs.CheckedEnv,
    policy: policies.FlowPolicy,
    guidance: GuidanceConfig,
) -> rl.Evaluation:
    policy = policy.replace(sampler=replace(policy.sampler, guidance=guidance))
    return rl.evaluate(env, policies.Actor(policy), config.eval_episodes, seed=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig,
            arguments(argv),
            prog="python -m pitune.experiments.benchmarks.learning.recap",
            description=__doc__,
        )
        if config.table:
            print(tables(config.out))
        else:
            run(config)


if __name__ == "__main__":
    main()
