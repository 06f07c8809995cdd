"""Requests of several clients computed in one batch.

A request waits until the batch is full, until every client that is connected has a request in it,
or until the deadline. So a single client never waits. The policy runs in one thread of its own, and
the event loop goes on answering keep-alives.
Letters: N rows, H action horizon, A model action dim, d robot action dim.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pitune.policies.inference import robot_input
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.model_input import ModelInput
from pitune.policies.serving.metrics import ServerMetrics


@dataclass(frozen=True, eq=False)
class Request:
    """An observation that waits for its actions.

    Example:
        >>> Request({"state": [0.0]}, noise=torch.zeros(4, 2)).noise.shape
        torch.Size([4, 2])
    """

    raw: Mapping[str, Any]
    """The robot's observation, see `policies.infer`."""
    noise: Tensor
    """Starting point (H, A) of its flow."""


@dataclass(frozen=True)
class Answer:
    """The actions of one request.

    Example:
        >>> Answer(np.zeros((4, 2), np.float32), seconds=0.01).actions.shape
        (4, 2)
    """

    actions: np.ndarray
    """(H, d) [robot units]."""
    seconds: float
    """Time that the policy computed for its batch [s]."""


def infer_batch(policy: FlowPolicy, requests: Sequence[Request]) -> list[Answer | Exception]:
    """Return the answers of requests, or the error of each invalid one.

    Every observation is prepared alone, as in `policies.infer`, so an invalid one does not touch
    the others. The network computes all rows together.

    Args:
        policy: Acts as deployed, by the flow's ODE.
        requests: Observations and starting points.

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=SamplerConfig())
        >>> noise = policy.draw_noise(1)[0]
        >>> [answer] = infer_batch(policy, [Request({"state": [0.0] * 4}, noise)])
        >>> answer.actions.shape
        (8, 2)
    """
    start = time.perf_counter()
    # inputs of the valid requests
    rows: list[ModelInput] = []
    answers: list[Answer | Exception | None] = []
    for request in requests:
        try:
            rows.append(robot_input(policy, request.raw))
            answers.append(None)
        except ValueError as error:
            answers.append(error)
        except Exception as error:  # of this request alone, the others are computed
            cause = f"the observation cannot be read: {type(error).__name__}: {error}"
            answers.append(ValueError(cause))

    # actions of all of them (N, H, d)
    valid = [index for index, answer in enumerate(answers) if answer is None]
    if valid:
        noise = torch.stack([requests[index].noise for index in valid]).to(policy.device)
        with torch.no_grad():
            actions = policy.sample_chunk(ModelInput.cat(rows), noise).cpu().numpy()
        seconds = time.perf_counter() - start
        for index, chunk in zip(valid, actions, strict=True):
            answers[index] = Answer(chunk, seconds)
    return [answer for answer in answers if answer is not None]


class Batcher:
    """Collects requests and computes them in batches, in one thread.

    Args:
        policy: Acts as deployed.
        max_batch: Most requests in a batch.
        max_wait: Longest time that the first request of a batch waits for others [s].
        metrics: Counts batches and the waiting requests. Its number of clients ends the wait.

    Example:
        >>> import asyncio
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=SamplerConfig())
        >>> async def one_answer():
        ...     async with Batcher(policy, 8, 0.005, ServerMetrics()) as batcher:
        ...         noise = policy.draw_noise(1)[0]
        ...         return await batcher.infer(Request({"state": [0.0] * 4}, noise))
        >>> asyncio.run(one_answer()).actions.shape
        (8, 2)
    """

    def __init__(
        self, policy: FlowPolicy, max_batch: int, max_wait: float, metrics: ServerMetrics
    ) -> None:
        self.policy, self.max_batch, self.max_wait = policy, max_batch, max_wait
        self.metrics = metrics
        self._waiting: deque[tuple[Request, asyncio.Future[Answer]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        self._thread.shutdown(wait=True)

    async def infer(self, request: Request) -> Answer:
        """Return the actions of a request, after its batch was computed.

        Raises:
            ValueError: the observation does not fit the policy.
            Exception: any other error of the policy, for a fault of ours.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self.metrics.queue = len(self._waiting)
        self._arrived.set()
        return await future

    async def _work(self) -> None:
        """Compute batches until the batcher is closed."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            # a client that left has cancelled its future
            batch = [(request, future) for request, future in batch if not future.done()]
            if not batch:
                continue
            start = time.perf_counter()
            try:
                requests = [request for request, _ in batch]
                answers = await loop.run_in_executor(
                    self._thread, infer_batch, self.policy, requests
                )
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:
                # the server lives on: each client of this batch gets the error
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            self.metrics.add_batch(len(batch), time.perf_counter() - start)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _next_batch(self) -> list[tuple[Request, asyncio.Future[Answer]]]:
        """Return the requests of the next batch."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.max_wait
        # every client has one open request at most, so there is nobody else to wait for
        while len(self._waiting) < min(self.max_batch, self.metrics.num_clients):
            remaining = deadline - loop.time()
            if remaining <= 0:
                break
            self._arrived.clear()
            arrival = asyncio.create_task(self._arrived.wait())
            await asyncio.wait([arrival], timeout=remaining)
            arrival.cancel()
        size = min(self.max_batch, len(self._waiting))
        batch = [self._waiting.popleft() for _ in range(size)]
        self.metrics.queue = len(self._waiting)
        return batch
