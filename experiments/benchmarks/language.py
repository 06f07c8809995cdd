"""One policy with words on several tasks: cloned, fine-tuned, and evaluated with wrong words.

    python -m pitune.experiments.benchmarks.language --seeds 0 1 2 --out runs/language

For each seed it clones the experts' demonstrations of a suite, evaluates the clone with its own and
with exchanged instructions, fine-tunes it by each algorithm, and evaluates the results in the same
way. Each evaluation is written into --out as JSON, and the same command goes on where it was
interrupted. `--table` prints the results so far.
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
from pitune.experiments.benchmarks.learning.results import check_settings
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.experiments.reports.task_table import rate_text
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.progress import screen
from pitune.ranges import PositiveInt, Seed, Settings
from pitune.rl.evaluation.instructions import shuffled_instructions

SUITE = "metaworld/[reach-v3,push-v3,pick-place-v3,reach-wall-v3,pick-place-wall-v3]"
"""Tasks that share their scene. Reach and pick-place have the same starts and goals too, so that
only the words distinguish them."""
Word = Literal["ppo", "dsrl"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Clone a policy with words, fine-tune it, and exchange its instructions.

    Example:
        >>> BenchmarkConfig(seeds=(0,)).decisions("ppo")
        75000
    """

    suite: str = SUITE
    """The tasks."""
    num_envs: PositiveInt = 50
    """Environments that step together, in this process."""
    out: Path = Path("runs/language")
    """Folder of clones and results."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of demonstrations, clone and fine-tuning. The test starts are the same for all."""
    algorithms: tuple[Word, ...] = ("ppo", "dsrl")
    """Algorithms that fine-tune each clone."""
    num_demonstrations: PositiveInt = 6
    """Demonstrations of each task."""
    gradient_steps: PositiveInt = 1000
    """Steps of cloning."""
    ppo_iterations: PositiveInt = 30
    """Rollouts of `ppo`, of 50 decisions in each environment."""
    dsrl_iterations: PositiveInt = 36
    """Rollouts of `dsrl`, of 5 decisions in each environment."""
    eval_episodes: PositiveInt = 40
    """Test episodes of each task."""
    table: bool = False
    """Print the table of the results in --out, and run nothing."""

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that all results of a folder share."""
        free = ("seeds", "algorithms", "out", "table")
        return {name: value for name, value in plain(self).items() if name not in free}

    @property
    def env(self) -> envs.EnvConfig:
        """The environment."""
        return envs.config_for(
            self.suite, num_envs=self.num_envs, num_workers=0, max_episode_steps=100
        )

    def decisions(self, word: Word) -> int:
        """Return the decisions of a fine-tuning."""
        iterations = self.ppo_iterations if word == "ppo" else self.dsrl_iterations
        return iterations * num_chunks(word) * self.num_envs


def num_chunks(word: Word) -> int:
    """Return the decisions of each environment in a rollout."""
    return 50 if word == "ppo" else 5


def run(config: BenchmarkConfig) -> None:
    """Run all that is not in --out yet.

    Raises:
        ValueError: --out holds results of other settings.
    """
    torch.set_num_threads(1)
    check_settings(config.out, config.fixed)
    env: envs.CheckedEnv | None = None
    for seed in config.seeds:
        folder = config.out / f"seed_{seed}"
        if not (folder / "clone" / "pretrained").exists():
            pretrain(
                PretrainConfig(
                    env=config.env,
                    num_demonstrations=config.num_demonstrations,
                    gradient_steps=config.gradient_steps,
                    words=True,
                    out=folder / "clone",
                    seed=seed,
                )
            )
        env = env or envs.make(config.env)
        policy = policies.load(folder / "clone" / "pretrained")
        _evaluate_both(config, env, policy, folder, "clone", {})
        for word in config.algorithms:
            if not (folder / f"{word}_shuffled.json").exists():
                policy = policies.load(folder / "clone" / "pretrained")
                cost = _fine_tune(config, env, policy, word, seed, folder)
                policy = policies.load(folder / word)
                _evaluate_both(config, env, policy, folder, word, cost)
    if env is not None:
        env.close()


def _fine_tune(
    config: BenchmarkConfig,
    env: envs.CheckedEnv,
    policy: policies.FlowPolicy,
    word: Word,
    seed: int,
    folder: Path,
) -> dict[str, float]:
    """Fine-tune a clone, save it, and return the steps and the time that it took."""
    torch.manual_seed(seed)
    algorithm = rl.make(rl.preset(word), policy)
    rollouts = rl.Rollouts(env, algorithm, num_chunks(word), seed)
    start = time.process_time()
    iterations = config.ppo_iterations if word == "ppo" else config.dsrl_iterations
    with (folder / f"{word}.jsonl").open("w") as log:
        for iteration in range(1, iterations + 1):
            rollout = rollouts.collect()
            metrics = algorithm.update(rollout) | rl.rollout_metrics(rollout)
            metrics |= {"env_steps": rollouts.num_env_steps, "cpu": time.process_time() - start}
            log.write(json.dumps({"iteration": iteration, **metrics}) + "\n")
            log.flush()
    policies.save(algorithm.deployed_policy(), folder / word)
    return {"env_steps": rollouts.num_env_steps, "cpu_seconds": time.process_time() - start}


def _evaluate_both(
    config: BenchmarkConfig,
    env: envs.CheckedEnv,
    policy: policies.FlowPolicy,
    folder: Path,
    name: str,
    cost: dict[str, float],
) -> None:
    """Evaluate with each task's own words and with those of another task."""
    actor = policies.Actor(policy)
    spec = env.spec
    for suffix, words in (("", spec.tasks), ("_shuffled", shuffled_instructions(spec.tasks, 0))):
        file = folder / f"{name}{suffix}.json"
        if file.exists():
            continue
        env.spec = replace(spec, tasks=words)
        try:
            outcome = rl.evaluate(env, actor, config.eval_episodes * len(spec.tasks), seed=0)
        finally:
            env.spec = spec
        record = {"instructions": words, "tasks": spec.task_names, **cost, **outcome.summary()}
        file.write_text(json.dumps(record, indent=2) + "\n")
        screen.note(f"{file}: {outcome}")


def table(out: Path) -> str:
    """Return the results in a folder as Markdown: a row per task and policy, over all seeds."""
    lines = ["| policy | words | task | seeds | success |", "|---|---|---|--:|---|"]
    for name in ("clone", "ppo", "dsrl"):
        for suffix in ("", "_shuffled"):
            records = [
                json.loads(f.read_text()) for f in sorted(out.glob(f"*/{name}{suffix}.json"))
            ]
            if records:
                lines += _rows(name, "exchanged" if suffix else "own", records)
    return "\n".join(lines)


def _rows(name: str, words: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """Return a row for each task, and one for all of them."""
    counts = {
        task: [sum(record["by_task"][str(i)][k] for record in records) for k in (0, 1)]
        for i, task in enumerate(records[0]["tasks"])
    }
    counts["all"] = [sum(count[k] for count in counts.values()) for k in (0, 1)]
    rows = []
    for task, (successes, num) in counts.items():
        rate = rate_text(successes, num)
        rows.append(f"| {name} | {words} | {task} | {len(records)} | {rate} |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig,
            arguments(argv),
            prog="python -m pitune.experiments.benchmarks.language",
            description=__doc__,
        )
        if config.table:
            print(table(config.out))
        else:
            run(config)


if __name__ == "__main__":
    main()
