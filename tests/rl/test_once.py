"""Once means once: pictures and prompts are prepared once per observation, never in an update."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import envs, policies, rl
from pitune.envs import CheckedEnv
from pitune.envs.mock.reach import Reach
from pitune.envs.vector_env import Observation
from pitune.experiments.benchmarks.update import with_settings
from pitune.policies import FlowSDEConfig, LikelihoodActor
from pitune.policies.network.config import Family
from pitune.policies.preprocessing import preprocessor
from pitune.ranges import Settings
from pitune.rl.experience.sub_dict import sub_dict
from vision_policies import ENV, vision_policy

FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
CASES = [
    (name, family)
    for name in sorted(rl.presets())
    for family in FAMILIES
    if (name, family) != ("epo", "pi05")  # its genes shift a state token, which π0.5 has not
]
SETTINGS = {
    "critic_warmup": 0,
    "warmup_decisions": 16,
    "offline_share": 0.5,
    "cloning_coefficient": 0.5,
    "bc_coefficient": 0.5,
    "min_kept": 0.0,
}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demonstrations") / "pictures.safetensors"
    rl.collect_demonstrations(envs.make(replace(ENV, max_episode_steps=20)), 3, seed=0).save(file)
    return file


class Counts:
    """Rows that were resized and tokenized since the last `take`."""

    def __init__(self) -> None:
        self.resized = self.tokenized = 0
        self.words: set[str] = set()

    def take(self) -> tuple[int, int]:
        counts = self.resized, self.tokenized
        self.resized = self.tokenized = 0
        return counts


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Count the rows of every resizing and tokenizing."""
    found = Counts()
    resize, tokenize = preprocessor.resized_pictures, preprocessor.tokenize

    def resized(images: list[Tensor], *rest: Any) -> Tensor:
        found.resized += len(images[0])
        return resize(images, *rest)

    def tokenized(instructions: list[str], *rest: Any) -> tuple[Tensor, Tensor]:
        found.tokenized += len(instructions)
        found.words |= set(instructions)
        return tokenize(instructions, *rest)

    monkeypatch.setattr(preprocessor, "resized_pictures", resized)
    monkeypatch.setattr(preprocessor, "tokenize", tokenized)
    return found


def num_observations(rollout: TensorDictBase, whole_episodes: bool) -> int:
    """Return how many observations a first rollout (E, T) made: starts and ends of decisions."""
    num_envs = len(rollout)
    after = sub_dict(rollout, "next")
    resets = int(after["done"].sum()) - (num_envs if whole_episodes else 0)
    return num_envs + int((after["duration"] > 0).sum()) + resets


def with_successes(rollout: TensorDictBase) -> TensorDictBase:
    """Return a rollout in which the episodes of every other environment succeed."""
    after = sub_dict(rollout, "next")
    after["success"] = after["done"].clone()
    after["success"][1::2] = False
    after["reward_steps"][..., 0] = after["success"].squeeze(-1).float()
    return rollout


@pytest.mark.parametrize(("name", "family"), CASES)
def test_pictures_and_prompts_are_prepared_once_per_observation_and_never_in_an_update(
    name: str, family: Family, small_preset: Callable, demonstrations: Path, counts: Counts
) -> None:
    config = with_settings(small_preset(name).with_demonstrations(demonstrations), SETTINGS)
    torch.manual_seed(0)
    algorithm = rl.make(config, vision_policy(family))

    # demonstrations: once per recorded step, when they are read; π0's prompt once per task
    steps = len(rl.Demonstrations.load(demonstrations).action)
    reads = name in ("bc", "dgn", "dsrl", "recap", "wsrl")
    tokenized = steps if family == "pi05" else 1
    assert counts.take() == ((steps, tokenized) if reads else (0, 0))

    # collecting, after one row of zeros for the spec; π0's prompt once per task
    experience = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0)
    collects = algorithm.needs.rollouts
    rollout = experience.collect()
    num = 1 + (num_observations(rollout, algorithm.needs.whole_episodes) if collects else 0)
    assert counts.take() == (num, num if family == "pi05" else 1)
    whole = algorithm.needs.whole_episodes  # such a rollout ends with its episodes
    assert not collects or rollout["next", "done"][:, :-1].any() or whole

    # learning
    before = {key: value.clone() for key, value in algorithm.actor.state_dict().items()}
    rollout = with_successes(rollout) if collects else rollout
    for _ in range(2):
        algorithm.update(rollout)
    assert counts.take() == (0, 0)
    after = algorithm.actor.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before), "nothing was learned"


