"""The policy as a run loaded it, kept in its folder, so that resuming needs no other one.

It is also the reference of algorithms that regularize towards the pretrained policy.
"""

from __future__ import annotations

from pathlib import Path

from pitune import policies
from pitune.experiments.runs.folder.checkpoints import new_folder, set_aside
from pitune.experiments.runs.folder.checksums import checksum, checksum_fault, known_checksum
from pitune.experiments.runs.folder.start import BASE
from pitune.experiments.runs.progress import screen
from pitune.policies import FlowPolicy, LoadConfig
from pitune.policies.checkpoints.native import WEIGHTS, load_policy, write_policy


def load_and_keep(folder: Path, checkpoint: Path, config: LoadConfig) -> FlowPolicy:
    """Return the policy of a checkpoint, and keep a copy of it in the folder of a run."""
    policy = policies.load(checkpoint, config)
    with new_folder(folder / BASE) as kept:
        write_policy(policy, kept)
    return policy


def kept_policy(folder: Path, checkpoint: Path, config: LoadConfig) -> FlowPolicy:
    """Return the policy that a run has kept, or load it again where its copy is damaged.

    Args:
        folder: Of the run.
        checkpoint: From which it was loaded. Read only if the copy is missing, as in runs of
            pitune 0.2 and before, or damaged. A damaged copy is kept under another name.
        config: Settings of loading.

    Raises:
        ValueError: the copy is damaged, and the checkpoint holds other weights than it had.
    """
    kept = folder / BASE
    fault = checksum_fault(kept, deep=True) if kept.is_dir() else "the run has no copy of it"
    if fault is None:
        return load_policy(kept)
    screen.note(f"the initial policy is loaded from {checkpoint} ({kept.name}: {fault})")
    policy = policies.load(checkpoint, config)
    with new_folder(kept) as again:
        write_policy(policy, again)
        _check_same_weights(kept, again, checkpoint, fault)
        if kept.is_dir() and not kept.is_symlink():
            set_aside(kept, "damaged", fault)
    return policy


def _check_same_weights(kept: Path, again: Path, checkpoint: Path, fault: str) -> None:
    """Raise ValueError if a policy that was loaded again is not the one that a run has kept."""
    known = known_checksum(kept, WEIGHTS)
    if known is not None and known != checksum(again / WEIGHTS):
        raise ValueError(
            f"{kept} is damaged ({fault}), and checkpoint={checkpoint} holds another policy by "
            "now; restore one of them to go on with the run"
        )
