"""Every key of rollouts, batches and replay rows, declared once.

A rollout (E, T) holds the decisions of E environments, and under `next` the outcome of each. A
batch (B) holds the decisions that a policy gradient learns from. A replay row (B) is one
transition, and a sample (B) is a minibatch of them. Cloning rows (B) are demonstrated chunks.
The table in `docs/keys.md` is generated from here, and a test holds every algorithm to it.

Letters: E envs, T chunk decisions, B rows, H action horizon, h executed actions, R steps of a
remainder (0 without a decision delay), A model action dim, d robot action dim, S model state dim, s
robot state dim, V cameras, Y, X image pixels, L prompt tokens, K flow steps, M scored flow steps
(or loss draws), F feature width, W latent width, D width of a critic's input.
"""

from __future__ import annotations

from collections.abc import Iterable

from tensordict import TensorDictBase

from pitune.rl.experience.keys.declaration import Key, Place, declare
from pitune.rl.experience.keys.memory import MEMORY_KEYS
from pitune.rl.experience.keys.tokens import TOKEN_KEYS

_ENV, _ACTOR, _INPUTS = "envs.chunk_env", "policies.actor", "policies.preprocessing.model_input"
_PREPROCESSOR, _LATE = "policies.preprocessing.preprocessor", "envs.delayed_env"
_VALUE, _BATCH, _LOSS = (f"rl.policy_gradient.{module}" for module in ("value", "batch", "loss"))
_ADVANTAGE, _EPISODES, _REFERENCE = (
    f"rl.policy_gradient.{module}" for module in ("advantage", "episodes", "reference")
)
_SUCCESS = "envs.success"
_TD, _LEARNER = "rl.actor_critic.td", "rl.actor_critic.learner"
_TRANSITIONS, _EVALUATE = "rl.experience.transitions", "rl.evaluation.evaluate"
_GRPO, _EPO, _DSRL, _BC = (f"rl.algorithms.{name}" for name in ("grpo", "epo", "dsrl", "bc"))
_POLICY, _DSRL_ACTOR = "policies.policy", "rl.algorithms.dsrl_actor"
_CONDITIONS, _RECAP = "policies.conditions", "rl.algorithms.recap.learner"

