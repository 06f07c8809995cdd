"""Another machine's policy as an actor.

Every environment has a connection of its own, because a server's state of a robot lives with its
connection. All observations are sent before the first answer is awaited, so a server can compute
them together.
Letters: N rows, h executed actions, d robot action dim, s robot state dim, Y, X image pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from pitune.policies.policy_config import SamplerConfig
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.policies.serving.client import RemoteClient, RemoteConfig, RemoteError

_MAX_WORDS = 1024
"""Longest instruction [bytes]."""


class RemotePolicy:
    """The policy of a server, with the facts that an evaluation needs.

    Args:
        config: Address and names of the observation's entries.
        state_dim: s of the environment.
        action_dim: d of the environment.
        cameras: Cameras of the environment, all of which are sent.

    Raises:
        RemoteError: the server cannot be reached.
        ValueError: the server's policy is one for another state, action or camera.

    Example:
        >>> config = RemoteConfig(uri="ws://127.0.0.1:8000")
        >>> policy = RemotePolicy(config, 8, 7, ["image"])  # doctest: +SKIP
    """

    def __init__(
        self, config: RemoteConfig, state_dim: int, action_dim: int, cameras: Sequence[str]
    ) -> None:
        self.config, self.state_dim, self.action_dim = config, state_dim, action_dim
        self.cameras = tuple(cameras)
        self.clients = [RemoteClient(config)]
        self.metadata = self.clients[0].metadata
        try:
            self._check_fit()
            horizon = self._execution_horizon()
        except ValueError:
            self.close()
            raise
        self.sampler = SamplerConfig(execution_horizon=horizon)
        self.chunk_shape = (1, 1)
        """Shape of an evaluation's noise, which is not used: the server draws its own."""

    def _check_fit(self) -> None:
        """Check the server's widths and cameras, if it names them."""
        config, cameras = self.config, self.cameras
        widths = (("state_dim", self.state_dim), ("action_dim", self.action_dim))
        for name, ours in widths:
            theirs = self.metadata.get(name, ours)
            if theirs != ours:
                raise ValueError(
                    f"the policy of {config.uri} has {name}={theirs}, the environment {ours}"
                )
        missing = sorted(set(self.metadata.get("cameras", ())) - set(cameras))
        if missing:
            raise ValueError(
                f"the policy of {config.uri} needs cameras {missing}, the environment has "
                f"{list(cameras)}; pass --env.cameras"
            )

    def _execution_horizon(self) -> int:
        """Return the number of executed actions of a chunk."""
        horizon = self.config.execution_horizon
        if horizon is None:
            known = (self.metadata.get(key) for key in ("execution_horizon", "action_horizon"))
            horizon = next((int(value) for value in known if value), None)
        if horizon is None:
            raise ValueError(
                f"{self.config.uri} does not name its horizon; set execution_horizon to the number "
                "of actions to execute of each chunk"
            )
        return horizon

    def observation_preprocessor(self, tasks: Sequence[str]) -> RemotePreprocessor:
        """Return the module that keeps the observations as they are, with their instructions."""
        return RemotePreprocessor(self.cameras, tasks)

    def sample_actions(self, rows: TensorDictBase) -> Tensor:
        """Return the actions (N, h, d) [robot units] of observations (N).

        Args:
            rows: `state` (N, s), `image/<camera>` (N, 3, Y, X) uint8 and `words` (N, bytes).

        Raises:
            RemoteError: the server fails, or answers with fewer actions or another width.
        """
        while len(self.clients) < len(rows):
            self.clients.append(RemoteClient(self.config))
        on_host = rows.cpu()
        for number, client in enumerate(self.clients[: len(rows)]):
            values = {str(key): np.asarray(on_host[key][number]) for key in on_host.keys()}
            client.send(self.observation(values))
        horizon = self.sampler.execution_horizon
        chunks = []
        for client in self.clients[: len(rows)]:
            actions = client.receive()["actions"]
            if actions.shape[0] < horizon or actions.shape[1] != self.action_dim:
                raise RemoteError(
                    f"{self.config.uri} gave a chunk {actions.shape}, but {horizon} actions of "
                    f"{self.action_dim} dimensions are to be executed"
                )
            chunks.append(torch.from_numpy(actions[:horizon].astype(np.float32)))
        return torch.stack(chunks)

    def observation(self, row: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return one observation under the names of `config.keys`.

        A blank instruction is left out, so that the server's default or its own error replaces it.

        Args:
            row: `state` (s,), `image/<camera>` (3, Y, X) and `words` (bytes,).
        """
        state = row["state"]
        pictures = {camera: row[f"image/{camera}"] for camera in self.cameras}
        words = bytes(row["words"].tolist()).rstrip(b"\0").decode()
        last = {camera: p.transpose(1, 2, 0) for camera, p in pictures.items()}  # (Y, X, 3)
        keys = self.config.keys
        prompt = {"task" if keys == "lerobot" else "prompt": words} if words.strip() else {}
        if keys == "aloha":
            return {"state": state, "images": pictures, **prompt}
        if keys == "lerobot":
            named = {f"observation.images.{camera}": p for camera, p in last.items()}
            return {"observation.state": state, **named, **prompt}
        named = {f"observation/{camera}": picture for camera, picture in last.items()}
        if keys == "droid":
            joints = {
                "observation/joint_position": state[:-1],
                "observation/gripper_position": state[-1:],
            }
            return {**joints, **named, **prompt}
        return {"observation/state": state, **named, **prompt}

    @property
    def waiting_seconds(self) -> float:
        """Time spent in waiting for answers so far, over all connections [s]."""
        return sum(client.waiting_seconds for client in self.clients)

    def close(self) -> None:
        """Close all connections."""
        for client in self.clients:
            client.close()


class RemotePreprocessor(TensorDictModuleBase):
    """TensorDict module that keeps an observation for a server, with its instruction as bytes.

    Args:
        cameras: Cameras to send.
        tasks: Instructions indexed by `task_id`.

    Raises:
        ValueError: an instruction has more than 1024 bytes. When called: there are several tasks,
            and the observations have no `task_id`.

    Example:
        >>> keep = RemotePreprocessor((), ("push",))
        >>> rows = TensorDict({"state": torch.zeros(1, 2)}, batch_size=[1])
        >>> bytes(keep(rows)["model_input", "words"][0, :4].tolist())
        b'push'
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(self, cameras: Sequence[str], tasks: Sequence[str]) -> None:
        super().__init__()
        self.in_keys = ["state", *(f"image/{camera}" for camera in cameras)]
        self.out_keys = [MODEL_INPUT]
        texts = [task.encode() for task in tasks or ("",)]
        for text in texts:
            if len(text) > _MAX_WORDS:
                raise ValueError(f"an instruction has {len(text)} bytes, at most {_MAX_WORDS} fit")
        rows = [list(text.ljust(_MAX_WORDS, b"\0")) for text in texts]
        self._words = torch.tensor(rows, dtype=torch.uint8)  # (tasks, bytes)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        rows = {key: td[key] for key in self.in_keys}
        task_id = td.get("task_id", None)
        if task_id is None:
            if len(self._words) > 1:
                raise ValueError(
                    f"the observations have no task_id, but there are {len(self._words)} tasks; "
                    "add the index of each row's task, or pass one task"
                )
            task_id = torch.zeros(len(td), dtype=torch.int64)
        rows["words"] = self._words[task_id.cpu()].to(td["state"].device)
        return td.set(MODEL_INPUT, TensorDict(rows, batch_size=td.batch_size))


class RemoteActor(TensorDictModuleBase):
    """TorchRL's actor interface to a server's policy.

    Args:
        policy: The server's policy.

    Example:
        >>> actor = RemoteActor(policy)  # doctest: +SKIP
        >>> rl.evaluate(env, actor, num_episodes=100)  # doctest: +SKIP
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(self, policy: RemotePolicy) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = [MODEL_INPUT], ["action"]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        rows = td[MODEL_INPUT]
        if not isinstance(rows, TensorDictBase):
            raise TypeError(f"{MODEL_INPUT} must be a TensorDict, not {type(rows).__name__}")
        return td.set("action", self.policy.sample_actions(rows).to(td["state"].device))

    def evaluated(self) -> RemoteActor:
        """Return this actor, which never explores."""
        return self