@pytest.mark.parametrize("name", ["ppo", "dsrl"])
def test_no_settings_are_made_in_a_decision_or_a_gradient_step(
    name: str, small_preset: Callable, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making settings checks every range, so a network may not ask for a default by making one."""
    config = with_settings(small_preset(name).with_demonstrations(demonstrations), SETTINGS)
    algorithm = rl.make(config, vision_policy("pi0"))
    experience = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0)
    algorithm.update(experience.collect())

    made: list[str] = []
    check = Settings.__post_init__

    def checked(settings: Settings) -> None:
        made.append(type(settings).__name__)
        check(settings)

    monkeypatch.setattr(Settings, "__post_init__", checked)
    algorithm.update(experience.collect())
    assert not made


class SecondTask(Reach):
    """`mock/Reach` whose episodes belong to the second task."""

    def _obs(self) -> Observation:
        obs = super()._obs()
        return {**obs, "task_id": torch.ones_like(obs["task_id"])}


def elsewhere() -> CheckedEnv:
    """Return an environment with two other tasks."""
    env = CheckedEnv(SecondTask(4, cameras=("front", "wrist"), image_size=20, max_episode_steps=6))
    env.spec = replace(env.spec, tasks=("open the drawer", "push the blue cube"))
    return env


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluating_elsewhere_leaves_the_prompts_of_the_training_alone(
    family: Family, counts: Counts
) -> None:
    prompts = []
    for evaluated in (False, True):
        torch.manual_seed(0)
        algorithm = rl.PPO(rl.PPOConfig(), vision_policy(family))
        experience = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0)
        first = experience.collect()
        counts.words.clear()
        if evaluated:
            rl.evaluate(elsewhere(), algorithm.actor, 4)
            assert "push the blue cube" in counts.words
        second = experience.collect()
        token_mask: Tensor = first["model_input", "token_mask"]
        assert token_mask.any(-1).all()
        prompts.append(second["model_input", "tokens"])
        if family == "pi0":  # the prompt is the instruction alone
            assert torch.equal(prompts[-1], first["model_input", "tokens"])
    assert torch.equal(*prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_that_infer_at_once_get_their_own_answers(family: Family) -> None:
    policy = vision_policy(family)
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)
    raw = {"state": np.full(4, 0.3), "front": picture, "wrist": picture}
    noise = generator.standard_normal(policy.chunk_shape).astype(np.float32)
    prompts = [f"push {color} cube number {n}" for n, color in enumerate(("red", "blue") * 4)]

    def answer(prompt: str) -> np.ndarray:
        return policies.infer(policy, {**raw, "prompt": prompt}, noise)

    expected = {prompt: answer(prompt) for prompt in prompts}
    first = expected[prompts[0]]
    assert all(np.abs(first - expected[prompt]).max() > 1e-4 for prompt in prompts[1:])

    def answers(prompt: str) -> list[np.ndarray]:
        return [answer(prompt) for _ in range(40)]

    with ThreadPoolExecutor(len(prompts)) as pool:
        found = dict(zip(prompts, pool.map(answers, prompts), strict=True))
    for prompt in prompts:
        assert all(np.allclose(row, expected[prompt], atol=1e-6) for row in found[prompt]), prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_an_actor_acts_on_inputs_that_were_prepared_before(family: Family, counts: Counts) -> None:
    """Control of the counts above: preparing a second time is seen."""
    policy = vision_policy(family)
    obs = envs.make(ENV).reset(torch.arange(4))
    preprocess = policy.observation_preprocessor(("reach",))
    counts.take()
    td = preprocess(TensorDict(dict(obs), batch_size=[4]))
    once = counts.take()
    assert once == (4, 4 if family == "pi05" else 0)
    LikelihoodActor(policy, FlowSDEConfig())(td)
    assert counts.take() == (0, 0)
    preprocess(td)
    assert counts.take() == once
