"""Make a policy to fine-tune: demonstrations from an expert in the simulator, then cloning.

    pitune pretrain --env.id mujoco/PickCube --num-demonstrations 14 --out runs/pick
    pitune pretrain --env.id mujoco/PickCube --env.cameras front wrist --words --out runs/seeing

writes `demonstrations.safetensors`, the checkpoint folder `pretrained/` and the settings in
`pretrain.json` into --out. The same command continues an interrupted cloning.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.find_checkpoint import with_environment
from pitune.experiments.recipes import DEMONSTRATIONS
from pitune.experiments.runs.config_file import plain, write_config
from pitune.experiments.runs.folder.same_config import check_same
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.signals import exit_on_signal
from pitune.policies.preprocessing.own_tokenizer import make_tokenizer
from pitune.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Seed, Settings, Threads
from pitune.rl.algorithms.bc import CloningStep, clone

RECORD, PARTIAL = "pretrain.json", "cloning.pt"
"""Files in --out: the settings, and the state of a cloning that is not finished."""
TOKENIZER = Path("tokenizer/tokenizer.json")
"""File in --out of the tokenizer that is made from the instructions."""
SAVE_EVERY = 250
"""Gradient steps between two writes of that state."""


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
    """Successful episodes of the expert."""
    gradient_steps: PositiveInt = 1500
    """Steps of cloning."""
    minibatch_size: PositiveInt = 128
    """Chunks per gradient step."""
    learning_rate: PositiveFloat = 1e-3
    """AdamW's first step size, which falls by a cosine [-]."""
    action_horizon: PositiveInt = 4
    """H, actions that one decision predicts."""
    sampler: policies.SamplerConfig = field(default_factory=policies.SamplerConfig)
    """Flow steps and executed actions of a decision."""
    expert: policies.GemmaConfig = field(default_factory=lambda: policies.LAPTOP_EXPERT)
    """Sizes of the transformer."""
    words: bool = False
    """Whether the policy reads the instruction. Pictures are read if `env.cameras` names some."""
    vlm: policies.SmallVLMConfig = field(default_factory=policies.SmallVLMConfig)
    """Sizes of the vision-language model of a policy that reads pictures or the instruction."""
    picture_shift: NonNegativeInt = 0
    """Greatest random shift of a picture while cloning [pixels], a fresh one in each step."""
    torch_threads: Threads = 1
    """Threads of PyTorch on the CPU, which change the last bits of the results."""
    seed: Seed = 0
    """Seed of the expert's starts, the weights and the minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler.execution_horizon > self.action_horizon:
            raise ValueError(
                f"sampler.execution_horizon={self.sampler.execution_horizon} must be at most "
                f"action_horizon={self.action_horizon}: only predicted actions can be executed"
            )
        if self.picture_shift and not self.env.cameras:
            raise ValueError(
                f"picture_shift={self.picture_shift} has no use without pictures; name some "
                "cameras (--env.cameras), or leave it out"
            )
        if self.vlm != policies.SmallVLMConfig() and not self.has_vlm:
            raise ValueError(
                f"vlm={self.vlm} has no use without pictures and words; name some cameras "
                "(--env.cameras), add --words, or leave the sizes out"
            )

    @property
    def has_vlm(self) -> bool:
        """Whether the policy reads pictures or the instruction."""
        return self.words or bool(self.env.cameras)

    def identity(self) -> dict[str, Any]:
        """Return the settings that identify a clone: all but its folder."""
        values: dict[str, Any] = plain(self)
        values.pop("out")
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
        demonstrations = rl.Demonstrations.load(config.out / DEMONSTRATIONS)
    else:
        demonstrations = _collect(config)
    collected = time.monotonic()

    # cloning
    step = _cloning_step(config, demonstrations)
    if resumed:
        _restore(step, config.out / PARTIAL)
        screen.note(f"cloning continues after {step.num_steps} of {config.gradient_steps} steps")
    else:
        _save(step, config.out / PARTIAL)
    loss = _clone(config, step, demonstrations)

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
    env = envs.make(config.env)
    with screen.task("demonstrations", config.num_demonstrations) as task:
        demonstrations = rl.collect_demonstrations(
            env,
            config.num_demonstrations,
            config.seed,
            on_step=lambda num: task.update(min(num, config.num_demonstrations)),
        )
    env.close()

    # files, from which an interrupted run continues
    write_config(config.out / RECORD, config.identity(), {})
    demonstrations.save(config.out / DEMONSTRATIONS)
    screen.note(
        f"{demonstrations.num_episodes} demonstrations, {len(demonstrations.action)} steps of "
        f"{config.env.id} in {time.monotonic() - start:.0f} s"
    )
    return demonstrations


def _cloning_step(config: PretrainConfig, demonstrations: rl.Demonstrations) -> CloningStep:
    """Return a new policy with the optimizer that clones the demonstrations."""
    tokenizer = None
    if config.words:
        tokenizer = make_tokenizer(
            demonstrations.tasks,
            config.out / TOKENIZER,
            max_vocabulary=config.vlm.max_vocabulary,
            max_tokens=config.vlm.max_tokens,
        )
    policy = policies.small_policy(
        demonstrations.obs["state"],
        demonstrations.action,
        action_horizon=config.action_horizon,
        sampler=config.sampler,
        expert=config.expert,
        cameras=config.env.cameras,
        image_size=config.env.image_size,
        tokenizer=tokenizer,
        vlm=config.vlm if config.has_vlm else None,
    )
    floored = policy.preprocessor.floored()
    if any(floored.values()):
        screen.note(f"dimensions that hardly moved, scaled as if they had: {floored}")
    # all that depends on the policy by default is that of an untrained one
    cloning = rl.BCConfig(
        learning_rate=config.learning_rate,
        warmup_steps=0,
        decay_steps=config.gradient_steps,
        final_fraction=0.01,
        weight_decay=1e-4,
        ema_decay=0.0,
        minibatch_size=config.minibatch_size,
        picture_shift=config.picture_shift,
    )
    return CloningStep(policy, cloning)


def _clone(config: PretrainConfig, step: CloningStep, demonstrations: rl.Demonstrations) -> float:
    """Take the remaining gradient steps and return their mean loss."""
    first, total = step.num_steps, config.gradient_steps
    with screen.task("cloning", total, done=first) as task:

        def on_step(number: int) -> None:
            task.update(first + number)
            if (first + number) % SAVE_EVERY == 0:
                _save(step, config.out / PARTIAL)

        chunks = demonstrations.preprocess(step.policy).chunks(config.action_horizon)
        return clone(step, chunks, total - first, on_step)


def _save(step: CloningStep, file: Path) -> None:
    """Write the state of a cloning, whole or not at all."""
    state = {
        "policy": step.policy.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "num_steps": step.num_steps,
        "random": torch.get_rng_state(),
    }
    temporary = file.with_name(f"tmp_{file.name}")
    torch.save(state, temporary)
    temporary.rename(file)


def _restore(step: CloningStep, file: Path) -> None:
    """Load the state that `_save` wrote, random numbers included."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    step.policy.load_state_dict(state["policy"])
    step.optimizer.load_state_dict(state["optimizer"])
    step.num_steps = state["num_steps"]
    torch.set_rng_state(state["random"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message(), exit_on_signal():
        config = parse(
            PretrainConfig, arguments(argv), prog=program("pretrain"), description=__doc__
        )
        pretrain(config)


if __name__ == "__main__":
    main()
