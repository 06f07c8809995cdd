"""Make a policy to fine-tune: demonstrations from an expert in the simulator, then cloning.

    pitune pretrain --env.id mujoco/PickCube --num-demonstrations 14 --out runs/pick
    pitune pretrain --env.id mujoco/PickCube --env.cameras front wrist --words --out runs/seeing

    pitune pretrain --dataset my_dataset --env.id mujoco/PickCube --out runs/cloned

writes the checkpoint folder `pretrained/`, the settings in `pretrain.json` and, without --dataset,
`demonstrations.safetensors` into --out. The same command continues an interrupted cloning.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.find_checkpoint import with_environment
from pitune.experiments.pretraining import data
from pitune.experiments.pretraining.checks import check_settings, check_status_tasks
from pitune.experiments.pretraining.state import clone_and_save, restore_cloning, save_cloning
from pitune.experiments.recipes import DEMONSTRATIONS
from pitune.experiments.runs.config_file import plain, write_config
from pitune.experiments.runs.folder.same_config import check_same
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.signals import exit_on_signal
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Range, Seed, Settings, Threads
from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.cloning.config import LanguageLossConfig, StatusLossConfig
from pitune.rl.datasets.config import DataConfig, RecordConfig
from pitune.rl.datasets.demonstrations import load_demonstrations

CLONING = (
    *("learning_rate", "minibatch_size", "real_time_delay", "draws_per_chunk", "picture_shift"),
    *("immiscible_noise", "condition_dropout", "language", "status"),
)
"""Settings that are those of the gradient steps too."""
RECORD, PARTIAL = "pretrain.json", "cloning.pt"
"""Files in --out: the settings, and the state of a cloning that is not finished."""
TOKENIZER = Path("tokenizer/tokenizer.json")
"""File in --out of the tokenizer that is made from the instructions."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """Collect demonstrations and clone them.

    Example:
        >>> config = PretrainConfig(num_demonstrations=2)
        >>> config.identity()["num_demonstrations"]
        2
    """

    env: envs.EnvConfig = field(default_factory=envs.EnvConfig)
    out: Path = Path("runs/pretrain")
    """New folder for the demonstrations and the checkpoint."""
    num_demonstrations: PositiveInt = 14
    """Successful episodes of the expert, of each task in a suite."""
    dataset: Path | None = None
    """LeRobot dataset to clone in place of the expert: its folder, or its name on the hub."""
    data: DataConfig = field(default_factory=DataConfig)
    """Features of that dataset."""
    record: Path | None = None
    """New folder for the demonstrations of the expert as a LeRobot dataset."""
    recording: RecordConfig = field(default_factory=RecordConfig)
    """Storage of the pictures in that dataset."""
    skip_tasks_without_expert: bool = False
    """Whether to leave out tasks of a suite that have no expert, with a note."""
    gradient_steps: PositiveInt = 1500
    """Steps of cloning."""
    minibatch_size: PositiveInt = 128
    """Chunks per gradient step."""
    learning_rate: PositiveFloat = 1e-3
    """AdamW's first step size, which falls by a cosine [-]."""
    action_horizon: PositiveInt = 4
    """H, actions that one decision predicts."""
    real_time_delay: NonNegativeInt = 0
    """Longest delay to continue chunks under [control steps], by cloning with clean beginnings of
    random length. The checkpoint then has `sampler.real_time.method` "trained"."""
    sampler: policies.SamplerConfig = field(default_factory=policies.SamplerConfig)
    """Flow steps and executed actions of a decision."""
    expert: policies.GemmaConfig = field(default_factory=lambda: policies.LAPTOP_EXPERT)
    """Sizes of the transformer."""
    words: bool = False
    """Whether the policy reads the instruction. Pictures are read if `env.cameras` names some."""
    vlm: policies.SmallVLMConfig = field(default_factory=policies.SmallVLMConfig)
    """Sizes of the vision-language model of a policy that reads pictures or the instruction."""
    network_options: policies.NetworkOptions = field(default_factory=policies.NetworkOptions)
    """Options of the network, all off by default."""
    draws_per_chunk: PositiveInt = 1
    """Draws of noise and flow time for each chunk, which share the encoding of the observation."""
    immiscible_noise: bool = False
    """Whether the noise of a minibatch is assigned to its chunks, see `BCConfig`."""
    condition_dropout: Annotated[float, Range(low=0, high=1, high_open=True)] = 0.0
    """Share of each kind of condition that is dropped [-], for guidance (network_options)."""
    picture_shift: NonNegativeInt = 0
    """Greatest random shift of a picture while cloning [pixels], a fresh one in each step."""
    language: LanguageLossConfig = field(default_factory=LanguageLossConfig)
    """Losses of the language head beside the flow's."""
    status: StatusLossConfig = field(default_factory=StatusLossConfig)
    """Loss of the task-status head."""
    compile: bool = False
    """Whether to compile the policy with `torch.compile`, for long cloning of large networks. It
    needs a C++ compiler."""
    torch_threads: Threads = 1
    """Threads of PyTorch on the CPU, which change the last bits of the results."""
    seed: Seed = 0
    """Seed of the expert's starts, the weights and the minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self)

    @property
    def has_vlm(self) -> bool:
        """Whether the policy reads pictures or the instruction."""
        return self.words or bool(self.env.cameras)

    def identity(self) -> dict[str, Any]:
        """Return the settings that identify a clone: all but its folder."""
        values: dict[str, Any] = plain(self)
        for name in ("out", "record", "recording"):
            values.pop(name)
        return values


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Collect, clone, save, and return the times [s] and the mean loss of the steps taken.

    Raises:
        FileExistsError: --out holds a pretrained policy already.
        ValueError: --out holds an interrupted cloning with other settings.
    """
    folder = config.out / "pretrained"
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; pass another --out or remove it")
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.torch_threads)
    start = time.monotonic()

    # demonstrations
    resumed = (config.out / PARTIAL).is_file()
    if resumed:
        check_same_clone(config)
        file = config.dataset or config.out / DEMONSTRATIONS
        demonstrations = load_demonstrations(file, config.data)
    elif config.dataset is not None:
        demonstrations = load_demonstrations(config.dataset, config.data)
        write_config(config.out / RECORD, config.identity(), {})
    else:
        demonstrations = _collect(config)
    collected = time.monotonic()

    # cloning
    step = _cloning_step(config, demonstrations)
    chunks = data.chunks_of(demonstrations, step.policy, config.dataset, config.data)
    if resumed:
        restore_cloning(step, chunks, config.out / PARTIAL)
        screen.note(f"cloning continues after {step.num_steps} of {config.gradient_steps} steps")
    else:
        save_cloning(step, chunks, config.out / PARTIAL)
    loss = clone_and_save(step, chunks, config.gradient_steps, config.out / PARTIAL)

    # checkpoint, which replaces the partial one
    policies.save(with_environment(step.policy, config.env), folder)
    (config.out / PARTIAL).unlink()
    seconds = time.monotonic() - collected
    screen.note(f"cloned in {config.gradient_steps} steps, {seconds:.0f} s, mean loss {loss:.3f}")
    return {"demonstrations": collected - start, "cloning": seconds, "loss": loss}


