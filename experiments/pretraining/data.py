"""The data that `pitune pretrain` clones: the expert's demonstrations, or a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pitune import envs, rl
from pitune.policies import FlowPolicy, NetworkOptions, SmallVLMConfig
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.network.options.tokens.conditioning import with_tasks
from pitune.policies.preprocessing.own_tokenizer import make_tokenizer
from pitune.policies.preprocessing.tokenizer import Tokenizer
from pitune.rl.cloning.text_set import read_texts
from pitune.rl.datasets.config import DataConfig, RecordConfig
from pitune.rl.datasets.demonstrations import ChunkSource, chunk_source, random_chunks
from pitune.rl.datasets.recorder import write_demonstrations


def chunks_of(
    demonstrations: rl.Demonstrations, policy: FlowPolicy, dataset: Path | None, data: DataConfig
) -> ChunkSource:
    """Return the chunks to clone. A dataset that is larger than its memory is streamed.

    Args:
        demonstrations: Those of the expert, or the numbers of the dataset.
        policy: Preprocesses the observations.
        dataset: The dataset, or None for the expert's demonstrations.
        data: Features of the dataset.
    """
    if dataset is not None:
        return chunk_source(policy, dataset, data)
    return random_chunks(policy, demonstrations.preprocess(policy), recorded=demonstrations)


def check_new(record: Path | None) -> None:
    """Reject a folder for a recording that exists already, before the expert plays.

    Raises:
        FileExistsError: it exists.
    """
    if record is not None and record.exists():
        raise FileExistsError(f"{record} exists already; pass another --record or remove it")


def store_expert(
    demonstrations: rl.Demonstrations,
    spec: envs.EnvSpec,
    record: Path | None,
    recording: RecordConfig,
) -> str:
    """Store the demonstrations of the expert, with its success rate, as a dataset.

    Args:
        demonstrations: Successes of the expert.
        spec: Their environment.
        record: New folder of the dataset, or None for no dataset.
        recording: Storage of its pictures.

    Returns:
        The success rate in words.
    """
    counts = dict(zip(spec.task_names or spec.tasks, demonstrations.expert_success, strict=False))
    expert = {task: {"solved": s, "played": n} for task, (s, n) in counts.items()}
    facts: dict[str, Any] = {"environment": spec.id, "simulator": spec.simulator, "expert": expert}
    if record is not None:
        write_demonstrations(
            demonstrations,
            record,
            fps=spec.control_hz,
            config=recording,
            robot_type=spec.id,
            facts=facts,
        )
    rates = ", ".join(f"{solved}/{played} {task}" for task, (solved, played) in counts.items())
    return f"successes of the expert: {rates}"


def expert_lines(spec: envs.EnvSpec, counts: Sequence[tuple[int, int]]) -> list[str]:
    """Return the success of a suite's experts as text, a line for each task.

    Args:
        spec: Of the environment.
        counts: `Demonstrations.expert_success`.
    """
    if not spec.seeded_tasks:
        return []
    lines = []
    for name, (successes, played) in zip(spec.task_names or spec.tasks, counts, strict=True):
        rate = f"expert succeeded in {successes} of {played} episodes" if played else "no expert"
        lines.append(f"{name}: {rate}{'' if played else ', skipped'}")
    return lines


def tokenizer_for(
    tasks: Sequence[str], vlm: SmallVLMConfig, file: Path, text: Path | None = None
) -> Tokenizer:
    """Return a new tokenizer of instructions, which is written into a file.

    Args:
        tasks: The instructions.
        vlm: Sizes, and whether the prompts hold the state.
        file: The new file.
        text: Set of texts whose words become tokens too.
    """
    questions = [] if text is None else read_texts(text)
    return make_tokenizer(
        tasks,
        file,
        max_vocabulary=vlm.max_vocabulary,
        max_tokens=vlm.max_tokens,
        texts=[f"{question.prompt}\n {question.answer}\n" for question in questions],
        numbers=vlm.discrete_state,
    )


def with_fast_tokenizer(
    policy: FlowPolicy, demonstrations: rl.Demonstrations, vlm: SmallVLMConfig
) -> FlowPolicy:
    """Return a policy with a FAST tokenizer that is made from its demonstrations.

    Args:
        policy: Normalizes the chunks.
        demonstrations: The chunks, with the states that relative actions need.
        vlm: Number of FAST tokens. With none the policy is returned as it is.
    """
    if not vlm.fast_tokens:
        return policy
    chunks = demonstrations.chunks(policy.chunk_shape[0])
    action = policy.preprocessor.normalize_action(chunks["action"], chunks["state"])
    fast = FastTokenizer.fit(
        action[..., : policy.preprocessor.action_dim], vocab_size=vlm.fast_tokens, skip_tokens=0
    )
    return policy.replace(info=replace(policy.info, fast=fast))


def options_for(options: NetworkOptions, tasks: Sequence[str], source: str) -> NetworkOptions:
    """Return the options of a network, conditioned on given tasks if they condition on the task.

    Args:
        options: As they were given.
        tasks: Instructions of the environment or the dataset.
        source: Its name, for the error.

    Raises:
        ValueError: there are no tasks to condition on.
    """
    return replace(options, conditioning=with_tasks(options.conditioning, tasks, source))
