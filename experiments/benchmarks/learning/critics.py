"""Critics of one number beside critics of bins, in `ppo` and in `dsrl`, from the same clones.

    python -m pitune.experiments.benchmarks.learning.critics --seeds 0 1 2 --out runs/critics

For each seed a policy is cloned from a few demonstrations. Each arm fine-tunes this clone, with
critics that predict a number or a distribution over bins of the value, and plays the same test
starts. Results are written into --out as JSON, and the same command goes on where it was
interrupted. `--table` prints the results so far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.learning.results import (
    Play,
    check_settings,
    pairs_table,
    read_records,
    results_of,
    successes_table,
)
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse
from pitune.experiments.reports.table import TextTable
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.progress import screen
from pitune.ranges import PositiveInt, Seed, Settings
from pitune.rl.value_distribution import DistributionConfig, Form

Word = Literal["ppo", "dsrl"]
Critic = Literal["none", "hl_gauss", "two_hot", "nearest"]

AFTER = "after"
"""Name of an arm's evaluation."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Fine-tune clones with critics of one number and of bins.

    Example:
        >>> BenchmarkConfig(seeds=(0,)).env.max_episode_steps
        12
    """

    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of demonstrations, clones and fine-tuning. The test starts are the same for all."""
    algorithms: tuple[Word, ...] = ("ppo", "dsrl")
    """Algorithms that are run, `dsrl` with its variant `sac`."""
    critics: tuple[Critic, ...] = ("none", "hl_gauss", "two_hot")
    """Forms of the critics. "none" is a critic of one number."""
    out: Path = Path("runs/critics")
    """Folder of clones and results."""
    env_id: str = "mock/Reach"
    """An environment with an expert and rewards between 0 and 1."""
    num_envs: PositiveInt = 100
    """Environments that step together."""
    time_limit: PositiveInt = 12
    """Control steps of an episode."""
    num_demonstrations: PositiveInt = 20
    """Episodes that a clone learns from."""
    clone_steps: PositiveInt = 150
    """Gradient steps of a clone."""
    ppo_updates: PositiveInt = 15
    """Updates of `ppo`, of 12 decisions in each environment."""
    dsrl_updates: PositiveInt = 30
    """Updates of `dsrl`, of 2 decisions in each environment."""
    eval_episodes: PositiveInt = 300
    """Test episodes of each seed."""
    table: bool = False
    """Print the tables of the results in --out, and run nothing."""

    @property
    def env(self) -> envs.EnvConfig:
        """The environment, in this process."""
        return envs.config_for(
            self.env_id,
            num_envs=self.num_envs,
            num_workers=0,
            max_episode_steps=self.time_limit,
        )

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that all results of a folder share."""
        free = ("seeds", "algorithms", "critics", "out", "table")
        return {name: value for name, value in plain(self).items() if name not in free}


def run(config: BenchmarkConfig) -> None:
    """Run all that is not in --out yet.

    Raises:
        ValueError: --out holds results of other settings.
    """
    torch.set_num_threads(1)
    check_settings(config.out, config.fixed)
    env = envs.make(config.env)
    for seed in config.seeds:
        folder = config.out / f"seed_{seed}"
        if not (folder / "clone.json").exists():
            policy = _clone(config, env, seed)
            policies.save(policy, folder / "clone")
            _record(config, env, folder, "clone", seed, policy, [])
        for word, form in product(config.algorithms, config.critics):
            if not (folder / f"{word}_{form}.json").exists():
                _fine_tune(config, env, folder, word, form, seed)
    env.close()


def _clone(config: BenchmarkConfig, env: envs.CheckedEnv, seed: int) -> policies.FlowPolicy:
    """Return a clone of the expert."""
    demonstrations = rl.collect_demonstrations(env, config.num_demonstrations, seed=seed)
    file = config.out / f"seed_{seed}" / "demonstrations.safetensors"
    file.parent.mkdir(exist_ok=True)
    demonstrations.save(file)
    torch.manual_seed(seed)
    policy = policies.small_policy(
        demonstrations.obs["state"],
        demonstrations.action,
        action_horizon=4,
        sampler=policies.SamplerConfig(execution_horizon=4),
    )
    steps = config.clone_steps
    cloning = rl.BCConfig(
        demonstrations=file, gradient_steps=steps, decay_steps=steps, minibatch_size=64
    )
    algorithm = rl.make(cloning, policy)
    algorithm.update(rl.Rollouts(env, algorithm, 1, seed).collect())
    return algorithm.deployed_policy()


def _fine_tune(
    config: BenchmarkConfig, env: envs.CheckedEnv, folder: Path, word: Word, form: Form, seed: int
) -> None:
    """Fine-tune a clone with one form of critics, and write the record."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    algorithm = rl.make(_algorithm(word, form), policies.load(folder / "clone"))
    updates, decisions = (config.ppo_updates, 12) if word == "ppo" else (config.dsrl_updates, 2)
    rollouts = rl.Rollouts(env, algorithm, decisions, seed)
    metrics = [algorithm.update(rollouts.collect()) for _ in range(updates)]
    screen.note(f"{time.perf_counter() - start:.0f} s")
    _record(config, env, folder, f"{word}_{form}", seed, algorithm.deployed_policy(), metrics)


