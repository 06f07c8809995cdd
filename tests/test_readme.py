"""README's code runs, and its length and tables are as promised."""

from __future__ import annotations

import re

import pytest
import torch

from documentation import ROOT

README = ROOT / "README.md"


def snippet(heading: str) -> str:
    """Return the first Python block under a heading."""
    section = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert found, heading
    return found[1]


def test_the_three_steps_run_in_at_most_twelve_lines(capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    code = snippet("Three steps")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    for step in ("1. wrap a model", "2. gather experience", "3. learn"):
        assert step in code
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    assert re.fullmatch(r"\d+\.\d % \[.*\] \(\d+/100\)\n", capsys.readouterr().out)
    assert names["metrics"]["ratio_deviation"] < 1e-4
    assert names["algorithm"].num_updates == 5


def test_every_algorithm_and_page_that_is_named_exists() -> None:
    from pitune import rl

    text = README.read_text()
    for name in rl.presets():
        assert f"| `{name}` |" in text, name
    linked = re.findall(r"\((docs/[\w/]+\.md)\)", text)
    assert len(linked) >= 15
    for page in linked:
        assert (ROOT / page).is_file(), page


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 130


def test_the_site_begins_with_the_same_code() -> None:
    assert snippet("Three steps") in (ROOT / "docs" / "index.md").read_text()
