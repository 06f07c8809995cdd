"""Drift of a language model under reinforcement learning, with and without knowledge insulation.

    python -m pitune.experiments.benchmarks.insulation --seeds 0 1 2 --out runs/insulation

For each seed it clones two tasks together with questions about words. Then `ppo` fine-tunes the
clone three times: as it is, with insulation, and with insulation and the loss of the trained
questions beside the policy gradient. The language loss of questions that were never trained is
measured before and after. Results are written into --out as JSON, and the same command
goes on where it was interrupted. `--table` prints the results so far.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from pitune import envs, policies, rl
from pitune.envs.mock.registration import MockOptions
from pitune.experiments.benchmarks.learning.results import check_settings
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.experiments.reports.task_table import rate_text
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.progress import screen
from pitune.policies.network.options.insulation import InsulationConfig
from pitune.policies.network.options.language_head import LanguageHeadConfig
from pitune.ranges import PositiveInt, Seed, Settings
from pitune.rl.cloning.text_set import held_out_loss

WORDS = (
    ("reach", "find", "touch", "visit"),
    ("green", "red"),
    ("goal", "target", "square", "point"),
)
"""Verbs, colors and things of the questions."""
NAMES = ("verb", "color", "thing")
ARMS = ("plain", "insulated", "regularized")
"""Fine-tuning as it is, with insulation, and with insulation and the language loss beside it."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Measure the drift of a language model under `ppo`.

    Example:
        >>> BenchmarkConfig(seeds=(0,)).num_envs
        20
    """

    num_envs: PositiveInt = 20
    """Environments that step together."""
    out: Path = Path("runs/insulation")
    """Folder of texts, clones and results."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of demonstrations, clone and fine-tuning."""
    num_demonstrations: PositiveInt = 60
    """Demonstrations, of both tasks together."""
    gradient_steps: PositiveInt = 300
    """Steps of cloning."""
    iterations: PositiveInt = 15
    """Rollouts of `ppo`, of 10 decisions in each environment."""
    eval_episodes: PositiveInt = 200
    """Test episodes."""
    table: bool = False
    """Print the table of the results in --out, and run nothing."""

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that all results of a folder share."""
        free = ("seeds", "out", "table")
        return {name: value for name, value in plain(self).items() if name not in free}

    @property
    def env(self) -> envs.EnvConfig:
        """The environment: two goals, of which the words name one."""
        options = MockOptions(num_tasks=2)
        return envs.EnvConfig(
            id="mock/Reach", num_envs=self.num_envs, num_workers=0, options=options
        )


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Write questions to learn, and others to measure the language loss on."""
    questions = [
        {"prompt": f"which {name} in: {' the '.join((verb, f'{color} {thing}'))}?", "answer": word}
        for verb, color, thing in product(*WORDS)
        for name, word in zip(NAMES, (verb, color, thing), strict=True)
    ]
    # three quarters to learn, the others for the language loss
    random.Random(0).shuffle(questions)
    num_train = 3 * len(questions) // 4
    files = folder / "train.jsonl", folder / "test.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    for file, part in zip(files, (questions[:num_train], questions[num_train:]), strict=True):
        file.write_text("".join(json.dumps(question) + "\n" for question in part))
    return files


def run(config: BenchmarkConfig) -> None:
    """Run all that is not in --out yet.

    Raises:
        ValueError: --out holds results of other settings.
    """
    torch.set_num_threads(1)
    check_settings(config.out, config.fixed)
    train, test = write_texts(config.out)
    env = envs.make(config.env)
    for seed in config.seeds:
        folder = config.out / f"seed_{seed}"
        if not (folder / "clone" / "pretrained").exists():
            _clone(config, seed, folder, train)
        _record(config, env, policies.load(folder / "clone" / "pretrained"), folder, "clone", test)
        for arm in ARMS:
            if not (folder / f"{arm}.json").exists():
                policy = _fine_tuned(config, env, folder, arm, seed, train)
                _record(config, env, policy, folder, arm, test)
    env.close()


def _clone(config: BenchmarkConfig, seed: int, folder: Path, texts: Path) -> None:
    head = LanguageHeadConfig(enabled=True)
    pretrain(
        PretrainConfig(
            env=config.env,
            num_demonstrations=config.num_demonstrations,
            gradient_steps=config.gradient_steps,
            minibatch_size=64,
            words=True,
            vlm=policies.SmallVLMConfig(max_tokens=20),
            network_options=policies.NetworkOptions(language_head=head),
            language=rl.LanguageLossConfig(text=texts, text_weight=1.0),
            out=folder / "clone",
            seed=seed,
        )
    )


def _fine_tuned(
    config: BenchmarkConfig,
    env: envs.CheckedEnv,
    folder: Path,
    arm: str,
    seed: int,
    texts: Path,
) -> policies.FlowPolicy:
    """Return a clone that `ppo` has fine-tuned."""
    # the arms differ in these options alone
    insulation = InsulationConfig(enabled=arm != "plain")
    language = rl.LanguageRegularizationConfig()
    if arm == "regularized":
        language = rl.LanguageRegularizationConfig(text=texts, text_weight=1.0)
    load = policies.LoadConfig(options=policies.NetworkOptions(insulation=insulation))
    policy = policies.load(folder / "clone" / "pretrained", load)
    torch.manual_seed(seed)
    update = rl.UpdateConfig(minibatch_size=64)
    settings = rl.PPOConfig(update=update, critic_warmup=1, language=language)
    algorithm = rl.make(settings, policy)
    rollouts = rl.Rollouts(env, algorithm, 10, seed)
    for _ in range(config.iterations):
        algorithm.update(rollouts.collect())
    return algorithm.deployed_policy()


def _record(
    config: BenchmarkConfig,
    env: envs.CheckedEnv,
    policy: policies.FlowPolicy,
    folder: Path,
    name: str,
    test: Path,
) -> None:
    """Write success and language loss of a policy."""
    file = folder / f"{name}.json"
    if file.exists():
        return
    outcome = rl.evaluate(env, policies.Actor(policy), config.eval_episodes, seed=0)
    record = {"language_loss": held_out_loss(policy, test), **outcome.summary()}
    record.pop("rows")
    file.write_text(json.dumps(record, indent=2) + "\n")
    screen.note(f"{file}: language loss {record['language_loss']:.4f}, {outcome}")


def table(out: Path) -> str:
    """Return the results in a folder as Markdown, over all seeds."""
    lines = [
        "| policy | seeds | language loss [nats] | drift [nats] | success |",
        "|---|--:|---|---|---|",
    ]
    for name in ("clone", *ARMS):
        files = sorted(out.glob(f"seed_*/{name}.json"))
        records: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
        if not records:
            continue
        # drift of each seed, against its own clone
        before = [json.loads((file.parent / "clone.json").read_text()) for file in files]
        losses = [record["language_loss"] for record in records]
        drifts = [a - b["language_loss"] for a, b in zip(losses, before, strict=True)]
        successes, num = (
            sum(record[key] for record in records) for key in ("successes", "episodes")
        )
        rate = rate_text(successes, num)
        lines.append(f"| {name} | {len(files)} | {_spread(losses)} | {_spread(drifts)} | {rate} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation over the seeds."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.3f} ± {deviation:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            BenchmarkConfig,
            arguments(argv),
            prog="python -m pitune.experiments.benchmarks.insulation",
            description=__doc__,
        )
        if config.table:
            print(table(config.out))
        else:
            run(config)


if __name__ == "__main__":
    main()
