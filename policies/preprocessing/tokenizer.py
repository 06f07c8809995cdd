"""Tokens of a prompt, by the tokenizer that the checkpoint was trained with.

The tokenizer belongs to the weights, so it is stored with the checkpoint and never downloaded. Both
formats of PaliGemma's tokenizer give the same tokens: Google's sentencepiece file, and the
`tokenizer.json` of Hugging Face.
Source: openpi `models/tokenizer.py`; Beyer et al. 2024 (PaliGemma).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from pitune.extras import install_command

PALIGEMMA_PIECES = 257_152
"""Rows of PaliGemma's embedding: Gemma's tokens, and those of locations and segments."""
PALIGEMMA_NEWLINE = 108
"""PaliGemma's token of a line break, which ends a prompt."""
IMAGE_TOKEN = "<image>"
"""A token that Hugging Face adds to PaliGemma's. No network has an embedding for it."""
FILES = ("tokenizer.json", "tokenizer.model", "paligemma_tokenizer.model")
"""File names of a tokenizer in a folder. The first one that exists is loaded."""
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that `transformers` needs beside a `tokenizer.json`. They are not used here."""
FETCH = (
    "fetch gs://big_vision/paligemma_tokenizer.model, or tokenizer.json of the hub's "
    "google/paligemma-3b-pt-224"
)


class _Backend(Protocol):
    """Interface of the two libraries."""

    vocab_size: int
    bos: int

    def encode(self, text: str) -> list[int]: ...


class _SentencePiece:
    """A sentencepiece file."""

    def __init__(self, file: Path) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(file.read_bytes())
        self.vocab_size, self.bos = self.processor.vocab_size(), self.processor.bos_id()

    def encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))


class _HuggingFace:
    """A `tokenizer.json` of Hugging Face."""

    def __init__(self, file: Path) -> None:
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        tokens = self.tokenizer.get_vocab(with_added_tokens=True)
        self.bos = tokens.get("<bos>", -1)
        self.vocab_size = 1 + max(i for token, i in tokens.items() if token != IMAGE_TOKEN)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


class Tokenizer:
    """Text to tokens. `Tokenizer.load` makes one.

    Attributes:
        file: File of the tokenizer.
        vocab_size: Number of tokens.

    Example:
        >>> tokenizer = Tokenizer.load("paligemma_tokenizer.model")  # doctest: +SKIP
        >>> tokens = tokenizer.encode("push the cube")  # doctest: +SKIP
    """

    def __init__(self, file: Path, backend: _Backend) -> None:
        self.file = file
        self.vocab_size = backend.vocab_size
        self._backend = backend

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Load a sentencepiece `.model`, a `tokenizer.json`, or a folder with one of them.

        Raises:
            FileNotFoundError: there is no tokenizer.
            ModuleNotFoundError: the library for its format is not installed.
            ValueError: it is damaged, or has no beginning-of-sequence token.
        """
        file = _file_of(Path(path))
        if file is None:
            raise FileNotFoundError(
                f"no tokenizer at {path}; it should be a .model file, a tokenizer.json, or a "
                f"folder with one of {list(FILES)}"
            )

        # backend of the file's type
        try:
            backend: _Backend = (
                _HuggingFace(file) if file.suffix == ".json" else _SentencePiece(file)
            )
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{file} is read with {error.name}, and that is not installed; run "
                f"{install_command('vlm')}"
            ) from error
        except Exception as error:  # both libraries raise errors of many types
            raise ValueError(f"{file} is damaged or no tokenizer ({error}); {FETCH}") from error
        if backend.bos < 0:
            raise ValueError(f"{file} has no <bos> token, with which every prompt begins; {FETCH}")
        return cls(file, backend)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: Any text. Unknown characters are encoded as bytes.
            bos: Whether the beginning-of-sequence token comes first.

        Raises:
            ValueError: the text contains `<image>`, which has no embedding.
        """
        tokens = self._backend.encode(text)
        if any(token >= self.vocab_size for token in tokens):
            raise ValueError(
                f"the text {text!r} holds {IMAGE_TOKEN}, which no network has an embedding of; "
                "remove it, pictures are given apart from the prompt"
            )
        return [self._backend.bos, *tokens] if bos else tokens

    def check(self, vocab_size: int) -> None:
        """Reject a network with `vocab_size` embeddings that this tokenizer does not match.

        Raises:
            ValueError: there are more tokens than embeddings, or the tokens are not PaliGemma's
                although the embeddings are.
        """
        if self.vocab_size > vocab_size:
            raise ValueError(
                f"the tokenizer {self.file} has {self.vocab_size} tokens, the network has "
                f"embeddings of {vocab_size}; take the tokenizer that it was trained with"
            )

        # another tokenizer may have as many tokens
        newline = self.encode("\n", bos=False)
        if vocab_size == PALIGEMMA_PIECES and newline != [PALIGEMMA_NEWLINE]:
            raise ValueError(
                f"the tokenizer {self.file} encodes a line break as {newline}, PaliGemma's as "
                f"[{PALIGEMMA_NEWLINE}]; the network was trained with the latter, {FETCH}"
            )

    def copy_to(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder, which is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.file.suffix != ".json":
            shutil.copyfile(self.file, folder / "tokenizer.model")
            return
        shutil.copyfile(self.file, folder / "tokenizer.json")
        for name in BESIDE:
            if (self.file.parent / name).is_file():
                shutil.copyfile(self.file.parent / name, folder / name)


def find_tokenizer(checkpoint: Path, given: Path | None = None) -> Path | None:
    """Return the path of a checkpoint's tokenizer, or None. Nothing is downloaded.

    The search order is `tokenizer/` in the checkpoint, files beside its weights, the given path,
    and the two places of openpi.

    Raises:
        FileNotFoundError: there is no tokenizer at the given path.
    """
    if given is not None and _file_of(given) is None:
        raise FileNotFoundError(
            f"no tokenizer at {given}; give a .model file, a tokenizer.json, or a folder with one "
            f"of {list(FILES)}"
        )
    places = [checkpoint / "tokenizer", checkpoint, *([] if given is None else [given])]
    files = (_file_of(place) for place in (*places, *_openpi_files()))
    return next((file for file in files if file is not None), None)


def load_tokenizer(checkpoint: Path, given: Path | None, vocab_size: int) -> Tokenizer:
    """Find, load and check the tokenizer of a network with `vocab_size` embeddings.

    Raises:
        FileNotFoundError: there is no tokenizer.
        ModuleNotFoundError: the library for its format is not installed.
        ValueError: it is damaged, or belongs to another network.
    """
    file = find_tokenizer(checkpoint, given)
    if file is None:
        raise FileNotFoundError(
            f"no tokenizer in {checkpoint}, at a given path, or in openpi's cache; {FETCH}, and "
            f"put it into {checkpoint / 'tokenizer'} or at {_openpi_files()[-1]}"
        )
    tokenizer = Tokenizer.load(file)
    tokenizer.check(vocab_size)
    return tokenizer


def _openpi_files() -> list[Path]:
    """Return the possible paths of openpi's tokenizer."""
    homes = [Path(home)] if (home := os.environ.get("OPENPI_DATA_HOME")) else []
    homes.append(Path.home() / ".cache/openpi")
    return [home / "big_vision/paligemma_tokenizer.model" for home in homes]


def _file_of(path: Path) -> Path | None:
    """Return the tokenizer's file at a path, which is the file or its folder, or None."""
    if path.is_file():
        return path
    return next((path / name for name in FILES if (path / name).is_file()), None)
