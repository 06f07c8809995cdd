"""`tokenizer`: both forms agree, and a wrong or missing one is never used silently."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest

from pitune.extras import install_command
from pitune.policies.preprocessing.tokenizer import Tokenizer, find_tokenizer, load_tokenizer

TINY = Path(__file__).parents[2] / "fixtures/tiny_tokenizer"
MODEL, FOLDER = TINY / "paligemma_tokenizer.model", TINY / "hf"
TEXTS = [
    "",
    "\n",
    "put the bowl on the plate\n",
    "Task: pick_up 12, State: 0 255;\nAction: ",
    "π₀ é",
]
both = pytest.mark.parametrize("path", [MODEL, FOLDER], ids=["sentencepiece", "huggingface"])


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have openpi's tokenizer."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENPI_DATA_HOME", raising=False)


def changed(tmp_path: Path, piece: str, identity: int) -> Path:
    """Return a copy of the Hugging Face tokenizer with one more piece."""
    content = json.loads((FOLDER / "tokenizer.json").read_text())
    last = dict(content["added_tokens"][-1], content=piece, id=identity)
    content["added_tokens"].append(last)
    content["model"]["vocab"][piece] = identity
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path / "tokenizer.json"


@both
def test_the_size_and_the_marks(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == 520
    assert tokenizer.encode("\n") == [2, 4]
    assert tokenizer.encode("\n", bos=False) == [4]


@both
def test_a_prompt_s_pieces_are_those_of_openpi(path: Path) -> None:
    # what openpi's own tokenizer made of this prompt, as its fixture has it
    pieces = Tokenizer.load(path).encode("put the white mug on the plate\n")
    assert pieces == [2, 347, 263, 391, 368, 268, 263, 284, 4]


def piece_names() -> dict[int, str]:
    vocabulary = json.loads((FOLDER / "tokenizer.json").read_text())["model"]["vocab"]
    return {i: piece for piece, i in vocabulary.items()}


@pytest.mark.parametrize("text", TEXTS)
def test_both_forms_agree(text: str) -> None:
    first, second = Tokenizer.load(MODEL), Tokenizer.load(FOLDER)
    assert first.encode(text) == second.encode(text)
    assert first.encode(text, bos=False) == second.encode(text, bos=False)
    assert first.encode(text) == [2, *first.encode(text, bos=False)]


@both
def test_a_line_break_may_be_encoded_apart(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    together = tokenizer.encode("open the drawer\n")
    assert together == tokenizer.encode("open the drawer") + tokenizer.encode("\n", bos=False)


def test_padding_and_truncation_of_the_file_are_switched_off(tmp_path: Path) -> None:
    content = json.loads((FOLDER / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).encode(TEXTS[2]) == Tokenizer.load(MODEL).encode(TEXTS[2])


@both
def test_the_checkpoint_comes_first(path: Path, tmp_path: Path) -> None:
    Tokenizer.load(path).copy_to(tmp_path / "checkpoint/tokenizer")
    found = find_tokenizer(tmp_path / "checkpoint", MODEL)
    assert found is not None
    assert found.parent == tmp_path / "checkpoint/tokenizer"
    assert Tokenizer.load(found).encode(TEXTS[2]) == Tokenizer.load(path).encode(TEXTS[2])
    assert Tokenizer.load(found.parent).file == found


def test_files_beside_the_weights_come_before_a_given_path(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "tokenizer.json", tmp_path)
    assert find_tokenizer(tmp_path, MODEL) == tmp_path / "tokenizer.json"


def test_other_places_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint"
    assert find_tokenizer(checkpoint) is None
    cache = tmp_path / "home/.cache/openpi/big_vision/paligemma_tokenizer.model"
    cache.parent.mkdir(parents=True)
    shutil.copy(MODEL, cache)
    assert find_tokenizer(checkpoint) == cache
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "data"))
    assert find_tokenizer(checkpoint) == cache
    data = tmp_path / "data/big_vision/paligemma_tokenizer.model"
    data.parent.mkdir(parents=True)
    shutil.copy(MODEL, data)
    assert find_tokenizer(checkpoint) == data
    assert find_tokenizer(checkpoint, FOLDER) == FOLDER / "tokenizer.json"


def test_the_files_that_others_need_travel_too(tmp_path: Path) -> None:
    Tokenizer.load(FOLDER).copy_to(tmp_path / "a")
    assert {f.name for f in (tmp_path / "a").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    Tokenizer.load(MODEL).copy_to(tmp_path / "b")
    assert {f.name for f in (tmp_path / "b").iterdir()} == {"tokenizer.model"}


@both
def test_a_tokenizer_can_be_sent_to_another_process(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


def test_the_error_for_a_missing_tokenizer_names_the_file_and_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_tokenizer(tmp_path / "checkpoint", None, 257_152)
    for part in (
        "gs://big_vision/paligemma_tokenizer.model",
        "google/paligemma-3b-pt-224",
        str(tmp_path / "checkpoint/tokenizer"),
        str(tmp_path / "home/.cache/openpi/big_vision/paligemma_tokenizer.model"),
    ):
        assert part in str(error.value)


def test_a_given_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*nowhere; give a \.model file"):
        find_tokenizer(tmp_path, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*nowhere; it should be"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", pickle.dumps({"a": 1})])
def test_a_damaged_one_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged or no tokenizer .*fetch gs://"):
        Tokenizer.load(tmp_path)


def test_one_cut_short_is_refused(tmp_path: Path) -> None:
    for source in (MODEL, FOLDER / "tokenizer.json"):
        content = source.read_bytes()
        (tmp_path / source.name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="is damaged or no tokenizer"):
            Tokenizer.load(tmp_path / source.name)


def test_one_without_a_beginning_is_refused(tmp_path: Path) -> None:
    text = (FOLDER / "tokenizer.json").read_text().replace("<bos>", "<start>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"has no <bos> token, with which every prompt begins"):
        Tokenizer.load(tmp_path)


@both
def test_one_with_more_pieces_than_embeddings_is_refused(path: Path) -> None:
    Tokenizer.load(path).check(1024)
    Tokenizer.load(path).check(520)
    with pytest.raises(ValueError, match=r"has 520 tokens, the network has embeddings of 519; ta"):
        Tokenizer.load(path).check(519)
    with pytest.raises(ValueError, match=r"has 520 tokens"):
        load_tokenizer(path, path, 519)


@both
def test_another_vocabulary_is_refused_for_real_weights(path: Path) -> None:
    with pytest.raises(ValueError, match=r"line break as \[4\], PaliGemma's as \[108\]; the netw"):
        Tokenizer.load(path).check(257_152)


def test_paligemma_s_own_numbers_are_accepted(tmp_path: Path) -> None:
    names = piece_names()
    content = json.loads((FOLDER / "tokenizer.json").read_text())
    content["added_tokens"][4]["id"] = 108
    content["model"]["vocab"] |= {names[108]: 4, "\n": 108}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path, None, 257_152).encode("\n") == [2, 108]


def test_hugging_face_s_image_mark_is_no_piece(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(changed(tmp_path, "<image>", 520))
    assert tokenizer.vocab_size == 520
    tokenizer.check(520)
    with pytest.raises(ValueError, match=r"the text 'look <image>' holds <image>, which no networ"):
        tokenizer.encode("look <image>")
    other = Tokenizer.load(changed(tmp_path, "<picture>", 520))
    assert other.vocab_size == 521


@pytest.mark.parametrize(("path", "library"), [(MODEL, "sentencepiece"), (FOLDER, "tokenizers")])
def test_without_the_library_the_error_names_the_extra(
    path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"with {library}, and .*run {re.escape(install_command('vlm'))}"
    with pytest.raises(ModuleNotFoundError, match=message):
        Tokenizer.load(path)
