"""Random damage to run folders and checkpoints, and the commands that meet it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.child import Ending, contents
from tests.fuzz.world import ENV_WORDS, RESUME

FOUR = ("--episodes", "4")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "resume": RESUME,
    "evaluate checkpoint": ("evaluate", "--checkpoint", "{checkpoint}", *ENV_WORDS, *FOUR),
    "evaluate run": ("evaluate", "--checkpoint", "run", *ENV_WORDS, *FOUR),
    "evaluate clone": ("evaluate", "--checkpoint", "clone", *ENV_WORDS, *FOUR),
    "inspect": ("inspect", "run"),
    "inspect finished": ("inspect", "finished"),
    "norm-stats": (
        *("norm-stats", "--checkpoint", "clone/pretrained", "--out", "stats.json"),
        *("--demonstrations", "clone/demonstrations.safetensors"),
    ),
    "verify": (
        *("verify", "openpi/checkpoint", "--inputs", "openpi/inputs.safetensors"),
        *("--outputs", "openpi/outputs.safetensors"),
    ),
    "start": (
        *("train", "ppo", "--checkpoint", "clone/pretrained", "--out", "new", *ENV_WORDS),
        *("--num-chunks", "2", "--eval-every", "1", "--eval-episodes", "4", "--wandb", "off"),
        *("--num-iterations", "1", "--no-video", "--algorithm.update.minibatch-size", "8"),
    ),
}
"""Commands by name; `{checkpoint}` is the newest of the run."""
FOLDERS: Mapping[str, str] = {
    "resume": "run",
    "evaluate checkpoint": "run",
    "evaluate run": "run",
    "evaluate clone": "clone",
    "inspect": "run",
    "inspect finished": "finished",
    "norm-stats": "clone",
    "verify": "openpi",
    "start": "clone",
}
"""The folder that is damaged before a command."""
RESULTS: Mapping[str, str] = {
    "evaluate": "success ",
    "inspect": "Health",
    "norm-stats": "wrote stats.json",
    "verify": "passed",
}
"""Text of the result, for the commands that print one."""


@dataclass(frozen=True)
class Damage:
    """A case: a command, and the changes to its folder before it runs."""

    command: str
    seed: int
    num_changes: int

    def words(self, world: Path) -> tuple[str, ...]:
        """Return the words of the command, once the folder is damaged."""
        newest = sorted((world / "run").glob("checkpoint_00*")) or [world / "run"]
        checkpoint = str(newest[-1].relative_to(world))
        return tuple(w.format(checkpoint=checkpoint) for w in COMMANDS[self.command])


def damages(seed: int, number: int) -> list[Damage]:
    """Return random cases, a third of which resume a run."""
    draw = random.Random(seed)
    names = [*COMMANDS, *("resume",) * 4, "evaluate checkpoint", "evaluate run"]
    return [
        Damage(draw.choice(names), draw.randrange(2**32), draw.choice((1, 1, 1, 2)))
        for _ in range(number)
    ]


def apply(damage: Damage, world: Path) -> list[str]:
    """Damage the world, and return the changes in words."""
    draw = random.Random(damage.seed)
    return [_change(world / FOLDERS[damage.command], draw) for _ in range(damage.num_changes)]


def _change(folder: Path, draw: random.Random) -> str:
    """Make one random change below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    folders = sorted(p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink())
    of_json = [file for file in files if file.suffix == ".json"]
    kinds = [_edit_json] * 4 + [*CHANGES]
    act = draw.choice(kinds)
    # of all files alike, and not mostly of the small ones in checkpoints
    if act in (_copy_folder, _rename_folder, _remove_folder, _link_folder) and folders:
        path = draw.choice(folders)
    else:
        path = draw.choice(of_json if act is _edit_json and of_json else files)
    what = act(path, draw)
    return f"{path.relative_to(folder.parent)}: {what}"


def _cut(file: Path, draw: random.Random) -> str:
    size = draw.randrange(max(1, file.stat().st_size))
    with file.open("r+b") as opened:
        opened.truncate(size)
    return f"cut to {size} bytes"


def _flip(file: Path, draw: random.Random) -> str:
    content = bytearray(file.read_bytes())
    if not content:
        return "empty already"
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(bytes(content))
    return f"bit {bit} of byte {place} flipped"


def _empty(file: Path, _: random.Random) -> str:
    file.write_bytes(b"")
    return "emptied"


def _noise(file: Path, draw: random.Random) -> str:
    file.write_bytes(draw.randbytes(draw.choice((1, 9, 1000))))
    return "filled with noise"


def _remove(file: Path, _: random.Random) -> str:
    file.unlink()
    return "removed"


def _rename(file: Path, draw: random.Random) -> str:
    target = file.with_name(draw.choice((f"{file.name}.bak", f"tmp_{file.name}", "x y")))
    file.rename(target)
    return f"renamed to {target.name}"


def _swap(file: Path, draw: random.Random) -> str:
    other = draw.choice(sorted(p for p in file.parents[1].rglob("*") if p.is_file()))
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"swapped with {other.parent.name}/{other.name}"


def _become_folder(file: Path, _: random.Random) -> str:
    file.unlink()
    file.mkdir()
    return "replaced by a folder"


