"""`pitune doctor`: versions, devices, renderers, simulators, name clashes and disk space.

It imports nothing heavy before it needs it, so that it also reports a broken installation.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.outside import import_outside_modules
from pitune.extras import EXTRAS, install_command

PACKAGE = Path(__file__).parents[2]
"""The package `pitune`; in the source tree its folders are links."""
LEAST_FREE = 20 * 2**30
"""Free disk space below which a note is printed; a checkpoint of π0 has 7 GB [bytes]."""


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Example:
        >>> Finding("python", "3.9, but 3.11 or later is needed", ok=False).line()
        '  BAD  python             3.9, but 3.11 or later is needed'
    """

    name: str
    text: str
    ok: bool | None = True
    """False for a fault; None for a note on something optional."""

    def line(self) -> str:
        """Return it for the terminal."""
        mark = {True: "ok  ", False: "BAD ", None: "note"}[self.ok]
        return f"  {mark} {self.name:<18} {self.text}"


def diagnose() -> dict[str, list[Finding]]:
    """Return the findings by section."""
    core, extras = requirements()
    return {
        "packages": [python(), *(package(line) for line in core)],
        "extras": [extra(name, lines) for name, lines in extras.items()],
        "compute": [cuda()],
        "rendering": renderers(),
        "names": names(),
        "disk": [disk(Path.cwd())],
    }


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Return the requirements of the core and of each extra, as setup.cfg has them."""
    source = PACKAGE.parent / "setup.cfg"
    if source.is_file():  # a checkout, perhaps newer than what is installed
        config = ConfigParser(interpolation=None)
        config.read(source, encoding="utf-8")
        core = config["options"]["install_requires"].split("\n")
        wanted = {name: config["options.extras_require"][name].split("\n") for name in EXTRAS}
    else:
        # the record of the installed package
        lines = metadata.requires("pitune") or []
        core = [line for line in lines if "extra ==" not in line]
        wanted = {n: [x for x in lines if re.search(f"extra == .{n}.", x)] for n in EXTRAS}
    return _stated(core), {name: _stated(lines) for name, lines in wanted.items()}


def _stated(lines: Sequence[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


def python() -> Finding:
    """Return the version of Python."""
    fits = sys.version_info >= (3, 10)
    return Finding("python", f"{platform.python_version()} (>=3.10), {sys.executable}", fits)


def package(requirement: str) -> Finding:
    """Return whether the installed version of a package fits a requirement."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return Finding(wanted.name, f"not for this platform: {wanted.marker}", None)
    try:
        installed = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(
            wanted.name, f"not installed; pip install {_quoted(wanted.name, wanted)}", False
        )
    if not wanted.specifier.contains(installed, prereleases=True):
        mend = f"pip install {_quoted(wanted.name, wanted)}"
        return Finding(wanted.name, f"{installed} does not fit {wanted.specifier}; {mend}", False)
    return Finding(wanted.name, f"{installed} ({wanted.specifier})")


def _quoted(name: str, wanted: object) -> str:
    return f'"{name}{getattr(wanted, "specifier", "")}"'


def extra(name: str, lines: Sequence[str]) -> Finding:
    """Return whether the packages of an extra are installed."""
    found = [package(re.sub(r"\s*;.*", "", line)) for line in lines]
    text = ", ".join(f"{f.name} {f.text.partition(' ')[0]}" for f in found if f.ok)
    if all(f.ok for f in found):
        return Finding(name, text)
    missing = ", ".join(f.name for f in found if not f.ok)
    return Finding(name, f"without {missing}; {install_command(name)} brings it", None)


def cuda() -> Finding:
    """Return the GPUs that PyTorch can use."""
    try:
        import torch
    except ImportError as error:
        return Finding("torch", f"cannot be imported: {error}", False)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "this PyTorch is built for the CPU" if built is None else f"built for CUDA {built}"
        return Finding("cuda", f"no device ({why}); {os.cpu_count()} CPU cores", None)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("cuda", f"{torch.version.cuda}: {', '.join(devices)}")


def renderers() -> list[Finding]:
    """Return what can draw: each attempt is a process of its own, as a driver may crash."""
    from pitune.envs.rendering import opengl, vulkan

    findings = []
    for backend in ("egl", "osmesa"):
        problem = opengl.try_backend(backend)
        package = opengl.PACKAGES[backend]
        text = "draws" if problem is None else f"does not draw: {problem}; apt install {package}"
        findings.append(Finding(backend, text, True if problem is None else None))
    setting = os.environ.get("MUJOCO_GL", "unset")
    try:
        used = f"pictures and films with {opengl.opengl_backend()} (MUJOCO_GL={setting})"
        findings.append(Finding("mujoco", used))
    except RuntimeError as error:
        findings.append(Finding("mujoco", f"no pictures and no films: {error}", None))

    # ManiSkill
    if importlib.util.find_spec("sapien") is None:
        return [*findings, Finding("vulkan", "not tried: ManiSkill is not installed", None)]
    problem = vulkan.vulkan_problem()
    if problem is None:
        return [*findings, Finding("vulkan", "draws: pictures and films of maniskill/")]
    text = f"states and no pictures of maniskill/: {problem}; {vulkan.DRIVER_NEEDED}"
    return [*findings, Finding("vulkan", text, None)]


def names() -> list[Finding]:
    """Return whether another package stands in the place of one of ours."""
    findings = []
    for name in ("rl", "policies", "envs", "experiments"):
        spec = importlib.util.find_spec(f"pitune.{name}")
        where = None if spec is None or spec.origin is None else Path(spec.origin)
        # in the source tree `pitune/` holds links to the folders, so the links are compared
        ours = where is not None and where.resolve().parent == (PACKAGE / name).resolve()
        text = f"{where}" if ours else f"{where} hides ours; run elsewhere or uninstall it"
        findings.append(Finding(f"pitune.{name}", text, ours))

    # other distributions with a package of our name
    owners = sorted(set(metadata.packages_distributions().get("pitune", [])) - {"pitune"})
    if owners:
        text = f"also installed by {', '.join(owners)}; pip uninstall {' '.join(owners)}"
        findings.append(Finding("pitune", text, False))
    return findings


def disk(folder: Path) -> Finding:
    """Return the free space where runs are written."""
    free = shutil.disk_usage(folder).free
    enough = True if free >= LEAST_FREE else None
    return Finding("free", f"{free / 2**30:.0f} GiB in {folder}", enough)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry; exits with 1 if something is broken."""
    with exit_with_message():
        args = import_outside_modules(sys.argv[1:] if argv is None else argv)
        if args and args[0] in ("-h", "--help", "--help-all"):
            print(
                "usage: pitune doctor\n\nCheck versions, devices, renderers, names and disk space."
            )
            return
        if args:
            raise ValueError(f"`pitune doctor` takes no arguments, and got {' '.join(args)!r}")
        report = diagnose()
    for section, findings in report.items():
        print("\n".join([f"{section}:", *(finding.line() for finding in findings), ""]))
    bad = [f.name for findings in report.values() for f in findings if f.ok is False]
    print(f"to mend: {', '.join(bad)}" if bad else "everything that is needed is here")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