_ROLLOUT, _ROWS = "rollout next", "replay sample"
_INPUT, _FLAG = f"{_ROLLOUT} batch {_ROWS} cloning", f"{_ROLLOUT} {_ROWS}"
KEYS: dict[str, Key] = {
    # environment
    "state": declare(
        "measured state", "s", _ENV, f"{_PREPROCESSOR} {_EPISODES}", _ROLLOUT, "robot"
    ),
    "task_id": declare("index into the tasks", "scalar", _ENV, f"{_INPUTS} {_EVALUATE}", _ROLLOUT),
    "elapsed": declare(
        "used share of the episode's time", "1", _ENV, f"{_VALUE} {_TD}", f"{_FLAG} batch"
    ),
    "reward": declare("sum of the chunk's rewards", "1", _ENV, _EVALUATE, "next", "reward"),
    "reward_steps": declare(
        "reward of each executed step", "h", _ENV, f"{_ADVANTAGE} {_TD}", _FLAG, "reward"
    ),
    "live": declare("whether a step was executed", "h", _ENV, f"{_ADVANTAGE} {_TD}", _FLAG, "bool"),
    "duration": declare("executed steps", "1", _ENV, f"{_ADVANTAGE} {_TD}", _FLAG, "steps"),
    "success": declare(
        "success of the episode so far, by the environment's rule",
        "1",
        _SUCCESS,
        f"{_EPISODES} rl.algorithms.filtered_bc",
        _ROLLOUT,
        "bool",
    ),
    "success_once": declare(
        "solved at any step of the episode so far", "1", _SUCCESS, _EVALUATE, _ROLLOUT, "bool"
    ),
    "success_at_end": declare(
        "solved at the last executed step", "1", _SUCCESS, _EVALUATE, _ROLLOUT, "bool"
    ),
    "invalid": declare(
        "the simulator broke down", "1", _ENV, f"{_BATCH} {_TRANSITIONS}", _ROLLOUT, "bool"
    ),
    "terminated": declare("the task ended", "1", _ENV, f"{_ADVANTAGE} {_TD}", _FLAG, "bool"),
    "truncated": declare("the time ran out", "1", _ENV, _TD, _FLAG, "bool"),
    "done": declare("the episode ended", "1", _ENV, f"{_ADVANTAGE} {_EPISODES}", _ROLLOUT, "bool"),
    "remainder": declare("rest of the old chunk", "R,d", _LATE, _INPUTS, _ROLLOUT, "robot"),
    "delay": declare(
        "executed steps of it, -1 without one", "scalar", _LATE, _INPUTS, _ROLLOUT, "steps"
    ),
    # network input
    "model_input": declare(
        "network input, computed once per observation",
        "*",
        _INPUTS,
        f"{_ACTOR} {_VALUE} {_LEARNER} {_DSRL}",
        _INPUT,
    ),
    "model_input.state": declare(
        "padded state", "S", _PREPROCESSOR, f"{_POLICY} {_VALUE}", _INPUT, "normalized"
    ),
    "model_input.robot_state": declare(
        "the same state, as measured",
        "s",
        _PREPROCESSOR,
        f"{_POLICY} {_TRANSITIONS}",
        _INPUT,
        "robot",
    ),
    "model_input.images": declare(
        "resized pictures", "V,3,Y,X", _PREPROCESSOR, _CONDITIONS, _INPUT
    ),
    "model_input.tokens": declare("prompt", "L", _INPUTS, _POLICY, _INPUT),
    "model_input.token_mask": declare(
        "mask of the tokens, False in padding", "L", _INPUTS, _CONDITIONS, _INPUT, "bool"
    ),
    "model_input.task_id": declare(
        "task that the velocity is conditioned on", "scalar", _INPUTS, _CONDITIONS, _INPUT
    ),
    "model_input.condition": declare(
        "condition of each kind, -1 if dropped", "kinds", _RECAP, _CONDITIONS, _INPUT
    ),
    "model_input.remainder": declare(
        "rest of the old chunk", "R,A", _INPUTS, f"{_POLICY} {_VALUE}", _INPUT, "normalized"
    ),
    "model_input.delay": declare(
        "steps of it that are executed", "scalar", _INPUTS, f"{_POLICY} {_VALUE}", _INPUT, "steps"
    ),
    "model_input.last_action": declare(
        "executed action", "d", _INPUTS, _VALUE, _INPUT, "normalized"
    ),
    # actors
    "noise": declare(
        "starting points",
        "H,A",
        _LEARNER,
        f"{_ACTOR} {_BC}",
        "rollout sample cloning",
        "normalized",
    ),
    "action": declare(
        "executed actions, or all of a chunk to clone",
        "h+R,d or H,d",
        _ACTOR,
        f"{_ENV} {_TRANSITIONS} {_BC} {_LEARNER}",
        "rollout cloning",
        "robot",
    ),
    "action_is_pad": declare(
        "whether a demonstrated step lies past the episode's end",
        "H",
        "rl.experience.demonstrations",
        "rl.experience.demonstrations",
        "cloning",
        "bool",
    ),
    "chain": declare(
        "points from noise to action",
        "K+1,H,A",
        _ACTOR,
        f"{_LOSS} {_REFERENCE} rl.algorithms.filtered_bc",
        "rollout batch",
        "normalized",
    ),
    "action_log_prob": declare(
        "log-probability of the chain", "M or scalar", _ACTOR, _LOSS, "rollout batch", "nats"
    ),
    "features": declare(
        "pooled features of pictures and prompt", "F", _ACTOR, _VALUE, f"{_ROLLOUT} batch"
    ),
    "stochastic_step": declare(
        "the random flow step, or the one to score",
        "scalar",
        "policies.likelihood.flow_steps",
        _LOSS,
        "rollout batch",
    ),
    "draw_noise": declare(
        "noise of loss draws",
        "M,H,A",
        "policies.likelihood.whole_chunk",
        "policies.likelihood.whole_chunk",
        "rollout batch",
        "normalized",
    ),
    "draw_time": declare(
        "flow times of loss draws",
        "M",
        "policies.likelihood.whole_chunk",
        "policies.likelihood.whole_chunk",
        "rollout batch",
    ),
    "member": declare(
        "member of the population",
        "scalar",
        "rl.algorithms.evolution.epo_population",
        f"{_EPO} rl.algorithms.evolution.epo_evolution",
        f"{_ROLLOUT} batch",
    ),
    "latent": declare("chosen starting noise", "W", _DSRL_ACTOR, _DSRL, f"rollout {_ROWS}"),
    "critic_input": declare("input of the critics", "D", _DSRL_ACTOR, _DSRL, f"rollout {_ROWS}"),
    "context": declare("encoded observation", "*", _DSRL_ACTOR, _DSRL, f"rollout {_ROWS}"),
    "prefix": declare(
        "encoded pictures and prompt",
        "*",
        "rl.actor_critic.actor",
        "policies.network.context rl.actor_critic.stored_rows",
        f"rollout batch {_ROWS} cloning",
    ),
    # policy gradients
    "state_value": declare(
        "value before the update",
        "1",
        _BATCH,
        f"{_ADVANTAGE} rl.algorithms.ppo",
        f"{_ROLLOUT} batch",
        "reward",
    ),
    "value_target": declare(
        "value target", "1", _BATCH, f"rl.algorithms.ppo {_EPO}", "rollout batch", "reward"
    ),
    "advantage": declare("standardized advantage", "1", _BATCH, _LOSS, "rollout batch"),
    "weight": declare("weight of a decision, 1 on average", "1", _GRPO, _LOSS, "batch"),
    "episode": declare("number of the decision's episode", "scalar", _GRPO, _GRPO, "batch"),
    "center": declare("log-ratio that the clip is around", "M", _EPO, _EPO, "batch", "nats"),
    "reference_noise": declare(
        "noise of the reference's chunks", "H,A", _REFERENCE, _REFERENCE, "batch", "normalized"
    ),
    "cloning_noise": declare(
        "noise of their flow matching", "H,A", _REFERENCE, _REFERENCE, "batch", "normalized"
    ),
    "cloning_time": declare(
        "flow time of their flow matching", "scalar", _REFERENCE, _REFERENCE, "batch"
    ),
    # off-policy learners and cloning
    "obs": declare("stored part of an observation", "*", _LEARNER, _LEARNER, _ROWS),
    "chunk": declare(
        "executed actions, flat", "(h+R)*d", _LEARNER, f"{_LEARNER} {_DSRL}", _ROWS, "normalized"
    ),
    "discounted_reward": declare(
        "discounted reward of the chunk", "scalar", _TD, _TD, "sample", "reward"
    ),
    "discount": declare("discount to the power of the duration", "scalar", _TD, _TD, "sample"),
    "ended": declare("whether the next value counts as 0", "scalar", _TD, _TD, "sample", "bool"),
    "cloned": declare("demonstrated chunks to clone", "*", _LEARNER, _LEARNER, "sample"),
    "flow_time": declare(
        "flow time of flow matching", "scalar or H", _LEARNER, f"{_LEARNER} {_BC}", "cloning"
    ),
    "step_weight": declare(
        "weight of each step, 0 in a clean beginning and 1 on average", "H", _BC, _BC, "cloning"
    ),
} | {**TOKEN_KEYS, **MEMORY_KEYS}
"""All entries, by name."""


def declared(place: Place) -> set[str]:
    """Return the names that a table may hold.

    Example:
        >>> "chunk" in declared("replay"), "chunk" in declared("rollout")
        (True, False)
    """
    return {name for name, key in KEYS.items() if place in key.places}


def select_decisions(rollout: TensorDictBase, *groups: Iterable[str]) -> TensorDictBase:
    """Return the entries of a rollout that a batch may hold, among groups of names.

    A `history` is kept wherever a rollout has one.

    Args:
        rollout: Decisions (E, T).
        groups: Names such as an actor's `in_keys` and `out_keys`. Those that no batch holds, like
            the executed `action`, are left out.

    Raises:
        KeyError: a name is not declared.
    """
    names = dict.fromkeys(name for group in groups for name in group)
    names |= {name: None for name in ("history",) if name in rollout.keys()}
    undeclared = sorted(names.keys() - KEYS.keys())
    if undeclared:
        raise KeyError(f"{undeclared} are not declared in pitune.rl.experience.keys")
    batch = declared("batch")
    return rollout.select(*(name for name in names if name in batch))
