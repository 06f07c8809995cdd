"""Keys of FAST tokens, texts and the status of the task.

Letters: M scored flow steps (or other ratios of a decision), L tokens of a chunk.
"""

from __future__ import annotations

from pitune.rl.experience.keys.declaration import Key, declare

_MARKS = "rl.evaluation.marks"
TOKEN_KEYS: dict[str, Key] = {
    "fast_tokens": declare(
        "chosen FAST tokens, -1 in padding",
        "M",
        "policies.likelihood.fast_tokens",
        "policies.likelihood.fast_tokens",
        "rollout batch",
    ),
    "fast_failed": declare(
        "whether the FAST tokens are no chunk, so that another was executed",
        "scalar",
        "policies.by_tokens",
        f"policies.likelihood.fast_tokens {_MARKS}",
        "rollout batch",
        "bool",
    ),
    "status": declare(
        "status of the task: 0 ongoing, 1 done, 2 invalid",
        "scalar",
        "policies.status",
        _MARKS,
        "rollout",
    ),
    "target_tokens": declare(
        "FAST tokens of a chunk to clone", "L", "rl.cloning.losses", "rl.cloning.losses", "cloning"
    ),
    "target_mask": declare(
        "mask of these tokens, False in padding",
        "L",
        "rl.cloning.losses",
        "rl.cloning.losses",
        "cloning",
        "bool",
    ),
    "text": declare("a text to learn", "*", "rl.cloning.losses", "rl.cloning.losses", "cloning"),
    "steps_left": declare(
        "steps to the end of a successful episode, or 0",
        "scalar",
        "rl.experience.status_rows",
        "rl.cloning.losses",
        "cloning",
        "steps",
    ),
    "other_prompt": declare(
        "prompt of another task", "*", "rl.experience.status_rows", "rl.cloning.losses", "cloning"
    ),
    "status_label": declare(
        "status to learn", "scalar", "rl.cloning.losses", "rl.cloning.losses", "cloning"
    ),
    "flow_row_weight": declare(
        "weight of a row's actions, 0 with another task's words and 1 on average",
        "scalar",
        "rl.cloning.losses",
        "rl.cloning.losses",
        "cloning",
    ),
}
"""The entries, by name."""
