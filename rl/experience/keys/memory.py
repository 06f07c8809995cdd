"""Keys of a policy's memory, and of the pairs of evolution strategies.

In shapes, `memory` is the number of memory tokens.
Letters: D width.
"""

from __future__ import annotations

from pitune.rl.experience.keys.declaration import Key, declare

_ENV, _INPUTS = "envs.memory_env", "policies.preprocessing.model_input"
_ES = "rl.algorithms.es"
MEMORY_KEYS: dict[str, Key] = {
    "memory": declare("memory that the decision reads", "memory,D", _ENV, _INPUTS, "rollout next"),
    "model_input.memory": declare(
        "memory that the decision reads",
        "memory,D",
        _INPUTS,
        "policies.policy_parts rl.policy_gradient.value",
        "rollout next batch replay sample cloning",
    ),
    "written_memory": declare(
        "memory for the next decision", "memory,D", "policies.decision", _ENV, "rollout"
    ),
    "history": declare(
        "decisions before it that the gradient of a memory flows through",
        "*",
        "rl.experience.history",
        "policies.recurrence",
        "rollout batch cloning",
    ),
    "pair": declare("pair of members", "scalar", _ES, _ES, "batch"),
    "slope": declare("slope of the rank along a pair's noise", "scalar", _ES, _ES, "batch"),
}
"""By name, a part of `pitune.rl.experience.keys`."""
