"""The files that hold a checkpoint's weights: one, or all shards of one.

The rule, which is that of lerobot and transformers: `model.safetensors` first, then the files of
`model.safetensors.index.json`, then numbered shards, then the only remaining file. A warning names
each file that could have been meant and was not read, such as averaged weights beside them.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from pitune.policies.checkpoints.files import read_safetensors
from pitune.policies.checkpoints.layouts.adapter_files import (
    ADAPTER_WEIGHTS,
    adapter_files,
    base_folder,
    named_base,
)
from pitune.policies.checkpoints.layouts.adapters import is_unmerged, merge_adapters
from pitune.policies.checkpoints.layouts.wrappers import unwrapped

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_NO_WEIGHTS = re.compile(
    r"policy_(pre|post)processor.*|optimizer.*|rng_state.*|scheduler.*|adapter_.*"
)
"""Files of the same type that hold something else: norm stats, training states, adapters."""


def read_weight_files(folder: Path) -> dict[str, Tensor]:
    """Return a folder's weights without the names of wrappers, with adapters merged.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, two hold the same tensor, or an adapter cannot be merged.
    """
    files = weight_files(folder)
    if not files:
        # an adapter alone names the folder of its base
        base = base_folder(folder) or folder
        if base != folder and (nested := adapter_files(base)):
            raise ValueError(
                f"the adapter in {folder} names the base {base}, which holds an adapter itself "
                f"({nested[0]}); merge that one with PEFT's merge_and_unload first"
            )
        return merge_adapters(_read_unwrapped(base, weight_files(base)), folder)
    weights = _read_unwrapped(folder, files)
    if adapter_files(folder):
        _check_not_merged(weights, folder)
    return merge_adapters(weights, folder)


def _check_not_merged(weights: dict[str, Tensor], folder: Path) -> None:
    """Fail if the weights beside an adapter are not those of the base that it names.

    They are then probably merged already, and a second update would make another policy. The base
    can be compared only if it is on this machine.

    Raises:
        ValueError: they differ.
    """
    base = named_base(folder)
    if base is None or is_unmerged(weights):
        return
    named = _read_unwrapped(base, weight_files(base))
    for key in sorted(weights.keys() & named.keys()):
        if weights[key].shape != named[key].shape or not torch.equal(weights[key], named[key]):
            raise ValueError(
                f"{folder} holds an adapter beside weights that are not those of its base {base}: "
                f"{key!r} differs. If they are merged already, remove {adapter_files(folder)}; "
                "otherwise remove the weights"
            )


def _read_unwrapped(folder: Path, files: list[Path]) -> dict[str, Tensor]:
    if not files:
        raise FileNotFoundError(
            f"no weights in {folder}, which holds {sorted(f.name for f in folder.iterdir())}; "
            f"put the checkpoint's {SINGLE} there"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        shard = read_safetensors(file)
        repeated = sorted(weights.keys() & shard.keys())
        if repeated:
            raise ValueError(
                f"{folder} holds {repeated[0]!r} in several files; remove the files that do not "
                "belong to this checkpoint"
            )
        weights |= shard
    _check_index(folder, files, weights)
    return unwrapped(weights, folder)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, by the rule of this module.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: several files could be the weights.
    """
    candidates = sorted(
        file
        for file in folder.glob("*.safetensors")
        if file.name != ADAPTER_WEIGHTS and not _NO_WEIGHTS.fullmatch(file.name)
    )
    chosen = _chosen(folder, candidates)
    left = [file.name for file in candidates if file not in chosen]
    left += [f"{f.parent.name}/{f.name}" for f in sorted(folder.glob("*ema*/*.safetensors"))]
    if left:
        warnings.warn(
            f"{folder} holds several sets of weights: {[f.name for f in chosen]} is read, as by "
            f"lerobot and openpi, and {left} is not. For the other one, load a copy of the folder "
            f"in which it is {SINGLE}",
            stacklevel=2,
        )
    return chosen


def _chosen(folder: Path, candidates: list[Path]) -> list[Path]:
    # one file
    single = folder / SINGLE
    rivals = [file for file in candidates if re.fullmatch(r"model-\d+\.safetensors", file.name)]
    if single in candidates:
        return [single, *rivals]
    # the shards of an index
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    # numbered shards without an index, of one set
    shards = {file: match for file in candidates if (match := _SHARD.fullmatch(file.name))}
    if shards:
        return _all_shards(folder, shards)
    # a file of any name, averaged weights last
    plain = [file for file in candidates if not _is_average(file)] or candidates
    if len(plain) > 1 and plain != rivals:
        stems = {re.sub(r"[-_.]?\d+$", "", file.stem) for file in plain}
        if len(stems) > 1:
            raise ValueError(
                f"{folder} holds {[file.name for file in plain]}, and none is called {SINGLE}; "
                f"load a copy of the folder in which the wanted one is {SINGLE}"
            )
    return plain


def _is_average(file: Path) -> bool:
    return re.search(r"(^|[-_.])(ema|averaged?|swa)([-_.]|$)", file.stem.lower()) is not None


def _all_shards(folder: Path, shards: dict[Path, re.Match[str]]) -> list[Path]:
    """Return the shards of the only complete numbering.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: there are two numberings.
    """
    sets = {(match[1], match[3]) for match in shards.values()}
    preferred = {key for key in sets if key[0] == "model"} or sets
    if len(preferred) > 1:
        raise ValueError(
            f"{folder} holds shards of several sets, {sorted(preferred)}; remove all but one"
        )
    name, count = preferred.pop()
    width = len(count)
    files = [
        folder / f"{name}-{number:0{width}}-of-{count}.safetensors"
        for number in range(1, int(count) + 1)
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks the shards {missing} of {count}; download them")
    return files


def _weight_map(folder: Path) -> dict[str, str]:
    """Return the file of each weight in an index.

    Raises:
        ValueError: the index does not name one.
    """
    index = folder / INDEX
    try:
        files = json.loads(index.read_text())["weight_map"]
        if not files or any(Path(name).name != name for name in files.values()):
            raise ValueError("weight_map names no file in this folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is no index of shards ({error!r}); take a complete checkpoint"
        ) from error
    return dict(files)


def _check_index(folder: Path, files: list[Path], weights: dict[str, Tensor]) -> None:
    """Fail if shards lack a weight that their index names, or hold one that it does not."""
    if not (folder / INDEX).is_file() or folder / SINGLE in files:
        return
    names = _weight_map(folder)
    lacking = sorted(names.keys() - weights.keys())
    surplus = sorted(weights.keys() - names.keys())
    if lacking or surplus:
        raise ValueError(
            f"{folder / INDEX} does not fit its shards: they lack {lacking[:3]} and hold "
            f"{surplus[:3]} beyond it; take a complete checkpoint"
        )
