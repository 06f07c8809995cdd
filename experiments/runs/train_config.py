"""Settings of a training, and the command line options that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from pitune import envs, policies, rl
from pitune.experiments.recipes import algorithm_word, preset
from pitune.experiments.runs.config_file import plain
from pitune.experiments.runs.loggers.logger import LoggerName
from pitune.experiments.runs.run import WandbMode
from pitune.ranges import (
    DeviceName,
    PositiveInt,
    PositiveOrInfinite,
    Range,
    Seed,
    Settings,
    Threads,
)

DEFAULT_OUT = Path("runs/latest")
"""Folder of a run that names none."""
LIMITS = ("num_iterations", "max_minutes", "stop_at")
"""Settings that only end a run."""
REPORTS = ("save_minutes", "logger", "wandb", "video")
"""Settings of a run's reports and checkpoints, which change no number."""
SUBCOMMANDS = {"finetune.lora": "finetune.lora:lo-ra-config"}
"""Blocks that are absent by default, and the word that adds them on the command line."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Fine-tune a pretrained policy in simulation.

    Example:
        >>> config = TrainConfig(algorithm=rl.PPOConfig(), num_iterations=10)
        >>> config.identity()["algorithm_name"], config.limits()["num_iterations"]
        ('ppo', 10)
    """

    algorithm: rl.AlgorithmConfig
    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    checkpoint: Path = Path("runs/quickstart/mujoco-PickCube/seed_0/pretrained")
    """Folder of the pretrained policy: ours, openpi's, lerobot's or orbax."""
    load: policies.LoadConfig = field(default_factory=policies.LoadConfig)
    """Settings that a checkpoint of another format lacks."""
    finetune: policies.FinetuneConfig = field(default_factory=policies.FinetuneConfig)
    """Which parameters are trained, and how memory is saved."""
    delay: policies.DelayConfig = field(default_factory=policies.DelayConfig)
    """Steps that the robot executes before a new chunk arrives, in training and validation."""
    out: Path = DEFAULT_OUT
    """New folder for the config, the metrics and the checkpoints."""
    seed: Seed = 0
    """Seed of the policy's noise and of the environments' starts."""
    num_iterations: PositiveInt = 100
    """Rollouts to collect and learn from. New episodes begin after the last one, so a run that is
    resumed beyond it equals an uninterrupted run only from a multiple of `eval_every`."""
    num_chunks: PositiveInt = 41
    """Chunk decisions per environment in one rollout."""
    act_while_learning: bool = False
    """Whether a second process collects the next rollout during each update (`dsrl`, `wsrl`,
    `dgn`). Its actions are one update old. Not reproducible: a resumed run begins new episodes."""
    eval_every: PositiveInt = 20
    """Iterations between evaluations, each of which also saves a checkpoint. New episodes begin
    after it."""
    eval_episodes: PositiveInt = 200
    """Episodes per evaluation."""
    max_minutes: PositiveOrInfinite = float("inf")
    """Stop after the iteration that reaches this training time [min]."""
    save_minutes: PositiveOrInfinite = 30.0
    """Time after which a checkpoint is due between two evaluations [min]. It changes no number."""
    logger: LoggerName = "wandb"
    """Program that shows the metrics besides metrics.csv: `wandb`, `tensorboard` (event files in
    --out) or `trackio`."""
    wandb: WandbMode = "offline"
    """Weights & Biases, if it is the logger: `offline` writes its files into --out."""
    stop_at: Annotated[float, Range(low=0, low_open=True, high=1)] = 1.0
    """Stop when the lower end of the validation interval, in which broken episodes are failures,
    reaches this success rate [-]."""
    video: bool = True
    """Whether to film the policy before and after training, if the machine can render."""
    device: DeviceName = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the policy."""
    shard: bool = False
    """Whether the ranks of torchrun split the weights, gradients and optimizer of the policy
    (FSDP), for full fine-tuning of a π0 that does not fit one device. Needs several ranks."""
    torch_threads: Threads = 1
    """Threads of PyTorch on the CPU. A fixed number makes results independent of the number of
    cores, and a small policy gains nothing from more. Raise it for large networks."""
    compile: bool = False
    """Whether to compile the policy with `torch.compile`. It takes a minute or more before the
    first iterations, and needs a C++ compiler."""
    resume: bool = False
    """Continue the run in --out from its latest checkpoint. On the command line the run's own
    settings are the defaults, and its folder may follow: `--resume runs/pick/ppo`."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that identify a run: all but its limits and its reports."""
        kind = envs.prefixes()[self.env.prefix]  # its defaults stand for a plain `EnvOptions`
        env = replace(self.env, options=self.env.typed_options(kind))
        values: dict[str, Any] = plain(replace(self, env=env))
        for name in (*LIMITS, *REPORTS, "resume", "out"):
            values.pop(name)
        return {"algorithm_name": algorithm_word(self.algorithm), **values}

    def defaults(self) -> dict[str, Any]:
        """Return the identity of a run with the same algorithm and environment, all else default.

        They stand for settings that a run of an older version lacks.
        """
        algorithm = preset(algorithm_word(self.algorithm))
        return TrainConfig(algorithm=algorithm, env=envs.config_for(self.env.id)).identity()

    def limits(self) -> dict[str, Any]:
        """Return the settings that only end a run."""
        return {name: plain(getattr(self, name)) for name in LIMITS}

    def limit_reached(
        self, iteration: int, rows: Sequence[Mapping[str, Any]], out_of_time: bool = False
    ) -> str:
        """Return the limit that ends a run, in words, or nothing while it goes on.

        Args:
            iteration: Iterations so far.
            rows: Of metrics.csv, up to this iteration.
            out_of_time: Whether `max_minutes` are over.
        """
        row = rows[-1] if rows else {}
        # broken episodes are failures; absent from rows of pitune 0.2 and before
        low = row.get("success_rate_low_all", row.get("success_rate_low"))
        if low is not None and low >= self.stop_at:
            return (
                f"the interval of the validation episodes is above stop_at={self.stop_at:g} since "
                f"iteration {iteration}"
            )
        if iteration >= self.num_iterations:
            return f"all num_iterations={self.num_iterations} are done"
        return f"max_minutes={self.max_minutes:g} are over" if out_of_time else ""

    def reports(self) -> dict[str, Any]:
        """Return the settings of a run's reports, which a resumed run finds in its folder."""
        return {name: plain(getattr(self, name)) for name in REPORTS}


