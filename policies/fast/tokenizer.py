"""FAST tokens: chunks as the tokens of a language model.

    chunk (H, d) -> cosine transform over time -> scale, round -> low frequencies first -> BPE

Every rounded coefficient is one character, and byte-pair encoding joins frequent sequences of them.
The files have the layout of `physical-intelligence/fast`, so that the published tokenizer loads
where it is at hand. Otherwise `FastTokenizer.fit` makes one from the demonstrations. A tokenizer
of its own has a token for each coefficient, so that it can write every chunk.

Letters: N rows, H action horizon, d robot action dim.
Source: Pertsch et al. 2025 (FAST); the processor of `physical-intelligence/fast`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from pitune.extras import install_command
from pitune.ranges import NonNegativeInt, PositiveFloat, PositiveInt, Range, Settings

TOKENIZER, PROCESSOR = "tokenizer.json", "processor_config.json"
"""Files of a FAST tokenizer: the pairs, and the settings of the transform."""
OPENPI_SKIP = 128
"""Last tokens of PaliGemma's vocabulary that openpi leaves free, those of segments."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Character in place of bytes that are no text."""
SURROGATES = 0xD800
"""First number that is no character. No range of coefficients reaches it."""


@dataclass(frozen=True, kw_only=True)
class FastSettings(Settings):
    """Settings of the transform, as in the published `processor_config.json`.

    Example:
        >>> FastSettings(vocab_size=1024, time_horizon=8, action_dim=2).scale
        10.0
    """

    scale: PositiveFloat = 10.0
    """Factor of the coefficients before they are rounded [1 / normalized action]."""
    vocab_size: PositiveInt
    """Number of FAST tokens."""
    min_token: Annotated[int, Range(low=-50_000, high=50_000)] = 0
    """Least rounded coefficient, which is character 0. Smaller ones are raised to it."""
    time_horizon: PositiveInt | None = None
    """H of its chunks. None for any."""
    action_dim: PositiveInt | None = None
    """d of its chunks. None for any."""
    skip_tokens: NonNegativeInt = OPENPI_SKIP
    """Last embeddings of the network that FAST leaves free, as openpi's `fast_skip_tokens`. The
    published files do not hold it."""


