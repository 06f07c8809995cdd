"""The letters of shapes: one legend for the whole project, which every module's `Letters:` uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEGEND = {
    "N": "rows",
    "B": "(minibatch )?rows",
    "E": "envs",
    "T": "chunk decisions",
    "K": "flow steps",
    "M": "scored flow steps",
    "H": "action horizon",
    "h": "executed actions",
    "R": "steps of a remainder",
    "A": "model action dim",
    "d": "robot action dim",
    "S": "model state dim",
    "s": "robot state dim",
    "L": "(prompt )?tokens( of .*)?",
    "D": "width( of .*)?",
    "F": "feature width",
    "W": "latent width",
    "Q": "critics",
    "V": "cameras",
    "C": "image channels and pixels",
    "Y": "image (channels and )?pixels",
    "X": "image (channels and )?pixels",
    "P": "population members",
    "G": "gene dim",
}
"""Meaning of each letter, as a pattern. Other axes have words for names."""
FOLDERS = ("policies", "rl", "envs", "experiments")


def meanings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the letters of a docstring's `Letters:` sentence with their meanings."""
    match = re.search(r"Letters: (.*?)\.(?:\s|$)", text, flags=re.DOTALL)
    if match is None:
        return
    sentence = re.sub(r"\s*\([^)]*\)", "", " ".join(match[1].split()))
    waiting: list[str] = []
    for item in sentence.split(", "):
        letter, _, meaning = item.partition(" ")
        waiting.append(letter)
        if meaning:  # letters without a meaning share that of the next one
            yield from ((name, meaning) for name in waiting)
            waiting = []
    assert not waiting, sentence


def docstrings(file: Path) -> Iterator[str]:
    """Yield the docstrings of a module, including those of attributes."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_letter_has_one_meaning_in_the_whole_project(folder: str) -> None:
    for file in sorted((ROOT / folder).rglob("*.py")):
        for letter, meaning in meanings(ast.get_docstring(ast.parse(file.read_text())) or ""):
            assert re.fullmatch(LEGEND.get(letter, "(unknown)"), meaning), (
                f"{file.relative_to(ROOT)}: {letter} {meaning}"
            )


def test_the_sentence_is_read_with_shared_and_bracketed_meanings() -> None:
    text = "Letters: N rows, Y, X image\npixels (of one camera), M scored flow steps. More."
    assert list(meanings(text)) == [
        ("N", "rows"),
        ("Y", "image pixels"),
        ("X", "image pixels"),
        ("M", "scored flow steps"),
    ]


def shapes(text: str) -> Iterator[str]:
    """Yield the letters in a text's shapes such as `(N, H, A)`."""
    for shape in re.findall(r"\(([\w.* +-]+(?:, [\w.* +-]+)+)\)", text):
        axes = shape.split(", ")
        if all(re.fullmatch(r"[A-Za-z]|\d+|\.\.\.|[A-Za-z] [*+-] \w+", axis) for axis in axes):
            yield from re.findall(r"\b[A-Za-z]\b", shape)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_letter_of_a_shape_is_in_the_module_s_legend(folder: str) -> None:
    missing = set()
    for file in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(file.read_text())
        declared = {letter for letter, _ in meanings(ast.get_docstring(tree) or "")}
        used = {letter for text in docstrings(file) for letter in shapes(text)}
        missing |= {f"{file.relative_to(ROOT)}: {letter}" for letter in used - declared}
    assert not missing, "\n".join(sorted(missing))
