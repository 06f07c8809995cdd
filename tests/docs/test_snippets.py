"""Every snippet of README and docs runs: Python is executed, commands are parsed.

A comment above a block changes that, and is invisible on the page:

- `<!-- test: skip because REASON -->` leaves the block out;
- `<!-- test: given NAME -->` runs a function of `GIVEN` first, whose result are further names of
  Python, and whose files are there for commands;
- `<!-- test: file NAME -->` also writes the block to a file, for the commands of the page;
- `<!-- test: with NAME -->` is for commands that import such a file.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import tyro

from documentation import PAGES, ROOT, Block, blocks, commands

FIXTURES = ROOT / "tests" / "fixtures"
MARK = re.compile(r"(skip because \w.+|(given|file|with) \S+|)")
pages_with_python = [page for page in PAGES if any(b.language == "python" for b in blocks(page))]
console_blocks = [
    block
    for page in PAGES
    for block in blocks(page)
    if block.language == "bash" and any(commands(block))
]


algorithm_pages = pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name == "algorithms" and page.stem != "index"],
    ids=lambda page: page.stem,
)


class ParsedError(BaseException):
    """The arguments of a command were accepted; nothing has run."""


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a snippet register names that are forgotten afterwards."""
    from pitune import envs, policies, rl

    rl.presets(), policies.likelihoods(), envs.prefixes()  # the built-in ones stay
    for module, name in (
        ("pitune.rl.registry", "_REGISTRY"),
        ("pitune.policies.likelihood.registry", "_REGISTRY"),
        ("pitune.envs.registry", "_ADAPTERS"),
    ):
        loaded = importlib.import_module(module)
        monkeypatch.setattr(loaded, name, dict(getattr(loaded, name)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(gymnasium.registry)
    yield
    for name in set(gymnasium.registry) - known:
        del gymnasium.registry[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def pi05_libero(folder: Path) -> dict[str, Any]:
    """Lay out a tiny openpi checkpoint as the page names it, and return a robot's observation."""
    shutil.copytree(FIXTURES / "openpi" / "pi05_tiny" / "checkpoint", folder / "pi05_libero")
    shutil.copy(FIXTURES / "openpi" / "pi05_tiny" / "arch.json", folder / "pi05_libero")
    shutil.copy(FIXTURES / "tiny_tokenizer" / "paligemma_tokenizer.model", folder)
    stored = np.load(FIXTURES / "openpi" / "pi05_tiny" / "policy_io.npz")
    return {
        "image": stored["raw/observation/image"],
        "wrist": stored["raw/observation/wrist_image"],
        "state": stored["raw/observation/state"],
    }


def run(folder: Path) -> dict[str, Any]:
    """Write the settings of the run that the page resumes."""
    from pitune import rl
    from pitune.experiments.runs.config_file import write_config
    from pitune.experiments.train import TrainConfig

    config = TrainConfig(algorithm=rl.PPOConfig())
    file = folder / "runs" / "pick" / "ppo" / "config.json"
    write_config(file, config.identity(), {**config.limits(), **config.reports()})
    return {}


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {"pi05_libero": pi05_libero, "run": run}


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks of a page that are marked as files."""
    for block in blocks(page):
        if block.mark.startswith("file "):
            (folder / block.mark.removeprefix("file ")).write_text(block.code)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Parse a command with its own parser, and stop where it would run; return an error, or ''."""
    program, *arguments = words
    if program == "python":
        module, *arguments = arguments
        if "experiments" not in module:
            return ""
        program = f"pitune.{module.removeprefix('pitune.')}"
    else:
        program = "pitune.experiments.command_line.main"
    real = tyro.cli

    def parsed(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise ParsedError

    printed = StringIO()
    with monkeypatch.context() as patch, redirect_stderr(printed), redirect_stdout(printed):
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(tyro, "cli", parsed)
        try:
            importlib.import_module(program).main()
        except ParsedError:
            return ""
        except SystemExit as stopped:
            return f"{printed.getvalue()}{stopped}" if stopped.code else ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("page", pages_with_python, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("registries")
def test_python_snippets_run(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks(page):
            if block.language != "python" or block.mark.startswith("skip"):
                continue
            if block.mark.startswith("given "):
                names |= GIVEN[block.mark.removeprefix("given ")](folder)
            code = "\n" * block.line + block.code  # so that a traceback has the page's line
            exec(compile(code, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("block", console_blocks, ids=lambda block: block.name)
@pytest.mark.usefixtures("registries")
def test_commands_are_spelled_as_the_parser_has_them(
    block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.mark.startswith("skip"):
        pytest.skip(block.mark)
    write_files(block.page, folder)
    if block.mark.startswith("given "):
        GIVEN[block.mark.removeprefix("given ")](folder)
    for words in commands(block):
        assert not parse(words, monkeypatch), " ".join(words)


@algorithm_pages
@pytest.mark.usefixtures("registries")
def test_options_in_tables_are_spelled_as_the_parser_has_them(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for span in re.findall(r"`(--algorithm\.[^`]+)`", page.read_text()):
        words = ["pitune", "train", page.stem, "--checkpoint", "policy", *span.split()]
        assert not parse(words, monkeypatch), span


@algorithm_pages
def test_settings_that_are_named_exist(page: Path) -> None:
    """`clip.low` on ppo's page is a field of a field of its config."""
    from pitune import rl

    config = rl.preset(page.stem)
    learner = getattr(config, "learner", config)
    text = re.sub(r"<!-- health: .*?<!-- end of health -->", "", page.read_text(), flags=re.DOTALL)
    for span in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:=[^`]*)?`", text):
        first, *rest = span.split(".")
        owner = next((part for part in (config, learner) if hasattr(part, first)), None)
        if owner is not None:
            value = getattr(owner, first)
            for name in rest:
                assert hasattr(value, name), span
                value = getattr(value, name)


@pytest.mark.parametrize(
    "words",
    [
        ["pitune", "train", "ppo", "--algorithm.no-such-setting", "1"],
        ["pitune", "train", "poo"],
        ["pitune", "quickstart", "--fats"],
        ["pitune", "trian", "ppo"],
        ["python", "experiments.evaluate", "--checkpiont", "x"],
    ],
    ids=" ".join,
)
def test_a_misspelled_command_would_be_seen(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse(words, monkeypatch)


def test_marks_are_known_and_skips_are_rare() -> None:
    marks = [(block.name, block.mark) for page in PAGES for block in blocks(page)]
    for name, mark in marks:
        assert MARK.fullmatch(mark), f"{name}: {mark!r}"
        if mark.startswith("given "):
            assert mark.removeprefix("given ") in GIVEN, name
    assert sum(mark.startswith("skip") for _, mark in marks) <= 3
    assert len(pages_with_python) >= 8
    assert len(console_blocks) >= 20


def test_every_fence_is_a_block() -> None:
    """A fence that the pattern does not see would never be tested."""
    for page in PAGES:
        fences = re.findall(r"^\s*```", page.read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page
