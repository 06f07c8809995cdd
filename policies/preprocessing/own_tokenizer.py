"""A small tokenizer that is made from the instructions of the demonstrations, without a download.

It is a byte-level BPE, so each word of the instructions becomes one token where the vocabulary has
room, and any other word is written in its bytes. Equal instructions give equal files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pitune.extras import install_command
from pitune.policies.preprocessing.prompt import NUM_BINS, PromptConfig, prompt_text
from pitune.policies.preprocessing.tokenizer import Tokenizer

BOS = "<bos>"
"""The token with which every prompt begins."""
NUM_BASE_TOKENS = 257
"""The bytes and the beginning of a prompt, without which there is no tokenizer."""


def make_tokenizer(
    instructions: Sequence[str],
    file: Path,
    *,
    max_vocabulary: int,
    max_tokens: int,
    texts: Sequence[str] = (),
    numbers: bool = False,
) -> Tokenizer:
    """Make a tokenizer of the words of some instructions, write it and return it.

    Args:
        instructions: The tasks in words.
        file: The new `tokenizer.json`.
        max_vocabulary: Greatest number of tokens. Words for which there is no room take several.
        max_tokens: Greatest number of tokens of an instruction.
        texts: Further texts whose words become tokens.
        numbers: Whether the whole numbers of a discretized state become tokens.

    Raises:
        ModuleNotFoundError: the library is not installed.
        ValueError: `max_vocabulary` has no room for the bytes, or an instruction has no words
            or more than `max_tokens`.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "tokenizer.json"
        >>> tokenizer = make_tokenizer(
        ...     ["push the cube"], file, max_vocabulary=1024, max_tokens=32
        ... )
        >>> [len(tokenizer.encode(words)) for words in ("push the cube", "shove the cube")]
        [4, 8]
    """
    if max_vocabulary < NUM_BASE_TOKENS:
        raise ValueError(
            f"max_vocabulary={max_vocabulary} must be at least {NUM_BASE_TOKENS}: the 256 bytes "
            f"and {BOS}; raise it"
        )
    if not all(words.strip() for words in instructions):
        raise ValueError(
            f"the instructions {list(instructions)[:5]} include one without words, so no policy "
            "can read them; name the task in words with --env.instruction"
        )
    try:
        from tokenizers import Tokenizer as HuggingFace
        from tokenizers import models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a tokenizer is made with {error.name}, and that is not installed; run "
            f"{install_command('vlm')}"
        ) from error

    # byte-level pairs, merged up to whole words
    tokenizer = HuggingFace(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocabulary,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    prompts = [prompt_text(words, None, PromptConfig()) for words in instructions]
    states = [f"Task: State: {number};\nAction: " for number in range(-1, NUM_BINS)]
    tokenizer.train_from_iterator([*prompts, *texts, *(states if numbers else [])], trainer)

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"tmp_{file.name}")
    tokenizer.save(str(temporary))
    temporary.rename(file)
    made = Tokenizer.load(file)
    _check_lengths(made, prompts, max_tokens)
    return made


def _check_lengths(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> None:
    """Raise ValueError if a prompt has more tokens than the policy reads."""
    lengths = {text: len(tokenizer.encode(text)) for text in texts}
    longest = max(lengths, key=lengths.__getitem__)
    if lengths[longest] > max_tokens:
        raise ValueError(
            f"max_tokens={max_tokens} is less than the {lengths[longest]} tokens of the "
            f"instruction {longest.strip()!r}, whose end would be cut; raise it"
        )
