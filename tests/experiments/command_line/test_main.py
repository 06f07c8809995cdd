"""`pitune`: its commands, their two helps, and the messages for mistakes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pitune import rl
from pitune.experiments.command_line import outside as imports
from pitune.experiments.command_line.main import COMMANDS, GROUPS, main, overview

ROOT = Path(__file__).resolve().parents[3]
SCREENS, LINES, COLUMNS = 3, 40, 80
LAYERED = [
    *(["train", name] for name in sorted(rl.presets())),
    *(["bench", name] for name in ("delay", "parts", "pi0", "rollout", "serving", "update")),
    ["list"],
    ["doctor"],
]


def has_module(command: str) -> bool:
    module = f"pitune.experiments.{COMMANDS[command].module}"
    return importlib.util.find_spec(module) is not None


INVOCATIONS = [*([name] for name in COMMANDS if has_module(name)), *LAYERED]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LINES", str(LINES))


def run(capsys: pytest.CaptureFixture, *args: str) -> tuple[int, str, str]:
    """Run the command; return its exit status and its two outputs."""
    status = 0
    try:
        main(args)
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    return status, *capsys.readouterr()


# The overview


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("--help-all",)])
def test_the_overview_lists_every_command_in_a_group(
    args: tuple[str, ...], capsys: pytest.CaptureFixture
) -> None:
    status, out, err = run(capsys, *args)
    assert (status, err) == (0, "")
    for title, group in GROUPS.items():
        assert f"\n{title}:\n" in out
        for name, command in group.items():
            assert f"\n  {name:<11} {command.summary}\n" in out
    assert len([line for line in out.splitlines() if line.startswith("  pitune ")]) == 2
    assert all(len(line) <= COLUMNS for line in out.splitlines())
    assert len(out.splitlines()) <= LINES


def test_the_overview_imports_nothing_heavy() -> None:
    code = "import sys; from pitune.experiments.command_line.main import main; main(['--help'])\n"
    code += "assert not {'torch', 'tyro', 'numpy', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_the_examples_of_the_overview_parse(capsys: pytest.CaptureFixture) -> None:
    examples = [line.split() for line in overview().splitlines() if line.startswith("  pitune ")]
    for _, *words in examples:
        status, _, err = run(capsys, *words, "--help")
        assert (status, err) == (0, "")


# The helps


@pytest.mark.parametrize("args", INVOCATIONS, ids=" ".join)
def test_the_help_of_a_command_fits_three_screens(
    args: list[str], capsys: pytest.CaptureFixture
) -> None:
    status, out, err = run(capsys, *args, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")
    assert max(map(len, out.splitlines())) <= COLUMNS
    assert len(out.splitlines()) <= SCREENS * LINES


@pytest.mark.parametrize("args", INVOCATIONS, ids=" ".join)
def test_the_full_help_has_at_least_the_options_of_the_short_one(
    args: list[str], capsys: pytest.CaptureFixture
) -> None:
    short, full = (
        set(re.findall(r"^│ (--[\w.-]+)", run(capsys, *args, flag)[1], re.MULTILINE))
        for flag in ("--help", "--help-all")
    )
    assert short <= full
    assert short or args in (["bench"], ["doctor"], ["inspect"], ["list"])


def test_only_the_full_help_lists_options_that_are_not_basic(capsys: pytest.CaptureFixture) -> None:
    short, full = (run(capsys, "train", "ppo", flag)[1] for flag in ("--help", "--help-all"))
    for option in ("--algorithm.advantage.gae-lambda", "--torch-threads", "--load.norm-stats"):
        assert option not in short
        assert option in full
    assert "--help-all lists all" in short


def test_the_help_of_train_lists_the_algorithms(capsys: pytest.CaptureFixture) -> None:
    out = run(capsys, "train", "--help")[1]
    for entry in rl.registry.entries():
        assert f"\n  {entry.name:<11}  {entry.description.split()[0]} " in out
    assert "--num-iterations" in out
    assert "--algorithm." not in out


def test_modules_run_as_scripts_under_both_names() -> None:
    for package in ("experiments", "pitune.experiments"):
        command = [sys.executable, "-m", f"{package}.norm_stats", "--help"]
        shown = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
        assert shown.stdout.startswith(f"usage: python -m {package}.norm_stats ")


# Mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'? `pitune --help` lists"),
        ("zzzzzz", "unknown command 'zzzzzz'; `pitune --help` lists the commands"),
        (
            "bench rolout",
            "unknown benchmark 'rolout'; did you mean 'rollout'? valid: attention, delay, ",
        ),
        ("list algoritms", "unknown list 'algoritms'; did you mean 'algorithms'? valid: "),
        ("list algorithms all", "unknown list 'algorithms all'; valid: algorithms, "),
        ("doctor all", "`pitune doctor` takes no arguments, and got 'all'"),
        ("train pppo", "unknown algorithm 'pppo'; did you mean 'ppo'? registered: "),
        ("train ppo:nope", "unknown variant 'nope' in algorithm='ppo:nope'; valid after the"),
        (
            "train dgn:nope",
            "unknown variant 'nope' in algorithm='dgn:nope'; did you mean 'dgn:none'?",
        ),
        ("train bc:flow_sde", "bc has no variants; take algorithm='bc' alone"),
        ("train ppo --env.id mojo/Reach", "unknown environment"),
        (
            "train ppo --num-envs 3",
            "unrecognized options: --num-envs, 3; did you mean --env.num-envs? "
            "`pitune train ppo --help-all` lists the options\n",
        ),
        ("train ppo --seed x", "--seed takes a whole number, not 'x'"),
        ("train ppo --num-iterations 0", "num_iterations=0 must be at least 1; `pitune train"),
        ("norm-stats", "missing --checkpoint, --demonstrations, --out; `pitune norm-stats --help"),
        (
            "verify --inputs x",
            "missing PATH, --outputs; `pitune verify --help-all` lists the options",
        ),
        ("--import", "--import has no value; pass a module or a .py file"),
        ("--import nope.module list algorithms", "there is no module --import=nope.module; pass"),
        ("list --import=nope.py algorithms", "there is no file --import=nope.py; pass the path"),
    ],
)
def test_mistakes_end_in_one_sentence(
    args: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    status, out, err = run(capsys, *args.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = (
        f"{sys.executable} -u -m pitune.experiments.command_line.main list algorithms | head -1"
    )
    shown = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.count("\n") == 1
    assert shown.stderr == ""


# Modules from outside

OUTSIDE = '''
from dataclasses import dataclass

import torch

from pitune import envs, rl
from pitune.policies import FlowPolicy, FlowSDEConfig, LikelihoodActor


@dataclass(frozen=True, kw_only=True)
class NudgeConfig(rl.AlgorithmConfig):
    """Settings of the nudge."""

    step: float = 1e-3
    """Size of a step [-]."""


@rl.register("nudge", NudgeConfig, variants={"big": {"step": 0.5}})
class Nudge(rl.Algorithm[NudgeConfig]):
    """Moves every weight by a fixed step."""

    def __init__(self, config: NudgeConfig, policy: FlowPolicy) -> None:
        super().__init__(config, LikelihoodActor(policy, FlowSDEConfig()))

    def update(self, rollout) -> dict[str, float]:
        with torch.no_grad():
            for parameter in self.actor.policy.parameters():
                parameter += self.config.step
        self.num_updates += 1
        return {"step": self.config.step}
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write an algorithm outside the repository; it is forgotten after the test."""
    rl.presets()
    monkeypatch.setattr(rl.registry, "_REGISTRY", dict(rl.registry._REGISTRY))
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"outside_{tmp_path.name}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    file = tmp_path / f"{name}.py"
    file.write_text(OUTSIDE)
    return str(file)