def _algorithm(word: Word, form: Form) -> rl.AlgorithmConfig:
    # a sparse reward, so values lie between 0 and 1
    bins = DistributionConfig(form=form, low=0.0, high=1.0)
    if word == "ppo":
        return rl.PPOConfig(critic_distribution=bins)
    return rl.registry.entry("dsrl").variant(
        "sac", rl.DSRLConfig(off_policy=rl.OffPolicyConfig(critic_distribution=bins))
    )


def _record(
    config: BenchmarkConfig,
    env: envs.CheckedEnv,
    folder: Path,
    arm: str,
    seed: int,
    policy: policies.FlowPolicy,
    metrics: list[dict[str, float]],
) -> None:
    """Write the record of an arm."""
    found = rl.evaluate(env, policies.Actor(policy), config.eval_episodes, seed=1)
    record = {"seed": seed, "arm": arm, "metrics": metrics, "plays": {AFTER: found.summary()}}
    (folder / f"{arm}.json").write_text(json.dumps(record) + "\n")
    screen.note(f"seed {seed}, {arm}: {found}")


def tables(out: Path) -> str:
    """Return the results in a folder as Markdown: success, pairs, and explained variance.

    Raises:
        ValueError: the folder has no results.
    """
    records = read_records(out)
    results = results_of(records)
    arms = dict.fromkeys(record["arm"] for record in records)
    rows: dict[str, Play] = {f"`{arm}`": (arm, AFTER) for arm in arms}
    pairs: dict[str, tuple[Play, Play]] = {}
    for arm in arms:
        word, _, form = arm.partition("_")
        if form not in ("", "none"):
            pairs[f"`{arm}` against `{word}_none`"] = (f"{word}_none", AFTER), (arm, AFTER)
    shown = [successes_table(results, rows), pairs_table(results, pairs), _variances(records)]
    return "\n\n".join(table.markdown() for table in shown)


def _variances(records: Sequence[Mapping[str, Any]]) -> TextTable:
    """Return the mean explained variance of each arm's last third of updates, by seed."""
    rows: dict[str, list[str]] = {}
    for record in records:
        found = [metrics.get("explained_variance") for metrics in record["metrics"]]
        last = [value for value in found[-(len(found) // 3) :] if value is not None]
        if last:
            text = f"{record['seed']}: {sum(last) / len(last):.3f}"
            rows.setdefault(record["arm"], []).append(text)
    cells = [(f"`{arm}`", ", ".join(texts)) for arm, texts in rows.items()]
    return TextTable("", ("arm", "`explained_variance`, last third of the updates"), cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig,
            arguments(argv),
            prog="python -m pitune.experiments.benchmarks.learning.critics",
            description=__doc__,
        )
        if config.table:
            print(tables(config.out))
        else:
            run(config)


if __name__ == "__main__":
    main()
