"""The update of an iteration: its progress on the screen, and its state if it fails.

Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from pitune import rl
from pitune.experiments.runs import signals
from pitune.experiments.runs.folder.checkpoints import new_folder
from pitune.experiments.runs.report import update_progress
from pitune.experiments.runs.run import Run
from pitune.policies.checkpoints.native import write_policy
from pitune.policies.finetuning.shard import is_sharded
from pitune.rl import ranks


def learn(
    run: Run, iteration: int, algorithm: rl.Algorithm[Any], rollout: TensorDictBase
) -> dict[str, float]:
    """Learn from a rollout (E, T), and keep the state of an update that is not finite.

    Args:
        run: Keeps the state.
        iteration: The one that this update ends.
        algorithm: Learns.
        rollout: From the algorithm's actor.

    Returns:
        The metrics of the update.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    try:
        with update_progress(algorithm):
            return algorithm.update(rollout)
    except FloatingPointError as error:
        if is_sharded(algorithm.actor.policy):  # its parts are on ranks that have no time to meet
            raise
        # on all ranks, of which one keeps its state
        failed = None if ranks.rank() else _keep_failed(run, iteration, algorithm, error, rollout)
        ranks.wait()
        if failed is None:
            raise
        # the error names the folder of the state, and the checkpoint to resume from
        note = signals.failed_note(run.folder, run.saved_iteration(), failed)
        raise FloatingPointError(f"{error}; {note}") from error


def _keep_failed(
    run: Run,
    iteration: int,
    algorithm: rl.Algorithm[Any],
    error: FloatingPointError,
    rollout: TensorDictBase,
) -> Path:
    """Write the state of an iteration that failed and its rollout, and return their folder.

    Its name is none of a checkpoint, so that no run is resumed from it.
    """
    target = run.folder / f"nonfinite_{iteration:06d}"
    with new_folder(target) as folder:
        write_policy(algorithm.deployed_policy(), folder)
        run.write_state(folder, iteration, algorithm, {"error": str(error)})
        torch.save(dict(rollout.cpu().flatten_keys(".").items()), folder / "rollout.pt")
    return target
