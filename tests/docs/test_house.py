"""The figures that the code and its prose are held to; `tests/support/house.py` prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from documentation import ROOT
from house import Figures, figures

LONG_FILES: frozenset[str] = frozenset()
"""Files of more than 300 lines that are each still one thing."""
LONG_FUNCTIONS = 75


@pytest.fixture(scope="module")
def house() -> Figures:
    return figures(ROOT)


def test_no_what_as_a_noun(house: Figures) -> None:
    assert house.what < 1


def test_few_semicolons(house: Figures) -> None:
    assert house.semicolons < 3


def test_enough_examples(house: Figures) -> None:
    assert house.examples >= 0.5


def test_enough_comments(house: Figures) -> None:
    assert 1.5 <= house.comment_lines <= 5


def test_folders_are_small(house: Figures) -> None:
    assert {name: num for name, num in house.modules.items() if num > 14} == {}


def test_files_are_short(house: Figures) -> None:
    assert {name for name, num in house.files.items() if num > 300} == LONG_FILES


def test_functions_are_short(house: Figures) -> None:
    assert next(iter(house.functions.values())) <= LONG_FUNCTIONS


def test_the_figures_of_a_small_checkout_by_hand(tmp_path: Path) -> None:
    (tmp_path / "rl" / "parts").mkdir(parents=True)
    (tmp_path / "rl" / "__init__.py").write_text('"""Return what is; one example."""\n')
    (tmp_path / "rl" / "parts" / "a.py").write_text(
        "# a comment\n"
        "x = 1  # behind code; here\n"
        "y = 2  # type: ignore[assignment]\n"
        "def f():\n"
        '    """Do what."""\n'
        "    return '# no comment; no prose'\n"
    )
    found = figures(tmp_path)
    words = 5 + 3 + 4 + 2  # the two docstrings and the two comments, "#" counts as a word
    assert found.num_words == words
    assert found.what == pytest.approx(2 * 1000 / words)
    assert found.semicolons == pytest.approx(2 * 1000 / words)
    assert found.examples == pytest.approx(1000 / words)
    assert found.num_lines == 7
    assert found.comment_lines == pytest.approx(100 / 7)
    assert found.comments == pytest.approx(200 / 7)
    assert found.functions == {"rl/parts/a.py: f": 3}
    assert found.modules == {"rl/parts": 1}
    assert next(iter(found.files)) == "rl/parts/a.py"
    assert "largest file                6 lines, rl/parts/a.py" in found.report()


def test_a_folder_without_code_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"root=.* holds none of .*'rl'.*; pass a checkout's top"):
        figures(tmp_path)
