"""Every key of rollouts, batches and replay rows, declared once.

A rollout (E, T) holds the decisions of E environments, and under `next` the outcome of each. A
batch (B) holds the decisions that a policy gradient learns from. A replay row is one transition.
The table in `docs/keys.md` is generated from here, and a test holds every algorithm to it.

Letters: E envs, T decisions, B rows, H action horizon, h executed actions, A model action dim, d
robot action dim, S model state dim, s robot state dim, V cameras, X pixels, L prompt tokens, K flow
steps, M scored flow steps, F feature width, W latent width, D critic input width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tensordict import TensorDictBase

Place = Literal["rollout", "next", "batch", "replay"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One declared entry.

    Example:
        >>> KEYS["advantage"].shape
        '1'
    """

    meaning: str
    """One line."""
    shape: str
    """Shape after the batch dimensions, in letters, separated by commas; empty for a scalar, `*`
    for a nested entry."""
    writer: str
    """Module that writes it."""
    readers: tuple[str, ...]
    """Modules that read it."""
    places: tuple[Place, ...]
    """Tables that may hold it."""
    unit: str = "-"
    """Unit of its numbers."""


def _key(meaning: str, shape: str, writer: str, readers: str, places: str, unit: str = "-") -> Key:
    words: tuple[Place, ...] = tuple(places.split())  # type: ignore[arg-type]
    return Key(
        meaning=meaning,
        shape=shape,
        writer=writer,
        readers=tuple(readers.split()),
        places=words,
        unit=unit,
    )


_ENV, _ACTOR, _ALL = "envs.chunk_env", "policies.actor", "rollout next batch replay"
KEYS: dict[str, Key] = {
    # environment
    "state": _key("measured state", "s", _ENV, "episodes", "rollout next", "robot units"),
    "task_id": _key("index into the tasks", "", _ENV, "model_input evaluate", "rollout next"),
    "elapsed": _key("used share of the episode's time", "1", _ENV, "value td", _ALL),
    "model_input": _key(
        "network input: state, robot_state, images, tokens, token_mask",
        "*",
        "policies.preprocessing.model_input",
        "actor value learner dsrl",
        _ALL,
        "normalized",
    ),
    "reward": _key("sum of the chunk's rewards", "1", _ENV, "evaluate", "rollout next", "reward"),
    "reward_steps": _key(
        "reward of each executed step", "h", _ENV, "advantage td", "rollout next replay", "reward"
    ),
    "live": _key(
        "whether a step was executed", "h", _ENV, "advantage td", "rollout next replay", "bool"
    ),
    "duration": _key("executed steps", "1", _ENV, "advantage td", "rollout next replay", "steps"),
    "success": _key("solved in this chunk", "1", _ENV, "episodes", "rollout next", "bool"),
    "invalid": _key("the simulator broke down", "1", _ENV, "batch", "rollout next", "bool"),
    "terminated": _key("the task ended", "1", _ENV, "advantage td", "rollout next replay", "bool"),
    "truncated": _key("the time ran out", "1", _ENV, "td", "rollout next replay", "bool"),
    "done": _key("the episode ended", "1", _ENV, "advantage episodes", "rollout next", "bool"),
    # actors
    "noise": _key("given starting points", "H,A", "caller", _ACTOR, "rollout", "normalized"),
    "action": _key("executed actions", "h,d", _ACTOR, "chunk_env", "rollout", "robot units"),
    "chain": _key(
        "points from noise to action", "K+1,H,A", _ACTOR, "loss", "rollout batch", "normalized"
    ),
    "action_log_prob": _key(
        "log-probability of the chain", "M", _ACTOR, "loss", "rollout batch", "nats"
    ),
    "features": _key(
        "pooled features of pictures and prompt", "F", _ACTOR, "value", "rollout next batch"
    ),
    "stochastic_step": _key("the random flow step", "", _ACTOR, "likelihood", "rollout batch"),
    "draw_noise": _key("noise of loss draws", "M,H,A", _ACTOR, "likelihood", "rollout batch"),
    "draw_time": _key("flow times of loss draws", "M", _ACTOR, "likelihood", "rollout batch"),
    "member": _key("member of the population", "", "epo_population", "epo", "rollout next batch"),
    "latent": _key("chosen starting noise", "W", "dsrl_actor", "dsrl", "rollout replay"),
    "critic_input": _key("input of the critics", "D", "dsrl_actor", "dsrl", "rollout replay"),
    "context": _key("encoded observation", "*", "dsrl_actor", "dsrl", "rollout replay"),
    "prefix": _key(
        "encoded pictures and prompt", "*", "actor_critic.actor", "learner", "rollout replay"
    ),
    # policy gradients
    "state_value": _key("value before the update", "1", "value", "advantage", "rollout next batch"),
    "value_target": _key("value target", "1", "advantage", "loss", "rollout batch", "reward"),
    "advantage": _key("standardized advantage", "1", "advantage", "loss", "rollout batch"),
    "weight": _key("weight of a decision, 1 on average", "1", "grpo", "loss", "batch"),
    "episode": _key("number of the decision's episode", "", "grpo", "grpo", "batch"),
    "center": _key("log-ratio that the clip is around", "M", "epo", "epo", "batch", "nats"),
    # off-policy learners
    "chunk": _key("executed actions, flat", "h*d", "transitions", "td", "replay", "normalized"),
    "discounted_reward": _key("discounted reward of the chunk", "", "td", "td", "batch", "reward"),
    "discount": _key("discount to the power of the duration", "", "td", "td", "batch"),
    "ended": _key("whether nothing follows", "", "td", "td", "batch", "bool"),
}
"""All entries, by name."""


def declared(place: Place) -> set[str]:
    """Return the names that a table may hold."""
    return {name for name, key in KEYS.items() if place in key.places}


def select_decisions(rollout: TensorDictBase, *groups: Iterable[str]) -> TensorDictBase:
    """Return the entries of a rollout that a batch may hold, among groups of names.

    Args:
        rollout: Decisions (E, T).
        groups: Names such as an actor's `in_keys` and `out_keys`; those that no batch holds, like
            the executed `action`, are left out.

    Raises:
        KeyError: a name is not declared.
    """
    names = dict.fromkeys(name for group in groups for name in group)
    undeclared = sorted(names.keys() - KEYS.keys())
    if undeclared:
        raise KeyError(f"{undeclared} are not declared in pitune.rl.experience.keys")
    batch = declared("batch")
    return rollout.select(*(name for name in names if name in batch))
