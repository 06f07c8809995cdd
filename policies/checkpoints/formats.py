"""The table of checkpoint formats, and loading and saving by it.

    policy = policies.load("pi05_libero", LoadConfig(pipeline="pi05_libero"))
    policies.save(policy, "fine_tuned", format="openpi")

A format is one row of the table. `register_format` adds one, also from outside the repository.
Settings that a format lacks are requested from the caller and never guessed. Loading is strict,
never unpickles, and does not copy the weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pitune.policies.checkpoints import lerobot, lerobot_write, native, openpi, orbax
from pitune.policies.checkpoints.config import LoadConfig, with_extensions, with_fast, with_options
from pitune.policies.checkpoints.files import atomic_folder
from pitune.policies.checkpoints.layouts.adapter_files import reject_adapter
from pitune.policies.checkpoints.layouts.folders import find_folder, why_unreadable
from pitune.policies.checkpoints.openpi_files import write as openpi_write
from pitune.policies.checkpoints.pipelines import Pipeline
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.tokenizer import Tokenizer, find_tokenizer


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """One checkpoint format: how its folders are recognized, read and written.

    Example:
        >>> FORMATS["orbax"].write is None
        True
    """

    name: str
    """Value of `save(format=...)`."""
    files: str
    """The files of a folder of this format, for messages."""
    recognize: Callable[[Path], bool]
    """Whether a folder has this format. Cheap: weights are not read."""
    read: Callable[[Path, LoadConfig, Pipeline | None], FlowPolicy]
    """Read a folder. The pipeline is the caller's, for checkpoints without a published config."""
    read_network: Callable[[Path, int], Pi0] | None = None
    """Read the network alone, with an action horizon H. By default that of `read`."""
    write: Callable[[FlowPolicy, Path], list[str]] | None = None
    """Write into an existing, empty folder and return the differences that the other package will
    compute. None if the format is read only."""
    ignored_options: frozenset[str] = frozenset()
    """Fields of `LoadConfig` that this format ignores. Setting one of them is an error."""


FORMATS: dict[str, CheckpointFormat] = {}
"""All formats by name. Formats registered later are asked first whether they recognize a folder."""


def register_format(checkpoint_format: CheckpointFormat) -> None:
    """Add a format to the table.

    Raises:
        ValueError: its name is taken, or an ignored option is not a field of `LoadConfig`.
    """
    if checkpoint_format.name in FORMATS:
        raise ValueError(
            f"format={checkpoint_format.name!r} is registered already; registered are "
            f"{list(FORMATS)}, choose another name"
        )

    # a misspelled option would never be rejected
    options = {item.name for item in fields(LoadConfig)}
    unknown = sorted(checkpoint_format.ignored_options - options)
    if unknown:
        raise ValueError(
            f"ignored_options={unknown} of format {checkpoint_format.name!r} are no fields of "
            f"LoadConfig; valid are {sorted(options)}"
        )
    FORMATS[checkpoint_format.name] = checkpoint_format


register_format(
    CheckpointFormat(
        name="openpi",
        files="model.safetensors",
        recognize=openpi.is_openpi,
        read=openpi.read,
        read_network=openpi.read_network,
        write=openpi_write.write,
        ignored_options=frozenset({"state_padding", "lerobot_version"}),
    )
)
register_format(
    CheckpointFormat(
        name="lerobot",
        files="config.json with model.safetensors",
        recognize=lerobot.is_lerobot,
        read=lerobot.read,
        read_network=lerobot.read_network,
        write=lerobot_write.write,
        ignored_options=frozenset({"pipeline", "asset"}),
    )
)
register_format(
    CheckpointFormat(
        name="orbax",
        files="params/",
        recognize=orbax.is_orbax,
        read=openpi.read_orbax_policy,
        read_network=openpi.read_orbax_network,
        ignored_options=frozenset({"state_padding", "lerobot_version"}),
    )
)
register_format(
    CheckpointFormat(
        name="pitune",
        files=native.DESCRIPTION,
        recognize=native.is_native,
        read=native.read,
        write=native.write_policy,
        ignored_options=frozenset(
            {
                "pipeline",
                "asset",
                "unnormalized",
                "action_horizon",
                "state_padding",
                "lerobot_version",
            }
        ),
    )
)


def recognize(path: Path) -> str:
    """Return the name of a checkpoint folder's format.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no checkpoint.
        ValueError: it holds a pickle or another form of weights that is never loaded, or an adapter
            that its format does not merge.
    """
    return _opened(path)[1].name


