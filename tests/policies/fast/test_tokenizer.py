"""FAST tokens: round trips, the published files, and the ends of the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fast_policies import fitted
from scipy.fft import dct, idct
from torch import Tensor

from pitune.policies.fast.config import FastDecodingConfig
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.fast.vocabulary import PADDING, FastVocabulary

tokenizers = pytest.importorskip("tokenizers")


class Letters:
    """A tokenizer of characters."""

    vocab_size = 128

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [1] * bos + [ord(letter) for letter in text]


def chunks_of(num: int = 300, horizon: int = 8, dim: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num, horizon, dim, generator=generator)
    return (0.3 * steps.cumsum(1)).clamp(-1, 1)


def published(chunks: Tensor, folder: Path, size: int = 1024) -> int:
    """Write a tokenizer as the hub's processor makes one, and return its least coefficient."""
    numbers = np.around(dct(chunks.numpy(), axis=1, norm="ortho") * 10)
    low, high = int(numbers.min()), int(numbers.max())
    pairs = tokenizers.ByteLevelBPETokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=[chr(i) for i in range(high - low + 1)],
        max_token_length=10_000,
    )
    texts = ["".join(map(chr, (row.flatten() - low).astype(int))) for row in numbers]
    pairs._tokenizer.train_from_iterator(texts, trainer=trainer)
    pairs.save(str(folder / "tokenizer.json"))
    values: dict[str, Any] = {"scale": 10, "vocab_size": size, "min_token": low}
    values |= {"time_horizon": None, "action_dim": None, "processor_class": "Processor"}
    (folder / "processor_config.json").write_text(json.dumps(values))
    return low


@pytest.mark.parametrize("scale", [5.0, 10.0, 40.0])
def test_a_round_trip_stays_below_the_bound_of_the_rounding(scale: float) -> None:
    chunks = chunks_of()
    fast = FastTokenizer.fit(chunks, scale=scale, vocab_size=1024)
    back, failed = fast.decode(fast.encode(chunks), 8, 3)
    error = (back - chunks).norm(dim=1)  # (N, d)
    assert not failed.any()
    assert float(error.max()) <= 0.5 * 8**0.5 / scale + 1e-6 == fast.error_bound(8)
    assert float(error.max()) > 0.1 / scale  # the control: rounding is visible
    # every coefficient is rounded to the nearest unit
    moved = dct((back - chunks).numpy(), axis=1, norm="ortho") * scale
    assert np.abs(moved).max() <= 0.5 + 1e-4


def test_the_tokens_of_a_chunk_are_the_coefficients_with_low_frequencies_first() -> None:
    chunks = chunks_of()
    fast = FastTokenizer.fit(chunks, vocab_size=1024)
    numbers = np.around(dct(chunks.double().numpy(), axis=1, norm="ortho") * 10).astype(int)
    for row, tokens in zip(numbers, fast.encode(chunks), strict=True):
        text = fast._backend.decode(tokens)
        assert [ord(c) + fast.settings.min_token for c in text] == row.flatten().tolist()


def test_targets_are_in_range_and_frequent_pairs_are_shorter_than_the_coefficients() -> None:
    chunks = chunks_of(2000)
    fast = FastTokenizer.fit(chunks, vocab_size=1024)
    rows = fast.encode(chunks)
    assert all(0 <= token < fast.vocab_size <= 1024 for row in rows for token in row)
    assert sum(map(len, rows)) < 0.8 * chunks.numel()


def test_chunks_outside_of_the_range_are_written_with_its_ends() -> None:
    fast = FastTokenizer.fit(chunks_of(), vocab_size=1024)
    far = 5 * chunks_of(4)
    back, failed = fast.decode(fast.encode(far), 8, 3)
    assert not failed.any()
    assert float((back - far).norm(dim=1).max()) > fast.error_bound(8)


