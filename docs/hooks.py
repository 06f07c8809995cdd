"""Generated and included parts of the documentation.

    python docs/hooks.py

writes every block between `<!-- generated: NAME -->` and `<!-- end of generated -->` anew, from the
code; a test holds the pages to it. The health tables have blocks of their own, see
`pitune.experiments.health.markdown`. MkDocs loads this file as a hook, which includes files of the
top folder in pages.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(
    r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end of generated -->)", flags=re.DOTALL
)
INCLUDE = re.compile(r"<!-- include: (\S+) -->\n")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    titles = list(header)
    cells = [titles, ["---"] * len(titles), *(list(row) for row in rows)]
    lines = [" | ".join(text.replace("|", r"\|") for text in row) for row in cells]
    return "\n".join(f"| {line} |" for line in lines)


def algorithms() -> str:
    """Return the registered algorithms with their variants."""
    from pitune.rl import registry

    rows = []
    for entry in registry.entries():
        page = "bc" if entry.name == "filtered_bc" else entry.name
        words = ", ".join(f"`{entry.name}:{word}`" for word in entry.variants)
        if not entry.algorithm.needs.rollouts:
            experience = "demonstrations"
        else:
            experience = "off-policy" if entry.off_policy else "on-policy"
        rows.append((f"[`{entry.name}`]({page}.md)", entry.description, experience, words))
    return table(("word", "update", "experience", "variants"), rows)


def likelihoods() -> str:
    """Return the registered likelihoods with their settings."""
    from pitune import policies

    rows = []
    for name, config in policies.likelihoods().items():
        purpose = (inspect.getdoc(type(config)) or "").partition("\n")[0]
        settings = ", ".join(f"`{f.name}`" for f in fields(config))
        rows.append((f"`{name}`", f"`{type(config).__name__}`", purpose, settings))
    return table(("word", "config", "description", "settings"), rows)


def keys() -> str:
    """Return the declared keys of rollouts, batches and replay rows."""
    from pitune.rl.experience.keys import KEYS

    rows = (
        (
            f"`{name}`",
            key.meaning,
            f"({', '.join(key.shape.split(','))})" if key.shape else "()",
            key.unit,
            ", ".join(key.places),
            f"`{key.writer}`",
            ", ".join(f"`{reader}`" for reader in key.readers),
        )
        for name, key in KEYS.items()
    )
    return table(("key", "meaning", "shape", "unit", "in", "writer", "readers"), rows)


def environments() -> str:
    """Return the registered prefixes with the options of their adapters."""
    from pitune import envs

    rows = []
    for prefix, kind in envs.prefixes().items():
        options = ", ".join(f"`{f.name}`" for f in fields(kind))
        rows.append((f"`{prefix}/`", f"`{kind.__name__}`", options))
    return table(("prefix", "options", "fields"), rows)


GENERATED: dict[str, Callable[[], str]] = {
    "algorithms": algorithms,
    "environments": environments,
    "keys": keys,
    "likelihoods": likelihoods,
}
"""The content of each block, by the block's name."""


def with_blocks(text: str) -> str:
    """Return a Markdown text with every generated block as the code has it.

    Raises:
        ValueError: a block has an unknown name.
    """

    def content(block: re.Match[str]) -> str:
        if block["name"] not in GENERATED:
            raise ValueError(f"unknown block {block['name']!r}; valid: {', '.join(GENERATED)}")
        return f"{block[1]}{GENERATED[block['name']]()}\n{block[3]}"

    return BLOCK.sub(content, text)


def with_includes(text: str) -> str:
    """Return a page with the files of the repository's top folder that it includes.

    Links of these files into `docs/` become links between pages.
    """

    def content(include: re.Match[str]) -> str:
        return (DOCS.parent / include[1]).read_text().replace("](docs/", "](")

    return INCLUDE.sub(content, text)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Include files; MkDocs calls this for each page."""
    return with_includes(markdown)


def main() -> None:
    """Write the generated blocks of all pages."""
    for file in sorted(DOCS.rglob("*.md")):
        text = file.read_text()
        if with_blocks(text) != text:
            file.write_text(with_blocks(text))
            print(f"wrote {file.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
