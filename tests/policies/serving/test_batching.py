from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from pitune import policies
from pitune.policies.network.config import Family
from pitune.policies.serving.batching import Answer, Batcher, Request, infer_batch
from pitune.policies.serving.metrics import ServerMetrics
from vision_policies import vision_policy


def observations(num: int) -> list[dict[str, object]]:
    """Return observations with different states, pictures and prompts."""
    rng = np.random.default_rng(0)
    return [
        {
            "state": rng.normal(size=4),
            "front": rng.integers(0, 255, (20 + row, 24, 3), np.uint8),
            "wrist": rng.integers(0, 255, (3, 20, 20), np.uint8),
            "prompt": f"push block {row}",
        }
        for row in range(num)
    ]


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_each_row_of_a_batch_equals_the_answer_alone(family: Family) -> None:
    policy = vision_policy(family)
    noise = policy.draw_noise(5)
    raws = observations(5)
    answers = infer_batch(policy, [Request(r, n) for r, n in zip(raws, noise, strict=True)])
    for raw, start, answer in zip(raws, noise, answers, strict=True):
        assert isinstance(answer, Answer)
        alone = policies.infer(policy, raw, start.numpy())
        np.testing.assert_allclose(answer.actions, alone, atol=1e-5)
    # negative control: another prompt gives other actions
    assert isinstance(answers[0], Answer)
    other = policies.infer(policy, {**raws[0], "prompt": "jump"}, noise[0].numpy())
    assert np.abs(answers[0].actions - other).max() > 1e-5


def test_a_batch_of_one_equals_infer_exactly() -> None:
    policy = vision_policy()
    noise, [raw] = policy.draw_noise(1), observations(1)
    [answer] = infer_batch(policy, [Request(raw, noise[0])])
    assert isinstance(answer, Answer)
    np.testing.assert_array_equal(answer.actions, policies.infer(policy, raw, noise[0].numpy()))


def test_an_invalid_row_gets_its_error_and_the_others_their_actions() -> None:
    policy = vision_policy()
    noise, raws = policy.draw_noise(3), observations(3)
    del raws[1]["front"]
    answers = infer_batch(policy, [Request(r, n) for r, n in zip(raws, noise, strict=True)])
    assert [type(answer).__name__ for answer in answers] == ["Answer", "ValueError", "Answer"]
    assert "front" in str(answers[1])
    assert isinstance(answers[2], Answer)
    alone = policies.infer(policy, raws[2], noise[2].numpy())
    np.testing.assert_allclose(answers[2].actions, alone, atol=1e-5)


def batched(num: int, max_batch: int, max_wait: float, num_clients: int) -> tuple[list[int], float]:
    """Return the sizes of the batches for requests that arrive at once, and their time [s]."""
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    policy = policies.small_policy(
        states, actions, action_horizon=4, sampler=policies.SamplerConfig()
    )
    metrics = ServerMetrics(num_clients=num_clients)

    async def run() -> float:
        async with Batcher(policy, max_batch, max_wait, metrics) as batcher:
            await batcher.infer(Request({"state": [0.0] * 4}, policy.draw_noise(1)[0]))
            start = asyncio.get_running_loop().time()
            requests = [Request({"state": [0.0] * 4}, n) for n in policy.draw_noise(num)]
            await asyncio.gather(*(batcher.infer(request) for request in requests))
            return asyncio.get_running_loop().time() - start

    seconds = asyncio.run(run())
    return [size for size, _ in metrics._batches][1:], seconds


def test_the_queue_counts_the_requests_that_wait_now() -> None:
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    policy = policies.small_policy(
        states, actions, action_horizon=4, sampler=policies.SamplerConfig()
    )
    metrics = ServerMetrics(num_clients=3)

    async def run() -> list[int]:
        lengths = []
        async with Batcher(policy, 4, 5.0, metrics) as batcher:
            requests = [Request({"state": [0.0] * 4}, n) for n in policy.draw_noise(3)]
            tasks = []
            for request in requests:
                tasks.append(asyncio.create_task(batcher.infer(request)))
                await asyncio.sleep(0)
                lengths.append(metrics.queue)
            await asyncio.gather(*tasks)
            return [*lengths, metrics.queue]

    assert asyncio.run(run()) == [1, 2, 3, 0]


def test_requests_are_computed_together_up_to_the_largest_batch() -> None:
    assert batched(num=10, max_batch=4, max_wait=0.2, num_clients=10)[0] == [4, 4, 2]


def test_nobody_waits_for_clients_that_are_not_there() -> None:
    sizes, seconds = batched(num=1, max_batch=8, max_wait=30.0, num_clients=1)
    assert sizes == [1]
    assert seconds < 10  # the deadline is far away


def test_a_batch_begins_at_the_deadline_although_clients_are_missing() -> None:
    assert batched(num=2, max_batch=8, max_wait=0.05, num_clients=5)[0] == [2]


def test_a_fault_of_the_policy_reaches_its_client_and_the_batcher_lives_on() -> None:
    policy = vision_policy()
    [raw] = observations(1)

    async def run() -> list[object]:
        async with Batcher(policy, 4, 0.0, ServerMetrics(num_clients=1)) as batcher:
            wrong = batcher.infer(Request(raw, torch.zeros(3, 3, 3)))
            results = await asyncio.gather(wrong, return_exceptions=True)
            return [*results, await batcher.infer(Request(raw, policy.draw_noise(1)[0]))]

    error, answer = asyncio.run(run())
    assert isinstance(error, Exception)
    assert isinstance(answer, Answer)
