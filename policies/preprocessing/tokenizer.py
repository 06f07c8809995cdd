"""Prompts to the language model's pieces, by the tokenizer that the checkpoint was trained with.

The tokenizer belongs to the weights, so it travels with the checkpoint and nothing is ever
downloaded. Both forms of PaliGemma's give the same pieces: the sentencepiece file of the first
party, and the `tokenizer.json` of Hugging Face.
Source: openpi `models/tokenizer.py`; Beyer et al. 2024 (PaliGemma).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

PALIGEMMA_PIECES = 257_152
"""Rows of PaliGemma's embedding: Gemma's pieces, and those of places and segments."""
PALIGEMMA_NEWLINE = 108
"""PaliGemma's piece of a line break, which ends a prompt."""
IMAGE_TOKEN = "<image>"
"""A mark that Hugging Face appends to PaliGemma's pieces; no network has an embedding of it."""
FILES = ("tokenizer.json", "tokenizer.model", "paligemma_tokenizer.model")
"""What a folder may hold, the first that is there is read."""
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
"""Of no use here, but `transformers` reads a `tokenizer.json` together with them."""
FETCH = (
    "fetch gs://big_vision/paligemma_tokenizer.model, or tokenizer.json of the hub's "
    "google/paligemma-3b-pt-224"
)


class _Backend(Protocol):
    """One of the two libraries."""

    vocab_size: int
    bos: int

    def encode(self, text: str) -> list[int]: ...


class _SentencePiece:
    def __init__(self, file: Path) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(file.read_bytes())
        self.vocab_size, self.bos = self.processor.vocab_size(), self.processor.bos_id()

    def encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))


class _HuggingFace:
    def __init__(self, file: Path) -> None:
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        pieces = self.tokenizer.get_vocab(with_added_tokens=True)
        self.bos = pieces.get("<bos>", -1)
        self.vocab_size = 1 + max(i for piece, i in pieces.items() if piece != IMAGE_TOKEN)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


class Tokenizer:
    """Text to pieces. Make one with `Tokenizer.load`.

    Attributes:
        file: Where it was read from.
        vocab_size: Number of pieces.
    """

    def __init__(self, file: Path, backend: _Backend) -> None:
        self.file = file
        self.vocab_size = backend.vocab_size
        self._backend = backend

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a sentencepiece `.model`, a `tokenizer.json`, or a folder that holds one of them.

        Raises:
            FileNotFoundError: there is none.
            ModuleNotFoundError: the library that reads it is not installed.
            ValueError: it is damaged, or has no mark for the beginning of a text.
        """
        file = _file_of(Path(path))
        if file is None:
            raise FileNotFoundError(
                f"no tokenizer at {path}; it should be a .model file, a tokenizer.json, or a "
                f"folder with one of {list(FILES)}"
            )
        try:
            backend: _Backend = (
                _HuggingFace(file) if file.suffix == ".json" else _SentencePiece(file)
            )
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{file} is read with {error.name}, and that is not installed; run "
                "pip install 'pitune[vlm]'"
            ) from error
        except Exception as error:  # both libraries raise whatever they like
            raise ValueError(f"{file} is damaged or no tokenizer ({error}); {FETCH}") from error
        if backend.bos < 0:
            raise ValueError(f"{file} has no <bos> piece, with which every prompt begins; {FETCH}")
        return cls(file, backend)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the pieces of a text.

        Args:
            text: Any; what the tokenizer does not know it spells in bytes.
            bos: Whether the mark for the beginning of a text comes first.

        Raises:
            ValueError: the text holds `<image>`, which is no piece that a network knows.
        """
        pieces = self._backend.encode(text)
        if any(piece >= self.vocab_size for piece in pieces):
            raise ValueError(
                f"the text {text!r} holds {IMAGE_TOKEN}, which no network has an embedding of; "
                "remove it, pictures are given apart from the prompt"
            )
        return [self._backend.bos, *pieces] if bos else pieces

    def check(self, vocab_size: int) -> None:
        """Refuse a network with `vocab_size` embeddings that this tokenizer cannot belong to.

        Raises:
            ValueError: there are more pieces than embeddings, or the pieces are not PaliGemma's
                although the embeddings are.
        """
        if self.vocab_size > vocab_size:
            raise ValueError(
                f"the tokenizer {self.file} has {self.vocab_size} pieces, the network has "
                f"embeddings of {vocab_size}; take the tokenizer that it was trained with"
            )
        newline = self.encode("\n", bos=False)
        if vocab_size == PALIGEMMA_PIECES and newline != [PALIGEMMA_NEWLINE]:
            raise ValueError(
                f"the tokenizer {self.file} encodes a line break as {newline}, PaliGemma's as "
                f"[{PALIGEMMA_NEWLINE}]; the network was trained with the latter, {FETCH}"
            )

    def copy_to(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder, made if need be; `load` reads it back."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.file.suffix != ".json":
            shutil.copyfile(self.file, folder / "tokenizer.model")
            return
        shutil.copyfile(self.file, folder / "tokenizer.json")
        for name in BESIDE:
            if (self.file.parent / name).is_file():
                shutil.copyfile(self.file.parent / name, folder / name)


def find_tokenizer(checkpoint: Path, given: Path | None = None) -> Path | None:
    """Return where a checkpoint's tokenizer is, or None; nothing is downloaded.

    Looked at in this order: `tokenizer/` in the checkpoint, files beside its weights, the path
    that the user gives, and the two places where openpi keeps it.

    Raises:
        FileNotFoundError: nothing is at the path that the user gives.
    """
    if given is not None and _file_of(given) is None:
        raise FileNotFoundError(
            f"no tokenizer at {given}; give a .model file, a tokenizer.json, or a folder with one "
            f"of {list(FILES)}"
        )
    places = [checkpoint / "tokenizer", checkpoint, *([] if given is None else [given])]
    found = (_file_of(place) for place in (*places, *_openpi_files()))
    return next((file for file in found if file is not None), None)


def load_tokenizer(checkpoint: Path, given: Path | None, vocab_size: int) -> Tokenizer:
    """Find, read and check the tokenizer of a network with `vocab_size` embeddings.

    Raises:
        FileNotFoundError: there is none.
        ModuleNotFoundError: the library that reads it is not installed.
        ValueError: it is damaged, or is that of another network.
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
    """Return where openpi keeps the file, if it does."""
    homes = [Path(home)] if (home := os.environ.get("OPENPI_DATA_HOME")) else []
    homes.append(Path.home() / ".cache/openpi")
    return [home / "big_vision/paligemma_tokenizer.model" for home in homes]


def _file_of(path: Path) -> Path | None:
    """Return the tokenizer's file at a path: the file itself, or the first known one in it."""
    if path.is_file():
        return path
    return next((path / name for name in FILES if (path / name).is_file()), None)
