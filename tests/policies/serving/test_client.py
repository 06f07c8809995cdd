from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from websockets.sync.server import ServerConnection, serve

from pitune import policies
from pitune.policies.serving.client import RemoteClient, RemoteConfig, RemoteError
from pitune.policies.serving.remote_policy import RemoteActor, RemotePolicy, RemotePreprocessor
from pitune.policies.serving.server import connection_seed
from pitune.policies.serving.wire import pack, unpack
from policy_server import serving
from vision_policies import vision_policy


@contextmanager
def handled(handle: Callable[[ServerConnection], None]) -> Iterator[str]:
    """Run a server with a handler of its connections."""
    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering(*answers: object, metadata: dict[str, object] | None = None) -> Iterator[str]:
    """Run a server that gives each request the next answer. None closes the connection."""
    left = list(answers)

    def handle(connection: ServerConnection) -> None:
        connection.send(pack(metadata or {}))
        for _ in connection:
            answer = left.pop(0)
            if answer is None:
                connection.socket.close()
                return
            if answer == "silence":
                continue
            connection.send(answer if isinstance(answer, str | bytes) else pack(answer))  # type: ignore[arg-type]

    with handled(handle) as uri:
        yield uri


CHUNK = {"actions": np.arange(8.0).reshape(4, 2)}


def asked(uri: str, **changes: object) -> np.ndarray:
    config = RemoteConfig(uri=uri, **{"timeout_seconds": 5.0, **changes})  # type: ignore[arg-type]
    client = RemoteClient(config)
    try:
        client.send({"observation/state": np.zeros(4)})
        return client.receive()["actions"]
    finally:
        client.close()


def test_an_answer_is_returned() -> None:
    with answering(CHUNK) as uri:
        np.testing.assert_array_equal(asked(uri), CHUNK["actions"])


def test_a_lost_connection_is_opened_again_and_the_observation_sent_again() -> None:
    with answering(None, None, CHUNK) as uri:
        np.testing.assert_array_equal(asked(uri), CHUNK["actions"])
    with answering(None, None, CHUNK) as uri, pytest.raises(RemoteError, match="cannot be reached"):
        asked(uri, retries=1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("Traceback: no camera", "refused the observation: Traceback: no camera"),
        (b"\xc1", "no valid answer"),
        ({"action": np.zeros((4, 2))}, r"no action chunk \(H, d\): its answer has \['action'\]"),
        ({"actions": np.zeros(4)}, "no action chunk"),
        ({"actions": [[0.0]]}, "no action chunk"),
        ({"actions": np.full((4, 2), np.nan)}, "not finite"),
    ],
)
def test_a_wrong_answer_is_an_error_with_its_cause(answer: object, message: str) -> None:
    with answering(answer) as uri, pytest.raises(RemoteError, match=message):
        asked(uri)


def test_a_silent_server_is_an_error_after_the_time_limit() -> None:
    with (
        answering("silence") as uri,
        pytest.raises(RemoteError, match=r"no answer within timeout_seconds=0\.2"),
    ):
        asked(uri, timeout_seconds=0.2)


def test_a_late_answer_is_not_taken_for_that_of_the_next_observation() -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send(pack({}))
        for frame in connection:
            number = unpack(frame)["number"]  # type: ignore[arg-type]
            time.sleep(0.5 if number == 1 else 0)
            connection.send(pack({"actions": np.full((1, 1), number)}))

    with handled(handle) as uri:
        client = RemoteClient(RemoteConfig(uri=uri, timeout_seconds=0.2, retries=0))
        client.send({"number": 1})
        with pytest.raises(RemoteError, match="no answer within"):
            client.receive()
        time.sleep(0.5)
        client.send({"number": 2})
        assert client.receive()["actions"] == 2
        client.close()


@pytest.mark.parametrize(
    ("first", "message"),
    [("no room", "refused the connection: no room"), (b"\xc1", "gave no valid metadata")],
)
def test_a_connection_that_is_refused_is_closed(first: str | bytes, message: str) -> None:
    closed = threading.Event()

    def handle(connection: ServerConnection) -> None:
        connection.send(first)
        for _ in connection:
            pass
        closed.set()

    with handled(handle) as uri:
        with pytest.raises(RemoteError, match=message):
            RemoteClient(RemoteConfig(uri=uri))
        assert closed.wait(2)


def test_a_full_server_is_named_as_the_cause() -> None:
    with serving(vision_policy(), max_clients=1) as server:
        config = RemoteConfig(uri=f"ws://127.0.0.1:{server.port}", retries=0)
        first = RemoteClient(config)
        with pytest.raises(RemoteError, match="status 503: the server has 1 clients already"):
            RemoteClient(config)
        first.close()


