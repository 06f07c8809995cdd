"""`keys`: every entry of rollouts, batches and replay rows is declared, with its shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from pitune import envs, policies, rl
from pitune.policies import (
    FinetuneConfig,
    FlowMatchingConfig,
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
)
from pitune.rl.actor_critic import learner
from pitune.rl.actor_critic.td import OffPolicy
from pitune.rl.algorithms import bc, epo, es, grpo, ppo
from pitune.rl.experience.keys import KEYS, Place, declared, select_decisions
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient import batch as decisions
from pitune.rl.policy_gradient import policy_step
from settings import changed
from vision_policies import ENV, vision_policy

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in sorted(rl.presets())},
    "ppo with its reference": ("ppo", {"bc_coefficient": 0.5, "kl_coefficient": 0.5}),
    "ppo that scores one step": ("ppo", {"scored_steps": "one"}),
    "ppo with one random step": ("ppo", {"likelihood": FlowSDEConfig(stochastic_steps="one")}),
    "grpo of trajectories": ("grpo", {"level": "trajectory"}),
    "fpo with a ratio per draw": ("fpo", {"likelihood": FlowMatchingConfig(ratio="step")}),
    "dsrl of noise": ("dsrl", {"variant": "sac", "offline_share": 0.0}),
    "dsrl that keeps inputs": ("dsrl", {"keep_context": False}),
    "wsrl that clones": ("wsrl", {"cloning_coefficient": 0.5}),
}
POLICIES = [
    *((case, kind) for case in CASES for kind in ("state", "vision")),
    *((case, "frozen") for case in ("dgn", "wsrl", "wsrl that clones")),
]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demonstrations") / "pictures.safetensors"
    rl.collect_demonstrations(envs.make(replace(ENV, max_episode_steps=20)), 3, seed=0).save(file)
    return file


Tables = list[tuple[Place, TensorDictBase]]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """Return the list that every batch and sample that a learner makes is added to."""
    found: Tables = []

    def record(owner: Any, name: str, place: Place, row: int, result: bool = False) -> None:
        original = getattr(owner, name)

        def recording(*args: Any, **keywords: Any) -> Any:
            returned = original(*args, **keywords)
            found.append((place, returned if result else args[row]))
            return returned

        monkeypatch.setattr(owner, name, recording)

    for module in (ppo, policy_step, epo, es):
        record(module, "gradient_step", "batch", 2)
    for module in (decisions, grpo, epo):
        record(module, "select_decisions", "rollout", 0)
    record(epo.EPO, "others", "batch", 0, result=True)
    record(bc, "gradient_step", "cloning", 2)
    record(learner, "gradient_step", "sample", 2)
    record(OffPolicy, "sample", "sample", 0, result=True)
    return found


def sizes_of(algorithm: rl.Algorithm[Any], num_envs: int) -> dict[str, int]:
    """Return the numbers that the letters of the shapes stand for."""
    policy = algorithm.actor.policy
    network, scaling = policy.network.config, policy.preprocessor
    source = policy.noise_source
    sizes = {
        "E": num_envs,
        "H": policy.chunk_shape[0],
        "A": policy.chunk_shape[1],
        "h": policy.sampler.execution_horizon,
        "d": scaling.action_dim,
        "S": scaling.model_state_dim,
        "s": scaling.state_dim,
        "K": policy.sampler.flow_steps,
        "kinds": len(network.options.conditioning.kinds),
        "F": policy.feature_dim,
        "R": policy.remainder_steps,
        "D": policy.critic_state_dim + network.feature_dim,
        "W": 0 if source is None else source.actor.latent_dim,
    }
    if scaling.config.pictures is not None and scaling.config.prompt is not None:
        sizes |= {"V": len(scaling.config.pictures.cameras), "X": 28, "Y": 28}
        sizes["L"] = scaling.config.prompt.max_tokens
    sizes["M"] = sizes["K"]
    if isinstance(algorithm.actor, LikelihoodActor):
        config = algorithm.actor.config
        sizes["M"] = config.num_draws if isinstance(config, FlowMatchingConfig) else sizes["K"]
    return sizes


def shapes(text: str, sizes: dict[str, int]) -> Iterator[tuple[int, ...]]:
    """Return the shapes that a declaration allows."""
    for shape in text.split(" or "):
        letters = [] if shape == "scalar" else shape.split(",")
        yield tuple(int(eval(letter, {}, sizes)) for letter in letters)


def faults(rows: TensorDictBase, place: Place, sizes: dict[str, int], prefix: str = "") -> set[str]:
    """Return the entries of rows that are not declared for a table, or have another shape."""
    found: set[str] = set()
    if "stochastic_step" in rows.keys():
        sizes = {**sizes, "M": 1}
    for name, value in rows.items():
        path = f"{prefix}{name}"
        if path == "next":
            found |= faults(value, "next" if place == "rollout" else place, sizes)
        elif path not in declared(place):
            found.add(f"{path} in {place}")
        elif KEYS[path].shape == "*":
            if not isinstance(value, TensorDictBase):
                found.add(f"{path} in {place} is no nested entry")
            elif path == "model_input":
                found |= faults(value, place, sizes, "model_input.")
            elif path in ("obs", "cloned"):
                found |= faults(value, "cloning" if path == "cloned" else place, sizes)
        else:
            shape = tuple(rows[name].shape[rows.ndim :])
            if shape not in shapes(KEYS[path].shape, sizes):
                found.add(f"{path} in {place} of shape {shape}")
    return found


def with_successes(rollout: TensorDictBase) -> TensorDictBase:
    """Return a rollout in which the episodes of every other environment succeed."""
    after = sub_dict(rollout, "next")
    after["success"] = after["done"].clone()
    after["success"][1::2] = False
    return rollout


def new_policy(kind: str, tiny_policy: Callable) -> FlowPolicy:
    if kind == "state":
        policy: FlowPolicy = tiny_policy(horizon=4)
        return policy
    policy = vision_policy()
    if kind == "frozen":
        finetune = FinetuneConfig(trainable=("action_expert", "projections"))
        policies.apply_finetuning(policy, finetune)
    return policy


@pytest.mark.parametrize(("case", "kind"), POLICIES)
def test_every_entry_is_declared_with_its_shape(
    case: str,
    kind: str,
    tiny_policy: Callable,
    small_preset: Callable,
    demonstrations: Path,
    tables: Tables,
) -> None:
    name, settings = CASES[case]
    config = small_preset(name).with_demonstrations(demonstrations)
    defaults = {"critic_warmup": 0, "offline_share": 0.5, "fitness": "success"}
    for key, value in {**defaults, **settings}.items():
        try:
            config = changed(config, **{key: value})
        except TypeError:
            assert key not in settings
    torch.manual_seed(0)
    algorithm = rl.make(config, new_policy(kind, tiny_policy))
    env = ENV if kind != "state" else replace(ENV, cameras=())
    sizes = sizes_of(algorithm, env.num_envs)
    experience = rl.Rollouts(envs.make(env), algorithm, 4, seed=0)
    found: set[str] = set()
    for _ in range(2):
        rollout = experience.collect()
        found |= faults(rollout, "rollout", sizes)
        algorithm.update(with_successes(rollout) if algorithm.needs.rollouts else rollout)
    off_policy = getattr(getattr(algorithm, "learner", algorithm), "off_policy", None)
    if off_policy is not None:
        tables.append(("replay", off_policy.replay.all()))
        if off_policy.demonstrations is not None:
            tables.append(("replay", off_policy.demonstrations.all()))
    assert tables
    for place, rows in tables:
        found |= faults(rows, place, sizes)
    assert found == set()


def test_entries_that_are_not_declared_or_have_another_shape_are_reported() -> None:
    """Negative control."""
    sizes = {"s": 4, "S": 4, "H": 3, "h": 2, "R": 0, "d": 2}
    after = {"weight": torch.zeros(2, 3, 1), "reward": torch.zeros(2, 3, 1)}
    rows = TensorDict(
        {
            "state": torch.zeros(2, 3, 4),
            "action": torch.zeros(2, 3, 4, 2),
            "secret": torch.zeros(2, 3),
            "model_input": {"state": torch.zeros(2, 3, 4), "thing": torch.zeros(2, 3)},
            "next": after,
        },
        batch_size=[2, 3],
    )
    assert faults(rows, "rollout", sizes) == {
        "secret in rollout",
        "model_input.thing in rollout",
        "action in rollout of shape (4, 2)",
        "weight in next",
    }


def test_a_batch_is_selected_from_declared_names_only() -> None:
    rollout = TensorDict({"state": torch.zeros(2, 3, 4), "chain": torch.zeros(2, 3, 1)}, [2, 3])
    assert set(select_decisions(rollout, ["chain"], ["state"]).keys()) == {"chain"}
    with pytest.raises(KeyError, match=r"\['secret'\] are not declared in pitune\.rl\.experience"):
        select_decisions(rollout, ["chain", "secret"])


@pytest.mark.parametrize("name", KEYS)
def test_writers_and_readers_are_modules_that_name_the_entry(name: str) -> None:
    key = KEYS[name]
    last = name.rpartition(".")[2]
    spellings = {f'"{last}"', f".{last}", f"{last}=", last.upper()}  # also a constant of that name
    if name == "model_input":
        spellings.add("ModelInput.of")
    for module in (key.writer, *key.readers):
        source = inspect.getsource(import_module(f"pitune.{module}"))
        assert any(spelling in source for spelling in spellings), module
    assert key.places