def test_saving_and_loading_give_the_same_tokens_and_equal_data_equal_files(tmp_path: Path) -> None:
    chunks = chunks_of()
    for name in ("one", "two"):
        FastTokenizer.fit(chunks, vocab_size=300, skip_tokens=7).save(tmp_path / name)
    for name in ("tokenizer.json", "processor_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = FastTokenizer.load(tmp_path / "one")
    assert again.settings.skip_tokens == 7
    assert again.encode(chunks) == FastTokenizer.fit(chunks, vocab_size=300).encode(chunks)


def test_the_published_files_give_the_tokens_and_chunks_of_their_processor(tmp_path: Path) -> None:
    chunks = chunks_of()
    low = published(chunks, tmp_path)
    fast = FastTokenizer.load(tmp_path)
    assert fast.settings.skip_tokens == 128  # openpi's, which the files do not hold
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rows = fast.encode(chunks)
    back, failed = fast.decode(rows, 8, 3)
    assert not failed.any()
    for chunk, row, decoded in zip(chunks.double().numpy(), rows, back, strict=True):
        numbers = np.around(dct(chunk, axis=0, norm="ortho") * 10)
        text = "".join(map(chr, np.maximum(numbers.flatten() - low, 0).astype(int)))
        assert row == backend.encode(text).ids
        values = np.array([ord(c) for c in backend.decode(row)]) + low
        expected = idct(values.reshape(8, 3) / 10, axis=0, norm="ortho")
        assert np.abs(decoded.numpy() - expected).max() < 1e-6


def test_a_published_tokenizer_that_lacks_a_byte_is_not_used_silently(tmp_path: Path) -> None:
    # more than 128 coefficients, so some are written in two bytes
    published(3 * chunks_of(30), tmp_path)
    fast = FastTokenizer.load(tmp_path)
    fast.encode(3 * chunks_of(30))
    with pytest.raises(ValueError, match=r"has no tokens for chunk \d+: it was made from other"):
        fast.encode(3 * chunks_of(300, seed=1))


def test_tokens_that_are_no_chunk_fail_and_others_do_not() -> None:
    fast = FastTokenizer.fit(chunks_of(), vocab_size=1024)
    row = fast.encode(chunks_of(1))[0]
    back, failed = fast.decode([row, row[:-1], [*row, 0], []], 8, 3)
    assert failed.tolist() == [False, True, True, True]
    assert not back[1:].any()


def test_other_sizes_a_small_vocabulary_and_no_chunks_are_refused(tmp_path: Path) -> None:
    fast = FastTokenizer.fit(chunks_of(), vocab_size=1024)
    with pytest.raises(ValueError, match=r"action_horizon=7 is not the 8 of the FAST tokenizer's"):
        fast.decode([[0]], 7, 3)
    with pytest.raises(ValueError, match=r"action_dim=2 is not the 3"):
        fast.encode(chunks_of(dim=2))
    with pytest.raises(ValueError, match=r"vocab_size=20 has no token for each of the \d+; lower"):
        FastTokenizer.fit(chunks_of(), vocab_size=20)
    with pytest.raises(ValueError, match="chunks is empty, so there is nothing to fit"):
        FastTokenizer.fit(torch.zeros(0, 8, 3))
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in .*; a FAST tokenizer is a"):
        FastTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no FAST tokenizer .*; take both files"):
        FastTokenizer.load(tmp_path)


def test_fast_tokens_are_at_the_end_of_the_vocabulary_as_in_openpi() -> None:
    fast = FastTokenizer.fit(chunks_of(), vocab_size=256)  # skips 128 tokens
    vocabulary = FastVocabulary(fast, Letters(), 1024, (8, 3), FastDecodingConfig())
    ids = torch.arange(fast.vocab_size)
    assert torch.equal(vocabulary.rows[:-1], 1024 - 1 - 128 - ids)
    assert vocabulary.rows[-1] == ord("|")
    tokens, mask = vocabulary.targets(chunks_of(5))
    for row, valid, expected in zip(tokens, mask, fast.encode(chunks_of(5)), strict=True):
        assert row[valid].tolist() == [*(895 - token for token in expected), ord("|")]
    chunks, failed = vocabulary.chunks(
        torch.tensor([[*fast.encode(chunks_of(1))[0], vocabulary.end, PADDING]])
    )
    assert not failed.any()
    assert float((chunks - chunks_of(1)).norm(dim=1).max()) <= fast.error_bound(8)


def test_a_network_without_room_for_the_tokens_is_refused() -> None:
    fast = FastTokenizer.fit(chunks_of(), vocab_size=256)
    with pytest.raises(ValueError, match=r"vocab_size=400 of the network has room for 272 FAST"):
        FastVocabulary(fast, Letters(), 400, (8, 3), FastDecodingConfig())
    # PaliGemma's own tokens at the end stand for locations
    Letters.vocab_size = 257_152
    try:
        FastVocabulary(fast, Letters(), 257_152, (8, 3), FastDecodingConfig())
    finally:
        Letters.vocab_size = 128


def test_constrained_decoding_needs_whole_coefficients(tmp_path: Path) -> None:
    published(5 * chunks_of(), tmp_path)  # so many coefficients that some have two bytes
    fast = FastTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="constrained=True needs FAST tokens of whole coeff"):
        FastVocabulary(fast, Letters(), 4096, (8, 3), FastDecodingConfig())
    FastVocabulary(fast, Letters(), 4096, (8, 3), FastDecodingConfig(constrained=False))


def test_only_choices_that_fit_the_rest_of_a_chunk_are_allowed() -> None:
    fast = fitted(4, 2)
    vocabulary = FastVocabulary(fast, Letters(), 1024, (4, 2), FastDecodingConfig())
    assert fast.lengths is not None
    allowed = vocabulary.allowed(torch.tensor([0, 6, 8]))
    assert allowed is not None
    assert torch.equal(allowed[:2, :-1], fast.lengths <= torch.tensor([[8], [2]]))
    assert not allowed[2, :-1].any()
    assert allowed[:, -1].tolist() == [False, False, True]