def test_a_wrong_key_is_an_error_at_once(tmp_path: Path) -> None:
    key = tmp_path / "key.txt"
    key.write_text("guess\n")
    with serving(vision_policy(), api_key="secret") as server:
        config = RemoteConfig(uri=f"ws://127.0.0.1:{server.port}", api_key_file=key, retries=9)
        with pytest.raises(RemoteError, match="demands an API key, or another one"):
            RemoteClient(config)
        key.write_text("secret\n")
        RemoteClient(config).close()


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RemoteError, match=r"ws://127\.0\.0\.1:1 cannot be reached"):
        RemoteClient(RemoteConfig(uri="ws://127.0.0.1:1", retries=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": "http://host"}, "must begin with ws://"),
        ({"keys": "mine"}, "valid: 'openpi', 'droid'"),
        ({"execution_horizon": 0}, "execution_horizon=0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds=0"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_a_wrong_setting_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteConfig(**{"uri": "ws://x", **changes})  # type: ignore[arg-type]


def rows(num: int) -> TensorDict:
    """Return observations of an environment with two cameras and three tasks."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 255, (num, 3, 20, 20), dtype=torch.uint8, generator=generator)
    entries = {
        "state": torch.randn(num, 4, generator=generator),
        "image/front": picture,
        "image/wrist": picture.flip(0),
        "task_id": torch.arange(num) % 3,
    }
    return TensorDict(entries, batch_size=[num])


def only(td: TensorDict, row: int) -> dict[str, torch.Tensor]:
    """Return one row of observations."""
    return {str(key): td[key][row : row + 1] for key in td.keys()}


TASKS = ("push", "lift the cube", "ziehe den Würfel")


def test_the_served_policy_acts_as_the_policy_itself() -> None:
    policy = vision_policy()
    with serving(policy, seed=4, max_wait_ms=50) as server:
        uri = f"ws://127.0.0.1:{server.port}"
        remote = RemotePolicy(RemoteConfig(uri=uri), 4, 2, ["front", "wrist"])
        obs = rows(3)
        td = remote.observation_preprocessor(TASKS)(obs)
        actions = RemoteActor(remote)(td)["action"]
        remote.close()
        assert server.metrics.num_clients <= 3
    assert remote.sampler.execution_horizon == policy.sampler.execution_horizon
    assert actions.shape == (3, 2, 2)
    assert remote.waiting_seconds > 0
    # the noise belongs to the connection, in the order of the rows
    for row in range(3):
        generator = torch.Generator().manual_seed(connection_seed(4, row))
        noise = torch.randn(1, *policy.chunk_shape, generator=generator)
        inputs = policy.model_input(only(rows(3), row), TASKS)
        with torch.no_grad():
            expected = policy.sample_actions(inputs, noise)
        torch.testing.assert_close(actions[row : row + 1], expected, atol=1e-5, rtol=0)


def test_a_server_for_another_robot_is_refused_at_once() -> None:
    with serving(vision_policy()) as server:
        uri = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(ValueError, match="state_dim=4, the environment 7"):
            RemotePolicy(RemoteConfig(uri=uri), 7, 2, ["front", "wrist"])
        with pytest.raises(ValueError, match="action_dim=2, the environment 3"):
            RemotePolicy(RemoteConfig(uri=uri), 4, 3, ["front", "wrist"])
        with pytest.raises(ValueError, match=r"needs cameras \['wrist'\]"):
            RemotePolicy(RemoteConfig(uri=uri), 4, 2, ["front"])


def test_a_server_without_a_horizon_needs_the_option() -> None:
    with answering(CHUNK, CHUNK) as uri:
        with pytest.raises(ValueError, match="set execution_horizon"):
            RemotePolicy(RemoteConfig(uri=uri), 4, 2, [])
        config = RemoteConfig(uri=uri, execution_horizon=3)
        remote = RemotePolicy(config, 4, 2, [])
        td = remote.observation_preprocessor(())(rows(1))
        np.testing.assert_array_equal(RemoteActor(remote)(td)["action"][0], CHUNK["actions"][:3])
        remote.close()
        too_long = RemotePolicy(RemoteConfig(uri=uri, execution_horizon=5), 4, 2, [])
        with pytest.raises(RemoteError, match=r"chunk \(4, 2\), but 5 actions"):
            too_long.sample_actions(td["model_input"])
        too_long.close()


@pytest.mark.parametrize("keys", ["openpi", "droid", "aloha", "lerobot"])
def test_each_robots_keys_are_those_that_infer_reads(keys: str) -> None:
    policy = vision_policy()
    noise = policy.draw_noise(1)
    with answering(CHUNK, metadata={"action_horizon": 4}) as uri:
        config = RemoteConfig(uri=uri, keys=keys)  # type: ignore[arg-type]
        remote = RemotePolicy(config, 4, 2, ["front", "wrist"])
        td = remote.observation_preprocessor(TASKS)(rows(3))
        raw = remote.observation({k: v[2].numpy() for k, v in td["model_input"].items()})
        remote.close()
    inputs = policy.model_input(only(rows(3), 2), TASKS)
    with torch.no_grad():
        expected = policy.sample_chunk(inputs, noise)[0].numpy()
    sent = unpack(pack(raw))
    np.testing.assert_array_equal(policies.infer(policy, sent, noise[0].numpy()), expected)


@pytest.mark.parametrize("keys", ["openpi", "droid", "aloha", "lerobot"])
@pytest.mark.parametrize("tasks", [(), ("",), ("  ",)])
def test_a_blank_instruction_is_not_sent(keys: str, tasks: tuple[str, ...]) -> None:
    with answering(CHUNK, metadata={"action_horizon": 4}) as uri:
        remote = RemotePolicy(RemoteConfig(uri=uri, keys=keys), 4, 2, ["front"])  # type: ignore[arg-type]
        td = remote.observation_preprocessor(tasks)(rows(1))
        raw = remote.observation({k: v[0].numpy() for k, v in td["model_input"].items()})
        remote.close()
    assert not {"prompt", "task"} & raw.keys()


def test_rows_without_a_task_are_refused_among_several_tasks() -> None:
    with pytest.raises(ValueError, match="no task_id, but there are 3 tasks"):
        RemotePreprocessor((), TASKS)(rows(2).exclude("task_id"))


def test_an_instruction_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2000 bytes"):
        RemotePreprocessor((), ("a" * 2000,))
