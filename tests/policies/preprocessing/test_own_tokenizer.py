"""The tokenizer that is made from a few instructions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pitune.policies.preprocessing.own_tokenizer import NUM_BASE_TOKENS, make_tokenizer
from pitune.policies.preprocessing.tokenizer import Tokenizer

pytest.importorskip("tokenizers")
WORDS = ["push the red cube", "pick up the red cube and hold it", "open the drawer"]
CODE = """
from pathlib import Path
from pitune.policies.preprocessing.own_tokenizer import make_tokenizer
make_tokenizer({words}, Path({file!r}), max_vocabulary=400, max_tokens=32)
"""


def make(
    folder: Path, words: list[str] = WORDS, max_vocabulary: int = 1024, max_tokens: int = 32
) -> Tokenizer:
    file = folder / "tokenizer.json"
    return make_tokenizer(words, file, max_vocabulary=max_vocabulary, max_tokens=max_tokens)


def test_a_word_of_the_instructions_is_one_token(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    bos, push, the, _, cube = tokenizer.encode("push the red cube")
    assert tokenizer.encode("the cube push") == [bos, the, cube, push]
    assert bos == 0
    assert tokenizer.vocab_size > NUM_BASE_TOKENS


@pytest.mark.parametrize("words", ["grasp it", "größer 立方体", "\x00 \t", "CUBE", "<eos>", "🤖"])
def test_an_unknown_word_is_written_in_parts_that_have_embeddings(
    words: str, tmp_path: Path
) -> None:
    tokenizer = make(tmp_path)
    tokens = tokenizer.encode(words)
    assert len(tokens) > 1
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    assert tokens != tokenizer.encode("push")


def test_different_words_have_different_tokens(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    prompts = [*WORDS, "grasp it", "grasp at", "grasp", "shut the drawer"]
    assert len({tuple(tokenizer.encode(words)) for words in prompts}) == len(prompts)


def test_equal_instructions_give_equal_files_in_any_process(tmp_path: Path) -> None:
    files = [tmp_path / str(i) / "tokenizer.json" for i in range(3)]
    for file in files:
        code = CODE.format(words=WORDS, file=str(file))
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    assert len({file.read_bytes() for file in files}) == 1


def test_the_file_loads_again_and_can_be_copied(tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    tokenizer.copy_to(tmp_path / "copy")
    again = Tokenizer.load(tmp_path / "copy")
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(WORDS[1]) == tokenizer.encode(WORDS[1])


def test_a_small_vocabulary_splits_words_and_loses_none(tmp_path: Path) -> None:
    small = make(tmp_path, max_vocabulary=NUM_BASE_TOKENS + 3, max_tokens=64)
    assert small.vocab_size == NUM_BASE_TOKENS + 3
    assert len(small.encode(WORDS[0])) > 5


def test_a_tokenizer_that_cannot_be_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_vocabulary=256 must be at least 257: the 256 bytes"):
        make(tmp_path, max_vocabulary=256)
    with pytest.raises(ValueError, match=r"\['push', ' '\] include one without words.*instruction"):
        make(tmp_path, ["push", " "])
    with pytest.raises(
        ValueError, match=r"max_tokens=8 is less than the 10 tokens of the instruction 'pick up the"
    ):
        make(tmp_path, max_tokens=8)


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"made with tokenizers.*\[vlm\]"):
        make(tmp_path)
