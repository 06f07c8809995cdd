"""The files of a run to look at, and the commands to run next.

A command repeats every setting of the run that is not a default, so that it runs as printed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pitune import envs
from pitune.experiments.runs.config_file import plain, read_config
from pitune.experiments.runs.folder.checkpoints import (
    DamagedCheckpointError,
    own_checkpoints,
    read_progress,
)
from pitune.experiments.runs.train_config import options, train_options

FILES = {
    "before_after.gif": "the same test starts before and after training, evenly spread",
    "before.mp4": "film of these starts before training",
    "after.mp4": "film of these starts after training",
    "learning_curve.png": "learning curve",
    "metrics.csv": "metrics, a row for each iteration",
    "summary.json": "results",
}
"""Files of a run in the order in which a reader wants them."""


class Step(NamedTuple):
    """A purpose, and the path or the command for it.

    Example:
        >>> step = Step("state of the run", command("inspect", "runs/a"))
        >>> step.text
        'pitune inspect runs/a'
    """

    purpose: str
    text: str


def files_of(folder: Path) -> list[Step]:
    """Return the files of a run that exist, and its latest checkpoint."""
    steps = [Step(purpose, str(folder / name)) for name, purpose in FILES.items()]
    steps = [step for step in steps if Path(step.text).exists()]
    for checkpoint in own_checkpoints(folder)[-1:]:
        try:
            changed = read_progress(checkpoint).get("changed", True)
        except DamagedCheckpointError:
            changed = True
        purpose = "fine-tuned policy" if changed else "policy, unchanged by this run"
        steps.append(Step(purpose, str(checkpoint)))
    return steps


def command(*words: str | Path) -> str:
    """Return a `pitune` command as it is typed in a shell."""
    return shlex.join(["pitune", *(str(word) for word in words)])


def evaluate_command(config: Mapping[str, Any], checkpoint: Path) -> str:
    """Return the command that evaluates a checkpoint as the run with this config does."""
    env = {key: value for key, value in config["env"].items() if key != "id"}
    env_id = config["env"]["id"]
    words = ["--env.id", env_id, *options(env, plain(envs.config_for(env_id)), "env")]
    episodes = options({"episodes": config["eval_episodes"]}, {"episodes": 200})
    return command("evaluate", "--checkpoint", checkpoint, *words, *episodes)


def other_algorithm(name: str) -> str:
    """Return an algorithm to compare with one, which needs nothing but successes.

    For a policy that acts by tokens it is one that trains them.
    """
    if name.endswith(":fast"):
        return "grpo:fast" if name == "ppo:fast" else "ppo:fast"
    return "ppo" if name == "filtered_bc" else "filtered_bc"


def next_steps(folder: Path, swap: str | None = None) -> list[Step]:
    """Return the commands that follow a run, if it has a checkpoint.

    Args:
        folder: Of the run.
        swap: Command that runs another algorithm, if the caller has a shorter one.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its config is damaged, or its algorithm is not registered.
    """
    record = read_config(folder / "config.json")
    config, limits = record["config"], record.get("limits", {})
    checkpoints = own_checkpoints(folder)
    if not checkpoints:
        return []

    # the same run with twice the iterations
    name, latest = config["algorithm_name"], checkpoints[-1]
    more = ["--num-iterations", str(2 * max(1, int(latest.name.rpartition("_")[2])))]
    if limits.get("stop_at", 1) < 1:  # a run that reached it has ended
        more += ["--stop-at", "1"]
    # Our own checkpoints need no load options, and reject most.
    loaded = {key: value for key, value in config.items() if key != "load"}
    from_latest = train_options({**loaded, "checkpoint": str(latest)})
    continued = folder.with_name(f"{folder.name}-from-{latest.name}")

    # the same settings with another algorithm
    other = other_algorithm(name)
    shared = {key: value for key, value in config.items() if key != "algorithm"}
    swapped = train_options({**shared, "algorithm_name": other})
    swap = swap or command("train", other, "--out", folder.with_name(other), *swapped)
    return [
        Step("judge the metrics", command("inspect", folder)),
        Step("measure the policy", evaluate_command(config, latest)),
        Step("swap the algorithm", swap),
        Step(
            "start from a checkpoint: this one, or a folder of your own",
            command("train", name, "--out", continued, *from_latest),
        ),
        Step("train longer", command("train", "--resume", folder, *more)),
    ]
