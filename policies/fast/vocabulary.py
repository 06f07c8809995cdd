"""The FAST tokens of a policy, in the vocabulary of its language model.

A decision is a row of choices. Choice i is FAST token i, and the last choice is the end. FAST token
i is token `vocabulary - 1 - skip - i` of the network, as in openpi, and the end is "|".
In shapes, `choices` is the number of possible choices.
Letters: N rows, L tokens of a decision, H action horizon, d robot action dim.
Source: openpi `models/tokenizer.py: FASTTokenizer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pitune.policies.fast.config import FastDecodingConfig
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.preprocessing.prompt import Encoder
from pitune.policies.preprocessing.tokenizer import PALIGEMMA_PIECES

END_TEXT = "|"
"""The text after the FAST tokens of a chunk, as in openpi."""
PADDING = -1
"""Choice of a row that has ended."""


class FastVocabulary:
    """Choices of a decision, their tokens in the network and their chunks.

    Args:
        fast: Chunks to tokens.
        tokenizer: The policy's tokenizer of text, which has the end.
        vocab_size: Embeddings of the network.
        chunk_shape: (H, d).
        decoding: Settings.
        device: Device of the choices, on which its tables are held.

    Raises:
        ValueError: the network has no room for the tokens, or the settings do not fit them.

    Example:
        >>> fast = FastTokenizer.fit(torch.rand(50, 4, 2), vocab_size=64, skip_tokens=0)
        >>> class Letters:
        ...     def encode(self, text, bos=True):
        ...         return [1] * bos + [ord(letter) for letter in text]
        >>> vocabulary = FastVocabulary(fast, Letters(), 256, (4, 2), FastDecodingConfig())
        >>> vocabulary.rows[0], vocabulary.rows[-1]
        (tensor(255), tensor(124))
    """

    def __init__(
        self,
        fast: FastTokenizer,
        tokenizer: Encoder,
        vocab_size: int,
        chunk_shape: tuple[int, int],
        decoding: FastDecodingConfig,
        device: torch.device | None = None,
    ) -> None:
        self.fast, self.chunk_shape, self.decoding = fast, chunk_shape, decoding
        fast.check_sizes(*chunk_shape)
        _check_room(fast, tokenizer, vocab_size)
        if decoding.constrained and fast.lengths is None:
            raise ValueError(
                "constrained=True needs FAST tokens of whole coefficients, and those of this "
                "tokenizer are parts of them; set constrained=False, so that decisions which "
                "cannot be decoded are marked"
            )
        # FAST tokens from the end of the vocabulary backwards
        numbers = torch.arange(fast.vocab_size)
        own = vocab_size - 1 - fast.settings.skip_tokens - numbers
        end = tokenizer.encode(END_TEXT, bos=False)[-1]
        self.rows = torch.cat([own, torch.tensor([end])]).to(device)
        """Tokens of the network for each choice (choices,)."""
        lengths = fast.lengths
        # the end writes nothing
        self._lengths = None if lengths is None else pad(lengths, (0, 1)).to(device)
        self.num_coefficients = chunk_shape[0] * chunk_shape[1]
        self.max_tokens = decoding.max_tokens or self.num_coefficients + 1

    @property
    def end(self) -> int:
        """The choice that ends a decision."""
        return len(self.rows) - 1

    def tokens(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's tokens (N, L) of choices (N, L), and False for padding (N, L)."""
        mask = choices != PADDING
        return self.rows.to(choices.device)[choices.clamp(min=0)], mask

    def targets(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens (N, L) to predict for chunks (N, H, d), and False for padding.

        The end is the last one of each row.
        """
        encoded = [[*row, self.end] for row in self.fast.encode(chunks)]
        # rows of different lengths, padded on the right to (N, L)
        width = max(map(len, encoded))
        padded = [row + [PADDING] * (width - len(row)) for row in encoded]
        return self.tokens(torch.tensor(padded, device=chunks.device))

    def chunks(self, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chunks (N, H, d) of choices (N, L), and which could not be decoded (N,)."""
        rows: Sequence[list[int]] = [
            [choice for choice in row if choice not in (self.end, PADDING)]
            for row in choices.tolist()
        ]
        chunks, failed = self.fast.decode(rows, *self.chunk_shape)
        if not self.decoding.constrained:  # a row without its end may go on
            failed |= (choices.cpu() != self.end).all(1)
        return chunks.to(choices.device), failed.to(choices.device)

    def allowed(self, written: Tensor) -> Tensor | None:
        """Return which choices (..., choices) may follow, None for all.

        `written` coefficients (...,) stand before them.

        After a whole chunk only the end may follow.
        """
        if not self.decoding.constrained or self._lengths is None:
            return None
        left = (self.num_coefficients - written)[..., None]  # (..., 1)
        lengths = self._lengths[:-1].to(written.device)
        return torch.cat([lengths <= left, left == 0], dim=-1)

    def written(self, choices: Tensor) -> Tensor:
        """Return the number of coefficients that choices (N, L) write each (N, L)."""
        if self._lengths is None:
            return torch.zeros_like(choices)
        lengths = self._lengths.to(choices.device)
        return lengths[choices.clamp(min=0)] * (choices != PADDING)


def _check_room(fast: FastTokenizer, tokenizer: Encoder, vocab_size: int) -> None:
    """Raise ValueError if the tokens of FAST have no embeddings, or those of other text.

    PaliGemma's last tokens are those of locations, which no instruction uses.
    """
    skip = fast.settings.skip_tokens
    needed = fast.vocab_size + skip
    num_text = getattr(tokenizer, "vocab_size", 0)
    free = vocab_size - (0 if vocab_size == PALIGEMMA_PIECES else num_text)
    if needed > free:
        raise ValueError(
            f"vocab_size={vocab_size} of the network has room for {free} FAST tokens, but the FAST "
            f"tokenizer has {fast.vocab_size} and leaves {skip} free (skip_tokens); take a smaller "
            "FAST tokenizer, or a network with more embeddings"
        )