class FastTokenizer:
    """Chunks to tokens and back. `load` reads one and `fit` makes one.

    Args:
        backend: A tokenizer of the `tokenizers` library.
        settings: Settings of the transform.

    Attributes:
        lengths: Coefficients of each token (tokens,) int64, or None for a tokenizer whose tokens
            are not whole characters, such as the published one.

    Example:
        >>> chunks = torch.rand(50, 8, 2) * 2 - 1
        >>> fast = FastTokenizer.fit(chunks, vocab_size=256)
        >>> back, failed = fast.decode(fast.encode(chunks), 8, 2)
        >>> bool(failed.any()), bool(((back - chunks).norm(dim=1) < fast.error_bound(8)).all())
        (False, True)
    """

    def __init__(self, backend: Any, settings: FastSettings) -> None:
        self._backend, self.settings = backend, settings
        pieces = [self._text([number]) for number in range(self.vocab_size)]
        whole = all(piece and REPLACEMENT not in piece for piece in pieces)
        self.lengths = torch.tensor([len(piece) for piece in pieces]) if whole else None
        letters = {ord(piece) for piece in pieces if len(piece) == 1}
        # a tokenizer that `fit` made can write every coefficient up to its greatest
        self._complete = whole and letters == set(range(len(letters)))
        self._highest = len(letters) - 1 if self._complete else SURROGATES - 1

    @property
    def vocab_size(self) -> int:
        """Number of tokens, which may be below the one that was asked for."""
        return int(self._backend.get_vocab_size())

    @classmethod
    def fit(
        cls,
        chunks: Tensor,
        *,
        scale: float = 10.0,
        vocab_size: int = 1024,
        skip_tokens: int = OPENPI_SKIP,
    ) -> FastTokenizer:
        """Make a tokenizer from demonstrated chunks (N, H, d) [normalized action].

        Args:
            chunks: The chunks. Their range of coefficients is the tokenizer's.
            scale: See `FastSettings`.
            vocab_size: Greatest number of tokens. Too few chunks give fewer.
            skip_tokens: See `FastSettings`.

        Raises:
            ModuleNotFoundError: the library is not installed.
            ValueError: there is no chunk, or the coefficients have more values than the
                vocabulary has tokens.
        """
        if not len(chunks):
            raise ValueError("chunks is empty, so there is nothing to fit; pass some of the data")
        coefficients = _coefficients(chunks, scale)  # (N, H, d)
        low, high = int(coefficients.min()), int(coefficients.max())
        num = high - low + 1
        if num > min(vocab_size, SURROGATES):
            raise ValueError(
                f"the chunks have coefficients from {low} to {high} at scale={scale}, and "
                f"vocab_size={vocab_size} has no token for each of the {num}; lower the scale, or "
                "raise the size"
            )

        # pairs of whole chunks, without rules for the text of a language
        tokenizers = _library()
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.decoder = tokenizers.decoders.Fuse()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=[chr(i) for i in range(num)],
            max_token_length=10_000,
            show_progress=False,
        )
        backend.train_from_iterator(_texts(coefficients - low), trainer)
        settings = FastSettings(
            scale=scale,
            vocab_size=vocab_size,
            min_token=low,
            time_horizon=chunks.shape[1],
            action_dim=chunks.shape[2],
            skip_tokens=skip_tokens,
        )
        return cls(backend, settings)

    @classmethod
    def load(cls, folder: Path | str) -> FastTokenizer:
        """Read a folder with `tokenizer.json` and `processor_config.json`.

        Raises:
            FileNotFoundError: one of them is missing.
            ModuleNotFoundError: the library is not installed.
            ValueError: one of them is damaged.
        """
        folder = Path(folder)
        for name in (TOKENIZER, PROCESSOR):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"no {name} in {folder}; a FAST tokenizer is a folder with {TOKENIZER} and "
                    f"{PROCESSOR}, as on the hub in physical-intelligence/fast"
                )
        tokenizers = _library()
        try:
            values = json.loads((folder / PROCESSOR).read_text())
            known = {name: values[name] for name in FastSettings.__annotations__ if name in values}
            settings = FastSettings(**{**known, "scale": float(known.get("scale", 10.0))})
            return cls(tokenizers.Tokenizer.from_file(str(folder / TOKENIZER)), settings)
        except Exception as error:  # the library raises errors of many types
            raise ValueError(
                f"{folder} holds no FAST tokenizer ({error}); take both files of one tokenizer"
            ) from error

    def save(self, folder: Path) -> None:
        """Write both files into a folder, which is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / TOKENIZER))
        values = {**asdict(self.settings), "processor_class": "UniversalActionProcessor"}
        (folder / PROCESSOR).write_text(json.dumps(values, indent=2) + "\n")

    def encode(self, chunks: Tensor) -> list[list[int]]:
        """Return the tokens of each chunk (N, H, d) [normalized action].

        Raises:
            ValueError: the sizes are not those of the tokenizer, or it has no tokens for a chunk.
        """
        self.check_sizes(*chunks.shape[1:])
        coefficients = _coefficients(chunks, self.settings.scale) - self.settings.min_token
        texts = _texts(coefficients.clip(0, self._highest))
        rows = [
            list(encoding.ids)
            for encoding in self._backend.encode_batch(texts, add_special_tokens=False)
        ]
        if not self._complete:  # it may lack a byte, which the library leaves out silently
            for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
                if self._text(row) != text:
                    raise ValueError(
                        f"the FAST tokenizer has no tokens for chunk {number}: it was made from "
                        "other actions; check the normalization, or fit one to these chunks"
                    )
        return rows

    def decode(
        self, tokens: Sequence[Sequence[int]], action_horizon: int, action_dim: int
    ) -> tuple[Tensor, Tensor]:
        """Return the chunks (N, H, d) of tokens, and which could not be decoded (N,) bool.

        A row fails if its tokens are no text, or have another number of coefficients than H * d.
        Its chunk is 0 and must not be executed.

        Args:
            tokens: Tokens of each row.
            action_horizon: H.
            action_dim: d.
        """
        from scipy.fft import idct

        self.check_sizes(action_horizon, action_dim)
        chunks = np.zeros((len(tokens), action_horizon, action_dim))
        failed = torch.zeros(len(tokens), dtype=torch.bool)
        for number, row in enumerate(tokens):
            text = self._text(list(row))
            if len(text) != action_horizon * action_dim or REPLACEMENT in text:
                failed[number] = True
                continue
            # (H * d) characters -> (H, d) coefficients -> (H, d) actions
            values = np.array([ord(letter) for letter in text]) + self.settings.min_token
            coefficients = values.reshape(action_horizon, action_dim) / self.settings.scale
            chunks[number] = idct(coefficients, axis=0, norm="ortho")
        return torch.from_numpy(chunks).float(), failed

    def check_sizes(self, action_horizon: int, action_dim: int) -> None:
        """Reject chunks of other sizes than those that the tokenizer was made from.

        Raises:
            ValueError: the sizes differ.
        """
        for name, given, own in (
            ("action_horizon", action_horizon, self.settings.time_horizon),
            ("action_dim", action_dim, self.settings.action_dim),
        ):
            if own is not None and given != own:
                raise ValueError(
                    f"{name}={given} is not the {own} of the FAST tokenizer's chunks; fit a "
                    "tokenizer to chunks of this size"
                )

    def error_bound(self, action_horizon: int) -> float:
        """Return the greatest error over time of a decoded dimension [normalized action].

        It is the Euclidean norm over the H steps, because the transform keeps norms and rounding
        moves each coefficient by at most half a unit. Coefficients outside of the tokenizer's
        range may exceed it.
        """
        return 0.5 * math.sqrt(action_horizon) / self.settings.scale + 1e-6

    def _text(self, tokens: list[int]) -> str:
        """Return the characters of tokens, one for each coefficient."""
        return str(self._backend.decode(tokens, skip_special_tokens=False))


def _coefficients(chunks: Tensor, scale: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rounded coefficients (N, H, d) of chunks, over time."""
    from scipy.fft import dct

    values = dct(chunks.detach().cpu().double().numpy(), axis=1, norm="ortho")
    return np.around(values * scale).astype(np.int64)


def _texts(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> list[str]:
    """Return numbers (N, H, d) from 0 as a text for each row, low frequencies first."""
    return ["".join(map(chr, row)) for row in numbers.reshape(len(numbers), -1).tolist()]


def _library() -> Any:
    """Return the `tokenizers` package with its modules.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"FAST tokens need {error.name}, and that is not installed; run "
            f"{install_command('vlm')}"
        ) from error
    return tokenizers
