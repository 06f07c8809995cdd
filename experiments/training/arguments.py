"""Fine-tune a pretrained policy in simulation.

    pitune train ppo --env.id mujoco/PickCube --checkpoint runs/pick/pretrained \
        --seed 1 --num-iterations 100 --out runs/pick/ppo
    pitune train filtered_bc --help

The first argument names the algorithm.

    pitune train --resume runs/pick/ppo

continues a run with its own settings. SIGTERM, SIGHUP and Ctrl-C end it with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pitune import rl
from pitune.experiments.command_line.listing import algorithm_lines
from pitune.experiments.command_line.parsing import default_env, program, wants_help
from pitune.experiments.command_line.parsing import parse as parse_config
from pitune.experiments.find_checkpoint import find_checkpoint
from pitune.experiments.recipes import preset
from pitune.experiments.runs.resume import with_saved_options
from pitune.experiments.runs.train_config import TrainConfig


def parse(args: Sequence[str]) -> TrainConfig:
    """Read the config from command line arguments: the algorithm's name, then any options.

    Args:
        args: The name may be followed by a colon and a variant or likelihood: `ppo:flow_noise`.

    Raises:
        ValueError: no algorithm has this name, or an option is unknown or has no valid value.
    """
    args = args if wants_help(args) else with_saved_options(args)
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
    config = parse_config(
        TrainConfig,
        args[1:] if name else args,
        prog=f"{program('train')} {name or 'ALGORITHM'}",
        description=description,
        default=TrainConfig(algorithm=algorithm, env=default_env(args)),
    )
    # a run that is resumed may have outlived its checkpoint
    return replace(config, checkpoint=find_checkpoint(config.checkpoint))
