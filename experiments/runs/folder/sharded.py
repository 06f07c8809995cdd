"""The sharded tensors of a training state, written and read by torch.distributed.checkpoint.

Each rank writes its parts, and another number of ranks, also one, reads them in its own parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.tensor import DTensor, distribute_tensor

from pitune.rl import Algorithm, ranks

FOLDER = "shards"


def write_sharded(folder: Path | None, training: dict[str, Any]) -> dict[str, Any]:
    """Write the sharded tensors of a training state, and return the state without them.

    Every rank calls it. Without sharded tensors nothing is written.

    Args:
        folder: Of the checkpoint, on rank 0.
        training: Result of `Algorithm.training_state`.
    """
    tensors = {path: value for path, value in _leaves(training) if isinstance(value, DTensor)}
    if not tensors:
        return training
    target = ranks.of_first(folder)
    if target is not None:
        dcp.save(tensors, checkpoint_id=target / FOLDER)
    return _without(training)


def read_sharded(
    folder: Path, training: dict[str, Any], algorithm: Algorithm[Any]
) -> dict[str, Any]:
    """Return a training state whose optimizers have the parts of this rank. Every rank calls it.

    Args:
        folder: Of the checkpoint.
        training: As written, with all numbers besides the sharded tensors.
        algorithm: Its parameters are sharded, or not.
    """
    found: dict[str, Tensor] = {}
    if (folder / FOLDER).is_dir():
        # tensors to read into: this rank's part where the parameter is sharded, or the whole
        sizes = FileSystemReader(folder / FOLDER).read_metadata().state_dict_metadata
        for path, entry in sizes.items():
            _, name, _, number, _ = path.split("/")
            parameter = _parameters(algorithm, name)[int(number)]
            if isinstance(parameter, DTensor):
                found[path] = torch.zeros_like(parameter)
            else:
                found[path] = torch.zeros(entry.size)  # type: ignore[union-attr]
        dcp.load(found, checkpoint_id=folder / FOLDER, no_dist=ranks.world() == 1)
    return {
        **training,
        "optimizers": {
            name: {**state, "state": _of_parameters(found, name, state["state"], algorithm)}
            for name, state in training["optimizers"].items()
        },
    }


def _of_parameters(
    found: Mapping[str, Tensor], name: str, state: Mapping[int, Any], algorithm: Algorithm[Any]
) -> dict[int, dict[str, Any]]:
    """Return an optimizer's state, with whole tensors in parts where its parameters are sharded."""
    complete: dict[int, dict[str, Any]] = {}
    for number, entries in state.items():
        parameter = _parameters(algorithm, name)[number]
        complete[number] = {}
        for key, value in entries.items():
            value = found.get(f"optimizers/{name}/state/{number}/{key}", value)
            # a whole tensor of an unsharded run, split as its parameter is
            whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
            if whole and isinstance(parameter, DTensor) and value.shape == parameter.shape:
                mesh, placements = parameter.device_mesh, parameter.placements
                value = distribute_tensor(value.to(parameter.device), mesh, placements)
            complete[number][key] = value
    return complete


def _parameters(algorithm: Algorithm[Any], name: str) -> list[Any]:
    """Return the parameters of an optimizer in the order of its state."""
    groups = algorithm.optimizers[name].param_groups
    return [parameter for group in groups for parameter in group["params"]]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested dicts with their paths."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}/{key}" if path else str(key))


def _without(value: Any) -> Any:
    """Return nested dicts with None in place of sharded tensors."""
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items()}
    return None if isinstance(value, DTensor) else value