def options(settings: Any, default: Any, name: str = "") -> list[str]:
    """Return the command line options that turn default settings into others.

    Args:
        settings: JSON values of a config.
        default: JSON values of the default config.
        name: Option of the nested block, for example `env`.
    """
    if isinstance(settings, Mapping) and name in SUBCOMMANDS:
        return [SUBCOMMANDS[name], *_of_block(settings, {}, name)]
    if isinstance(settings, Mapping) and default:
        # A setting of another version of pitune has no option.
        return _of_block({k: v for k, v in settings.items() if k in default}, default, name)
    if settings == default:
        return []
    if isinstance(settings, bool) and isinstance(default, bool):  # not `bool | None`
        parent, _, last = name.rpartition(".")
        prefix = f"{parent}." if parent else ""
        return [f"--{name}" if settings else f"--{prefix}no-{last}"]
    if isinstance(settings, Mapping):  # for example `load.cameras`
        return [f"--{name}", *(str(word) for pair in settings.items() for word in pair)]
    values = settings if isinstance(settings, list) else [settings]
    return [f"--{name}", *(str(value) for value in values)]


def _of_block(settings: Mapping[str, Any], default: Mapping[str, Any], name: str) -> list[str]:
    """Return the options of a block, with the words of `SUBCOMMANDS` at the end."""
    words: list[str] = []
    for key in sorted(settings, key=lambda key: f"{name}.{key}" in SUBCOMMANDS):
        inner = key.replace("_", "-")
        words += options(settings[key], default.get(key), f"{name}.{inner}" if name else inner)
    return words


def train_options(config: Mapping[str, Any]) -> list[str]:
    """Return the options of `pitune train` that repeat a run, without its folder and limits.

    Args:
        config: Settings of the run, as in config.json.

    Raises:
        ValueError: the algorithm is not registered.
    """
    env = envs.config_for(config["env"]["id"])
    default = TrainConfig(algorithm=preset(config["algorithm_name"]), env=env).identity()
    default["env"]["id"] = envs.EnvConfig().id  # so that another one is among the options
    ordered = {key: value for key, value in config.items() if key != "finetune"}
    words = options({**ordered, "finetune": config.get("finetune", default["finetune"])}, default)
    added = [word for word in words if word in SUBCOMMANDS.values()]
    if added:
        # An option of its own before the word, or a list option would take it as its last value.
        threads = config.get("torch_threads", default["torch_threads"])
        words.insert(words.index(added[0]), f"--torch-threads={threads}")
    return words
