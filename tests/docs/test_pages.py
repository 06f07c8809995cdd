"""The pages of the documentation: generated parts, links, style."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from documentation import PAGES, ROOT, blocks, prose

BRITISH = re.compile(
    r"\b\w*(?:behaviour|colour|favour|neighbour|honour|centre|metre|grey|artefact|modelling"
    r"|(?:normal|regular|general|special|initial|serial|token|standard|vector|optim|maxim|minim"
    r"|recogn|summar|parametr|discret|synchron|quant|penal|real|organ|util|visual)is(?:e|ing|ation))"
    r"\w*",
    flags=re.IGNORECASE,
)
LIST = re.compile(r"^\s*(?:[-*]|\d+\.) ")
TWO_SENTENCES = re.compile(r"(?<!\be\.)(?<!\ba)(?<!\be)(?<!\bD)[\w)`*%]\. +[A-Z`*\[(π]")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def load_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


@pages
def test_generated_parts_are_those_of_the_code(page: Path) -> None:
    text = page.read_text()
    assert text == hooks.with_blocks(text), "run python docs/hooks.py"


def test_every_generator_has_a_place() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"<!-- generated: (\w+) -->", text)) == set(hooks.GENERATED)
    assert text.count("<!-- generated: ") == text.count("<!-- end of generated -->")


def test_an_old_table_would_be_seen() -> None:
    text = "<!-- generated: likelihoods -->\n| old |\n<!-- end of generated -->\n"
    assert hooks.with_blocks(text) != text
    assert hooks.with_blocks(hooks.with_blocks(text)) == hooks.with_blocks(text)
    with pytest.raises(ValueError, match="unknown block 'metrix'; valid: algorithms, "):
        hooks.with_blocks("<!-- generated: metrix -->\n<!-- end of generated -->")


def test_included_files_link_to_pages() -> None:
    text = hooks.with_includes("<!-- include: CONTRIBUTING.md -->\n")
    assert text.startswith("# Contributing\n")
    assert "](tutorials/algorithm.md)" in text
    assert "](docs/" not in text


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        if anchor:
            assert anchor in anchors(file), target


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths of the code are right after it has moved."""
    if page.name == "CHANGELOG.md":
        return
    known = r"(?:rl|policies|envs|experiments|tests|docs)/[\w/]*(?:\.(?:py|md)|/)"
    for path in re.findall(rf"`({known})`", page.read_text()):
        assert (ROOT / path).exists(), path


@pages
def test_every_page_is_in_the_navigation(page: Path) -> None:
    if page.is_relative_to(ROOT / "docs"):
        navigation = (ROOT / "mkdocs.yml").read_text()
        assert f"{page.relative_to(ROOT / 'docs')}\n" in navigation


@pages
def test_a_line_holds_one_sentence_of_at_most_120_characters(page: Path) -> None:
    for number, line in prose(page):
        bare = re.sub(r"\]\([^)]*\)|https?://\S+", "]", line)
        assert len(bare) <= 120, f"{page.name}:{number}"
        assert line.count("`") % 2 == 0, f"{page.name}:{number}: a span of code is broken"
        assert not TWO_SENTENCES.search(LIST.sub("", line)), f"{page.name}:{number}: {line}"


def test_a_second_sentence_and_british_spelling_would_be_seen() -> None:
    assert TWO_SENTENCES.search("It ends. The next begins.")
    assert TWO_SENTENCES.search("It is `here`. `This` follows.")
    assert not TWO_SENTENCES.search("Chen et al. 2025 has eq. 9, e.g. `this`.")
    assert BRITISH.search("unnormalised")
    assert BRITISH.search("Neighbours")
    assert not BRITISH.search("otherwise a realistic, parallel rise is normal")


@pages
def test_spelling_is_american(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not BRITISH.findall(text)


def test_the_prose_is_plain() -> None:
    text = " ".join(line for page in PAGES for _, line in prose(page))
    words = len(text.split())
    assert words > 5000
    assert 1000 * len(re.findall(r"\bwhat\b", text, flags=re.IGNORECASE)) / words < 1
    assert 1000 * text.count(";") / words < 3
    people = re.findall(r"\b(?:tells?|told|hears?|heard|says?|said)\b", text)
    assert not people


def test_snippets_are_short_lines() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                assert all(len(line) <= 100 for line in block.code.splitlines()), block.name