def test_an_algorithm_from_outside_trains(
    outside: str, half_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = "--env.id mock/Reach --env.num-envs 4 --env.num-workers 0 --eval-episodes 4 "
    options += "--num-iterations 2 --num-chunks 4 --wandb off --no-video --device cpu"
    folders = ["--checkpoint", str(half_trained), "--out", str(tmp_path / "run")]
    status, _, err = run(
        capsys, "train", "nudge:big", "--import", outside, *options.split(), *folders
    )
    assert status == 0, err
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2
    step = rows[0].split(",").index("step")
    assert {row.split(",")[step] for row in rows[1:]} == {"0.5"}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_outside_modules_are_imported_wherever_the_option_stands(
    place: int, outside: str, capsys: pytest.CaptureFixture
) -> None:
    args = ["list", "algorithms"]
    args[place:place] = ["--import", outside]
    status, out, _ = run(capsys, *args)
    assert status == 0
    assert "\n  nudge        Moves every weight by a fixed step.\n" in out
    assert "variants: nudge:big\n" in out


def test_the_help_of_an_outside_algorithm_lists_all_of_its_options(
    outside: str, capsys: pytest.CaptureFixture
) -> None:
    out = run(capsys, "--import", outside, "train", "nudge", "--help")[1]
    assert "Moves every weight by a fixed step." in out
    assert "--algorithm.step FLOAT" in out


def test_a_file_that_hides_another_module_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "json.py"
    file.write_text("")
    status, _, err = run(capsys, "--import", str(file), "list", "algorithms")
    assert status == 2
    assert f"error: --import={file} has the name of " in err
    assert "which Python finds first; rename the file" in err


def test_only_imports_that_succeeded_are_repeated_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "IMPORTED", [])
    monkeypatch.chdir(tmp_path)
    Path("found_here_alone.py").write_text("")
    with pytest.raises(ImportError, match="no module"):
        imports.import_outside("nope.module")
    with pytest.raises(ImportError, match="no file"):
        imports.import_outside("nope.py")
    imports.import_outside("found_here_alone.py")
    imports.import_outside("json")
    # a path that holds in a process that begins elsewhere
    assert [str(tmp_path / "found_here_alone.py"), "json"] == imports.IMPORTED