def _become_link(file: Path, draw: random.Random) -> str:
    target = draw.choice(("nowhere", file.name, "..", "/dev/null", "/dev/full"))
    file.unlink()
    file.symlink_to(target)
    return f"replaced by a link to {target}"


def _append(file: Path, draw: random.Random) -> str:
    with file.open("ab") as opened:
        opened.write(draw.choice((b"\n", b",,,\n", b"1,2\n", b"\xef\xbb\xbf", b"\0" * 99, b"{}")))
    return "lengthened"


def _add_file(file: Path, draw: random.Random) -> str:
    name = draw.choice(
        ("notes.txt", "checkpoint_000009", "checkpoint_best", "lock", ".lock", "x.pt")
    )
    target = file.with_name(name)
    if not target.exists():
        target.write_text("mine\n")
    return f"{name} added beside it"


def _copy_folder(folder: Path, draw: random.Random) -> str:
    names = (f"{folder.name}_copy", "checkpoint_000099", "checkpoint_20260131", "tmp_checkpoint_1")
    target = folder.with_name(draw.choice(names))
    if not target.exists():
        shutil.copytree(folder, target, symlinks=True)
    return f"copied to {target.name}"


def _rename_folder(folder: Path, draw: random.Random) -> str:
    target = folder.with_name(draw.choice((f"{folder.name}_old", "checkpoint_000001", "archive")))
    if target.exists():
        return "not renamed"
    folder.rename(target)
    return f"renamed to {target.name}"


def _remove_folder(folder: Path, _: random.Random) -> str:
    shutil.rmtree(folder)
    return "removed"


def _link_folder(folder: Path, draw: random.Random) -> str:
    target = folder.with_name(draw.choice(("checkpoint_000050", "latest", "checkpoint_best")))
    if not target.exists():
        target.symlink_to(draw.choice((folder.name, "nowhere", "..")))
    return f"link {target.name} added"


def _edit_json(file: Path, draw: random.Random) -> str:
    try:
        values = json.loads(file.read_text())
    except ValueError:
        return _cut(file, draw)
    places = list(_places(values))
    if not places:
        return _empty(file, draw)
    owner, key = draw.choice(places)
    if draw.random() < 0.25 and isinstance(owner, dict):
        del owner[key]
        what = "removed"
    else:
        owner[key] = draw.choice((None, "x", -1, 0, 1e999, [], {}, True, 2.5, "nan", 10**9))
        what = repr(owner[key])
    file.write_text(json.dumps(values))
    return f"{key!r} {what}"


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Return every place of a JSON value, as its owner and its key there."""
    if isinstance(values, dict):
        keys: list[Any] = list(values)
    elif isinstance(values, list):
        keys = list(range(len(values)))
    else:
        return []
    found = [(values, key) for key in keys]
    return found + [place for key in keys for place in _places(values[key])]


CHANGES: tuple[Callable[[Path, random.Random], str], ...] = (
    *(_cut, _flip, _flip, _empty, _noise, _remove, _rename, _swap, _become_folder, _become_link),
    *(_append, _add_file, _copy_folder, _rename_folder, _remove_folder, _link_folder),
)


def faults_of_damage(
    damage: Damage, world: Path, before: dict[str, str], ending: Ending
) -> list[str]:
    """Return the faults of a command that only it can have.

    Args:
        damage: The case.
        world: Folder of the world after the command.
        before: Contents of the damaged world before it.
        ending: Of the command.
    """
    faults, after = [], contents(world)
    kind = damage.command.partition(" ")[0]
    if ending.status == 0 and kind in RESULTS and RESULTS[kind] not in ending.text:
        faults.append("status 0 without its result")
    made = {"resume": "run/summary.json", "start": "new/summary.json"}.get(damage.command)
    if ending.status == 0 and made is not None and made not in after:
        faults.append("status 0 without its result")

    # nothing of the user is lost: by content where the run may rename or prune, by name elsewhere
    if damage.command == "resume":
        return faults + _lost_by_resume(before, after, ending)
    changed = [name for name, code in before.items() if after.get(name) != code]
    return faults + [f"{name} was changed or removed" for name in changed]


def _lost_by_resume(before: dict[str, str], after: dict[str, str], ending: Ending) -> list[str]:
    kept = set(after.values())
    weights = {name: code for name, code in before.items() if _is_weights(name)}
    lost = [name for name, code in weights.items() if code not in kept]
    own = [name for name in lost if _is_own(name)]
    faults = [f"{name} was removed, which is the user's" for name in lost if not _is_own(name)]
    newest = max((name for name in after if _is_weights(name) and _is_own(name)), default="")
    # a run prunes what is older than its last checkpoint, also if it fails later
    faults += [f"{name} was removed by a failed resume" for name in own if name >= newest]
    return faults if newest or ending.status else [*faults, "no checkpoint is left"]


def _is_weights(name: str) -> bool:
    return os.path.basename(name) == "policy.safetensors"


def _is_own(name: str) -> bool:
    """Return whether a file is in a checkpoint that the run made and may prune."""
    folder = name.split("/")[-2]
    return name.startswith("run/checkpoint_00000") and len(folder) == len("checkpoint_000000")
