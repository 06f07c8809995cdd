"""Rollouts that are played again, action by action, so that a run goes on in the midst of episodes.

A simulator's state cannot be saved in general, but a seed fixes its starts. So a checkpoint stores
the actions since the episodes began. A resumed run executes them again, and has the same simulator
as the run that it continues. A fingerprint of the last decision shows whether that is so.

In shapes, `memory` is the number of memory tokens.
Letters: E envs, T chunk decisions, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from pitune.envs.border import read_together
from pitune.policies.actor import Actor
from pitune.policies.preprocessing.model_input import WRITTEN
from pitune.rl.experience.sub_dict import sub_dict

MOST_BYTES = 2**28
"""Size of the stored actions beyond which they are dropped [bytes]."""
FINGERPRINT = ("state", "reward", "done")
"""Entries of a rollout's outcome that are compared after its repetition."""


class PlayedActions:
    """The actions of the rollouts since all episodes began anew.

    Example:
        >>> played = PlayedActions()
        >>> played.state() == {"actions": [], "written": [], "fingerprint": {}}
        True
    """

    def __init__(self) -> None:
        self.actions: list[Tensor] = []
        """Of each rollout (E, T, ...)."""
        self.written: list[Tensor] = []
        """Memories that their decisions wrote (E, T, memory, D), of a policy with one."""
        self.fingerprint: dict[str, Tensor] = {}
        """Outcome of the last rollout."""
        self.complete = True
        """Whether no rollout is missing."""

    def add(self, rollout: TensorDictBase) -> None:
        """Remember a rollout (E, T), unless that would take too much memory."""
        if not self.complete:
            return
        # of an accelerator in one read
        outcome = sub_dict(rollout, "next")
        decided = {key: rollout[key] for key in ("action", WRITTEN) if key in rollout.keys()}
        ends = {key: outcome[key] for key in FINGERPRINT if key in outcome.keys()}
        read = read_together(decided | ends)
        self.actions.append(read["action"])
        if WRITTEN in read:
            self.written.append(read[WRITTEN])
        self.fingerprint = {key: read[key] for key in ends}
        if sum(stored.nbytes for stored in (*self.actions, *self.written)) > MOST_BYTES:
            self.actions, self.written, self.fingerprint, self.complete = [], [], {}, False

    def equals_last(self, rollout: TensorDictBase) -> bool:
        """Return whether a repeated rollout has the outcome of the last one here, bit for bit."""
        outcome = sub_dict(rollout, "next")
        return all(
            torch.equal(outcome[key].cpu(), value) for key, value in self.fingerprint.items()
        )

    def state(self) -> dict[str, Any]:
        """Return the state for resuming, as tensors."""
        return {
            "actions": list(self.actions),
            "written": list(self.written),
            "fingerprint": dict(self.fingerprint),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> PlayedActions:
        """Return the result of `state` as an object."""
        played = cls()
        played.actions, played.fingerprint = list(state["actions"]), dict(state["fingerprint"])
        played.written = list(state.get("written", []))
        return played


class RepeatingActor(TensorDictModuleBase):
    """An actor that takes stored actions first, and acts by itself after them.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> acting = TensorDictModule(lambda x: x + 1, in_keys=["x"], out_keys=["action"])
        >>> actor = RepeatingActor(acting, [torch.zeros(1, 2)])
        >>> td = TensorDict({"x": torch.ones(1)}, batch_size=[1])
        >>> [float(actor(td)["action"]) for _ in range(3)]
        [0.0, 0.0, 2.0]

    Args:
        actor: Acts after the stored actions.
        actions: Of one rollout each (E, T, ...).
        written: Memories that the decisions wrote (E, T, memory, D), of a policy with one.
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(
        self, actor: Actor, actions: Sequence[Tensor], written: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.in_keys = cast("list[str | tuple[str]]", actor.in_keys)
        self.out_keys = cast(list[str], actor.out_keys)
        self.actor = actor
        # rollouts (E, T, ...) as a queue of decisions (E, ...)
        self.pending = deque(action for rollout in actions for action in rollout.unbind(1))
        self.written = deque(memory for rollout in written for memory in rollout.unbind(1))

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        if self.pending:
            if self.written:
                td.set(WRITTEN, self.written.popleft().to(td.device))
            return td.set("action", self.pending.popleft().to(td.device))
        acted: TensorDictBase = self.actor(td)
        return acted