def check_same_clone(config: PretrainConfig) -> None:
    """Reject a folder whose clone has other settings. Those that it lacks had their defaults.

    Raises:
        ValueError: the settings differ.
    """
    options = type(config.env.options)()
    defaults = PretrainConfig(env=envs.EnvConfig(id=config.env.id, options=options))
    check_same(config.out, config.identity(), RECORD, defaults.identity())


def _collect(config: PretrainConfig) -> rl.Demonstrations:
    """Collect the demonstrations and write them, with the settings, into --out."""
    start = time.monotonic()
    data.check_new(config.record)
    env = envs.make(config.env)
    spec = env.spec
    # instructions that cannot be read are rejected here
    data.options_for(config.network_options, spec.tasks, spec.id)
    check_status_tasks(config.status, spec.tasks)
    if config.words:
        data.tokenizer_for(spec.tasks, config.vlm, config.out / TOKENIZER, config.language.text)
    num_tasks = len(spec.tasks) if spec.seeded_tasks else 1
    total = num_tasks * config.num_demonstrations
    with screen.task("demonstrations", total) as task:
        demonstrations = rl.collect_demonstrations(
            env,
            config.num_demonstrations,
            config.seed,
            on_step=lambda num: task.update(min(num, total)),
            skip_tasks_without_expert=config.skip_tasks_without_expert,
        )
    env.close()
    for line in data.expert_lines(spec, demonstrations.expert_success):
        screen.note(line)

    # files, from which an interrupted run continues
    write_config(config.out / RECORD, config.identity(), {})
    demonstrations.save(config.out / DEMONSTRATIONS)
    screen.note(data.store_expert(demonstrations, env.spec, config.record, config.recording))
    screen.note(
        f"{demonstrations.num_episodes} demonstrations, {len(demonstrations.action)} steps of "
        f"{config.env.id} in {time.monotonic() - start:.0f} s"
    )
    return demonstrations


def _cloning_step(config: PretrainConfig, demonstrations: rl.Demonstrations) -> CloningStep:
    """Return a new policy with the optimizer that clones the demonstrations."""
    tokenizer, source = None, str(config.dataset or config.env.id)
    if config.words:
        tokenizer = data.tokenizer_for(
            demonstrations.tasks, config.vlm, config.out / TOKENIZER, config.language.text
        )
    policy = policies.small_policy(
        demonstrations.obs["state"],
        demonstrations.action,
        action_horizon=config.action_horizon,
        sampler=replace(config.sampler, real_time=None),
        expert=config.expert,
        cameras=config.env.cameras,
        image_size=config.env.image_size,
        tokenizer=tokenizer,
        vlm=config.vlm if config.has_vlm else None,
        options=data.options_for(config.network_options, demonstrations.tasks, source),
    )
    real_time = config.sampler.real_time
    if config.real_time_delay:
        real_time = real_time or RealTimeConfig(method="trained")
    sampler = replace(config.sampler, real_time=real_time)
    info = replace(policy.info, real_time_delay=config.real_time_delay)
    policy = policy.replace(sampler=sampler, info=info)
    policy = data.with_fast_tokenizer(policy, demonstrations, config.vlm)
    if config.compile:
        policy.compile_functions()
    floored = policy.preprocessor.floored()
    if any(floored.values()):
        screen.note(f"dimensions that hardly moved, scaled as if they had: {floored}")
    # all that depends on the policy by default is that of an untrained one
    cloning = rl.BCConfig(
        warmup_steps=0,
        decay_steps=config.gradient_steps,
        final_fraction=0.01,
        weight_decay=1e-4,
        ema_decay=0.0,
        **{name: getattr(config, name) for name in CLONING},
    )
    return CloningStep(policy, cloning)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message(), exit_on_signal():
        config = parse(
            PretrainConfig, arguments(argv), prog=program("pretrain"), description=__doc__
        )
        pretrain(config)


if __name__ == "__main__":
    main()
