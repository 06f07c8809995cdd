"""Processor seconds of PPO iterations on a tiny π0 with a frozen VLM, to compare two commits.

    git worktree add ../old f8642f2
    (cd ../old && PYTHONPATH=. python ../pitune/tests/peers/iteration.py 224)
    PYTHONPATH=. python tests/peers/iteration.py 224

It uses only what both commits have. The number is the side of the two pictures [pixels]. It prints
the seconds of three rollouts and updates after one that is not measured. Run both in turns.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import torch

from pitune import envs, policies, rl
from pitune.policies.network.config import tiny
from pitune.policies.preprocessing.images import PicturesConfig

CAMERAS = {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}


def frozen_policy(size: int) -> policies.FlowPolicy:
    """Return a tiny π0 with random weights, two pictures and no words, whose VLM is frozen."""
    torch.manual_seed(0)
    identity = policies.NormStats.identity
    preprocessor = policies.PreprocessorConfig(
        state=identity(4),
        action=identity(2),
        pictures=PicturesConfig(cameras=CAMERAS, size=size, resize="torch"),
    )
    network = replace(tiny("pi0", action_horizon=8, image_size=size), vocab_size=0)
    sampler = policies.SamplerConfig(flow_steps=4, execution_horizon=4)
    policy = policies.FlowPolicy(policies.Pi0(network), preprocessor, sampler)
    trained = policies.FinetuneConfig(trainable=("action_expert", "projections"))
    return policies.apply_finetuning(policy, trained)


def main(size: int) -> None:
    """Measure, and print pairs of seconds."""
    torch.set_num_threads(1)
    config = replace(rl.PPOConfig(critic_warmup=0), update=rl.UpdateConfig(minibatch_size=16))
    algorithm = rl.make(config, frozen_policy(size))
    env = envs.EnvConfig(
        id="mock/Reach",
        num_envs=8,
        num_workers=0,
        cameras=tuple(CAMERAS.values()),
        image_size=size,
    )
    rollouts = rl.Rollouts(envs.make(env), algorithm, 4, seed=0)
    algorithm.update(rollouts.collect())
    seconds = []
    for _ in range(3):
        start = time.process_time()
        rollout = rollouts.collect()
        middle = time.process_time()
        algorithm.update(rollout)
        seconds.append((round(middle - start, 3), round(time.process_time() - middle, 3)))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(int(sys.argv[1]))