def _format_of(folder: Path) -> str | None:
    """Return the format that recognizes a folder, None if there is none."""
    # the last registered format comes first, so that one from outside can replace ours
    rows = reversed(FORMATS.values())
    return next((row.name for row in rows if row.recognize(folder)), None)


def _opened(path: Path) -> tuple[Path, CheckpointFormat]:
    """Return the checkpoint's folder at or below a path, and its format. See `recognize`."""
    folder = find_folder(path, lambda place: _format_of(place) is not None)
    name = _format_of(folder)
    if name is None:
        if (reason := why_unreadable(path)) is not None:
            raise ValueError(reason)
        expected = ", ".join(f"{row.files} ({row.name})" for row in FORMATS.values())
        raise FileNotFoundError(f"no checkpoint in {path}; expected one of {expected}")
    if name in ("orbax", "pitune"):
        reject_adapter(folder, name)
    return folder, FORMATS[name]


def load(
    path: Path | str, config: LoadConfig | None = None, pipeline: Pipeline | None = None
) -> FlowPolicy:
    """Read a checkpoint folder of any registered format.

    Args:
        path: The folder.
        config: Settings that the checkpoint does not hold, and settings to change.
        pipeline: openpi's settings for a checkpoint that no published config trained.

    Raises:
        FileNotFoundError: there is no checkpoint, or one of its files is missing.
        ValueError: a file is damaged or does not fit, the format ignores an option in `config`, or
            needs one that is not there.
    """
    # policy, read by its format
    config = config or LoadConfig()
    folder, checkpoint_format = _opened(Path(path))
    _reject_ignored(checkpoint_format, config, pipeline, folder)
    policy = checkpoint_format.read(folder, config, pipeline)

    # tokenizer, unless the reader has found one
    info = policy.info
    if policy.preprocessor.config.prompt is not None and info.tokenizer is None:
        tokenizer = _tokenizer(folder, config, policy.network.config.vocab_size)
        policy = policy.replace(info=replace(info, tokenizer=tokenizer))
    policy = with_fast(with_options(policy, config.options), config)
    return with_extensions(policy, config.extensions)


def load_network(path: Path, action_horizon: int) -> Pi0:
    """Return the network of a checkpoint folder, without preprocessing and sampler.

    Args:
        path: The folder.
        action_horizon: H, for formats that do not hold it.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: a file is damaged or does not fit.
    """
    folder, checkpoint_format = _opened(path)
    if checkpoint_format.read_network is None:
        return checkpoint_format.read(folder, LoadConfig(), None).network
    return checkpoint_format.read_network(folder, action_horizon)


def save(policy: FlowPolicy, path: Path | str, format: str = "pitune") -> None:
    """Write a checkpoint folder. Other formats than ours get low-rank updates folded in.

    Warns of the differences that another package will compute.

    Raises:
        FileExistsError: `path` exists already.
        ValueError: the format is unknown or read only, or cannot hold the policy.
    """
    writable = [row.name for row in FORMATS.values() if row.write is not None]
    write = FORMATS[format].write if format in FORMATS else None
    if write is None:
        problem = "can be read but not written" if format in FORMATS else "is unknown"
        raise ValueError(f"format={format!r} {problem}; writable are {writable}")
    with atomic_folder(Path(path)) as folder:
        for difference in write(policy, folder):
            warnings.warn(f"{format} will differ: {difference}", stacklevel=2)


def _reject_ignored(
    checkpoint_format: CheckpointFormat,
    config: LoadConfig,
    pipeline: Pipeline | None,
    folder: Path,
) -> None:
    """Reject options that this checkpoint format ignores.

    Raises:
        ValueError: names the option.
    """
    # options that differ from the defaults
    given = {item.name: getattr(config, item.name) for item in fields(config)}
    defaults = LoadConfig()
    changed = {name: value for name, value in given.items() if value != getattr(defaults, name)}
    if pipeline is not None:
        changed["pipeline"] = pipeline

    # those that this format ignores
    for name in sorted(changed.keys() & checkpoint_format.ignored_options):
        readers = [row.name for row in FORMATS.values() if name not in row.ignored_options]
        raise ValueError(
            f"{name}={changed[name]!r} does not apply to {folder}, which is a "
            f"{checkpoint_format.name} checkpoint; leave it out (it is for {', '.join(readers)})"
        )


def _tokenizer(folder: Path, config: LoadConfig, vocab_size: int) -> Tokenizer | None:
    """Return the tokenizer. Without one, the policy loads but cannot act on a prompt."""
    file = find_tokenizer(folder, config.tokenizer)
    if file is None:
        return None
    tokenizer = Tokenizer.load(file)
    tokenizer.check(vocab_size)
    return tokenizer
