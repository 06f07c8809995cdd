"""Writes or streams a large dataset in a process of its own, and prints its memory as JSON.

    python tests/support/stream_memory.py write FOLDER --frames 20000
    python tests/support/stream_memory.py train FOLDER --gib 0.05 --steps 400
    python tests/support/stream_memory.py train FOLDER --gib 4 --steps 400    # all in memory

`write` records episodes of 200 frames with two cameras of 64 x 64 pixels. `train` clones them by a
tiny policy with cameras and words, and compares the peak of the resident memory with the memory
before the data is opened.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import psutil
import torch
from lerobot_datasets import episodes, pictures

from pitune import policies, rl
from pitune.policies import FlowPolicy, NormStats, Pi0
from pitune.policies.network.config import tiny
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig
from pitune.policies.preprocessing.tokenizer import Tokenizer
from pitune.rl.algorithms.bc import CloningStep, clone
from pitune.rl.datasets.columns import RecordedEpisode
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.demonstrations import chunk_source
from pitune.rl.datasets.stream import ChunkStream
from pitune.rl.datasets.writer import DatasetWriter
from vision_policies import SLOTS, TOKENIZER

LENGTH, MIB = 200, 2**20
CAMERAS = tuple(SLOTS.values())


def write(folder: Path, num_frames: int) -> None:
    """Record random numbers and smooth pictures."""
    start = time.perf_counter()
    (template,) = episodes((LENGTH,), cameras=())
    with DatasetWriter(folder, fps=20.0) as writer:
        for number in range(num_frames // LENGTH):
            stacks = {name: pictures(LENGTH, 64, 3 * number + i) for i, name in enumerate(CAMERAS)}
            writer.add(RecordedEpisode(**{**vars(template), "pictures": stacks}))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    report(frames=num_frames, seconds=time.perf_counter() - start, disk_mib=size / MIB)


def train(folder: Path, gib: float, steps: int) -> None:
    """Clone the dataset for some steps."""
    torch.set_num_threads(1)
    policy = small_seeing_policy()
    step = CloningStep(policy, rl.BCConfig(minibatch_size=64, learning_rate=1e-3))
    # one step with made-up rows, so that the optimizer's memory exists
    warm = chunk_source(policy, folder, DataConfig(max_episodes=1, memory_gib=4.0))
    clone(step, warm, 2)
    del warm
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    source = chunk_source(policy, folder, DataConfig(memory_gib=gib))
    opened = time.perf_counter()
    loss = clone(step, source, steps)
    seconds = time.perf_counter() - opened
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    streamed = isinstance(source, ChunkStream)
    row_bytes = source.row_bytes if isinstance(source, ChunkStream) else 0
    report(
        streamed=streamed,
        opening_seconds=opened - start,
        seconds=seconds,
        frames_per_second=64 * steps / seconds,
        loss=loss,
        before_mib=before / MIB,
        growth_mib=(peak - before) / MIB,
        stated_mib=gib * 1024,
        preprocessed_mib=row_bytes * len(source) / MIB,
        raw_mib=len(source) * 2 * 3 * 64 * 64 / MIB,
    )


def small_seeing_policy() -> FlowPolicy:
    """Return a tiny policy with two cameras of 56 x 56 pixels and words."""
    torch.manual_seed(0)
    preprocessor = PreprocessorConfig(
        state=NormStats.identity(3),
        action=NormStats.identity(2),
        pictures=PicturesConfig(cameras=SLOTS, size=56),
        prompt=PromptConfig(max_tokens=16),
    )
    info = policies.PolicyInfo(tokenizer=Tokenizer.load(TOKENIZER))
    network = Pi0(tiny("pi0", action_horizon=4, image_size=56))
    return FlowPolicy(network, preprocessor, policies.SamplerConfig(execution_horizon=2), info=info)


def report(**values: float) -> None:
    print(json.dumps({name: round(value, 3) for name, value in values.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "train"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--gib", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    if args.action == "write":
        write(args.folder, args.frames)
    else:
        train(args.folder, args.gib, args.steps)


if __name__ == "__main__":
    main()
