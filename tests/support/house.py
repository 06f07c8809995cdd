"""Figures of the code and its prose, for any checkout of this repository.

    python tests/support/house.py --root DIR

prints the largest file, the longest function, the share of comments, the modules of each folder,
and three figures of the prose in docstrings and comments, per 1,000 words: "what", semicolons and
examples. Comments that only address a tool (`# type: ignore`, `# noqa`) are not counted.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CODE = ("rl", "policies", "envs", "experiments")
"""The folders that hold code."""
FOR_TOOLS = re.compile(r"#\s*(type:\s*ignore|noqa|fmt:|ruff:|pragma)")
EXAMPLE = re.compile(r"\be\.g\.|\bexamples?\b|\bsuch as\b", flags=re.IGNORECASE)
WHAT = re.compile(r"\bwhat\b", flags=re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of a checkout."""

    num_lines: int
    """Lines of code, docstrings and comments."""
    num_words: int
    """Words of docstrings and comments."""
    what: float
    """The word "what" [per 1,000 words]."""
    semicolons: float
    """Semicolons [per 1,000 words]."""
    examples: float
    """"e.g.", "example" and "such as" [per 1,000 words]."""
    comment_lines: float
    """Share of lines that hold nothing but a comment [%]."""
    comments: float
    """Share of lines that hold a comment, also behind code [%]."""
    files: dict[str, int]
    """Lines of each file, the longest first."""
    functions: dict[str, int]
    """Lines of each function, the longest first."""
    modules: dict[str, int]
    """Modules of each folder, without `__init__`, the most first."""

    def report(self) -> str:
        """Return the figures as text, a line each."""
        file, function, folder = (next(iter(x)) for x in (self.files, self.functions, self.modules))
        over = sum(lines > 300 for lines in self.files.values())
        return "\n".join(
            (
                f"lines                       {self.num_lines:,} in {len(self.files)} files",
                f"largest file                {self.files[file]} lines, {file}",
                f"files over 300 lines        {over}",
                f"longest function            {self.functions[function]} lines, {function}",
                f"most modules in a folder    {self.modules[folder]}, {folder}/",
                f"comment lines               {self.comment_lines:.1f} %",
                f"lines with a comment        {self.comments:.1f} %",
                f"words of prose              {self.num_words:,}",
                f"'what' per 1,000 words      {self.what:.1f}",
                f"semicolons per 1,000 words  {self.semicolons:.1f}",
                f"examples per 1,000 words    {self.examples:.1f}",
            )
        )


def figures(root: Path) -> Figures:
    """Return the figures of a checkout.

    Raises:
        ValueError: there is no code in the folder.
    """
    files = [file for folder in CODE for file in sorted((root / folder).rglob("*.py"))]
    if not files:
        raise ValueError(f"root={root} holds none of {CODE}; pass a checkout's top folder")
    sources = {str(file.relative_to(root)): file.read_text() for file in files}
    num_lines = {name: source.count("\n") for name, source in sources.items()}
    comments = {name: list(_comments(source)) for name, source in sources.items()}
    texts = [text for source in sources.values() for text in _docstrings(source)]
    prose = " ".join([*texts, *(text for found in comments.values() for text in found)])
    per_thousand = 1000 / len(prose.split())
    functions = Counter(
        {f"{file}: {name}": n for file, text in sources.items() for name, n in _functions(text)}
    )
    modules = Counter(str(Path(name).parent) for name in sources if "__init__" not in name)
    return Figures(
        num_lines=sum(num_lines.values()),
        num_words=len(prose.split()),
        what=len(WHAT.findall(prose)) * per_thousand,
        semicolons=prose.count(";") * per_thousand,
        examples=len(EXAMPLE.findall(prose)) * per_thousand,
        comment_lines=100 * sum(map(_comment_lines, sources.values())) / sum(num_lines.values()),
        comments=100 * sum(map(len, comments.values())) / sum(num_lines.values()),
        files=dict(Counter(num_lines).most_common()),
        functions=dict(functions.most_common()),
        modules=dict(modules.most_common()),
    )


def _comments(source: str) -> Iterator[str]:
    """Yield the comments of a file that address a reader, a line each."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not FOR_TOOLS.match(token.string):
            yield token.string


def _comment_lines(source: str) -> int:
    """Count the lines of a file that hold nothing but a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    alone = (t for t in tokens if t.type == tokenize.COMMENT and t.line.lstrip().startswith("#"))
    return sum(not FOR_TOOLS.match(token.string) for token in alone)


def _docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a file, also those under attributes."""
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def _functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield the functions of a file with their length [lines], decorators included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield node.name, (node.end_lineno or first) - first + 1


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="top folder of a checkout")
    print(figures(parser.parse_args().root).report())


if __name__ == "__main__":
    main()
