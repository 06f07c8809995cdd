"""The pages of the documentation, their code blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"(?:^<!-- test: (?P<mark>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)
COMMAND = re.compile(r"(?:\.venv/bin/)?(?:pitune|python -m (?:pitune\.)?experiments\.)(?=[\w ])")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of code, and the comment `<!-- test: ... -->` above it."""

    page: Path
    line: int
    language: str
    code: str
    mark: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            code=found["code"],
            mark=found["mark"] or "",
        )
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the commands of this repository in a block: program or module first, then arguments."""
    for line in block.code.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):  # OMP_NUM_THREADS=1
                words.pop(0)
            if not words:
                continue
            if Path(words[0]).name == "pitune":
                yield ["pitune", *words[1:]]
            elif Path(words[0]).name == "python" and words[1:2] == ["-m"]:
                yield ["python", *words[2:]]


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page that are sentences, with their numbers: no code and no tables."""
    text = page.read_text()
    hidden = re.sub(r"^```.*?^```$|<!--.*?-->", _blank, text, flags=re.DOTALL | re.MULTILINE)
    for number, line in enumerate(hidden.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith(("|", "#", "!", ":::")):
            yield number, line


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")
