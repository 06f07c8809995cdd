from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request as HttpRequest
from websockets.protocol import State
from websockets.sync.client import connect

from openpi_fixtures import load_openpi
from pitune import policies
from pitune.policies import FlowPolicy
from pitune.policies.serving import server as server_module
from pitune.policies.serving.config import ServerConfig
from pitune.policies.serving.description import policy_metadata
from pitune.policies.serving.metrics import ServerMetrics
from pitune.policies.serving.server import PolicyServer, connection_seed
from pitune.policies.serving.wire import pack, unpack
from policy_server import ask, client, received, serving
from vision_policies import vision_policy

WIRE = Path(__file__).parents[2] / "fixtures" / "websocket"

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    return vision_policy()


def observation(prompt: str = "push") -> dict[str, object]:
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 255, (20, 20, 3), np.uint8)
    return {"state": np.ones(4), "front": picture, "wrist": picture, "prompt": prompt}


def noises(policy: FlowPolicy, seed: int, connection: int, num: int) -> list[np.ndarray]:
    """Return the starting points that a server with a seed gives one connection."""
    generator = torch.Generator().manual_seed(connection_seed(seed, connection))
    return [torch.randn(*policy.chunk_shape, generator=generator).numpy() for _ in range(num)]


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_openpis_recorded_request_gets_infers_actions(family: str) -> None:
    policy = load_openpi(family)
    frame = (WIRE / "01_client_to_server.msgpack").read_bytes()
    metadata = {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}
    with (
        serving(policy, metadata=metadata, seed=5) as server,
        connect(f"ws://127.0.0.1:{server.port}", compression=None) as connection,
    ):
        assert received(connection) == (WIRE / "00_server_to_client.msgpack").read_bytes()
        answers = []
        for _ in range(2):
            connection.send(frame)
            answers.append(received(connection))

    # the same keys in the same order, types and sizes as openpi's server
    for answer, file in zip(answers, ("02", "04"), strict=True):
        recorded = (WIRE / f"{file}_server_to_client.msgpack").read_bytes()
        assert len(answer) == len(recorded)
        assert structure(msgpack.unpackb(answer)) == structure(msgpack.unpackb(recorded))

    # the actions of `infer`, exactly
    for answer, noise in zip(answers, noises(policy, 5, 0, 2), strict=True):
        expected = policies.infer(policy, unpack(frame), noise)
        np.testing.assert_array_equal(unpack(answer)["actions"], expected)


def structure(value: object) -> object:
    """Return keys, their order and types, without the numbers."""
    if isinstance(value, dict):
        return [(key, structure(part)) for key, part in value.items()]
    return value if isinstance(value, str | list) else type(value)


def test_each_client_gets_the_answer_to_its_own_prompt(policy: FlowPolicy) -> None:
    num_clients, num_requests = 8, 6
    results: dict[int, list[np.ndarray]] = {}
    with serving(policy, seed=0, max_wait_ms=20) as server:

        def robot(number: int) -> None:
            with client(server) as connection:
                raw = observation(f"push block {number}")
                answers = [ask(connection, raw)["actions"] for _ in range(num_requests)]
                results[number] = answers

        threads = [threading.Thread(target=robot, args=(n,)) for n in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: server.metrics.num_requests == num_clients * num_requests)
        assert server.metrics.num_batches < num_clients * num_requests  # some were batched
        wait_until(lambda: server.metrics.num_clients == 0)

    # the noise belongs to the connection, whose number depends on the order of arrival
    unused = set(range(num_clients))
    for number, answers in results.items():
        raw = observation(f"push block {number}")
        matching = {
            index
            for index in unused
            if np.allclose(
                answers,
                [policies.infer(policy, raw, n) for n in noises(policy, 0, index, 6)],
                atol=1e-5,
            )
        }
        assert len(matching) == 1
        unused -= matching


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.ones(3)}, "3 numbers"),
        ({"front": None}, "front"),
        ({"prompt": 3}, "prompt"),
        ({"state": None}, "state"),
    ],
)
def test_bad_input_gets_an_error_and_the_connection_stays_open(
    policy: FlowPolicy, change: dict[str, object], message: str
) -> None:
    raw = {key: value for key, value in {**observation(), **change}.items() if value is not None}
    with serving(policy) as server, client(server) as connection:
        connection.send(pack(raw))
        error = connection.recv(timeout=20)
        assert isinstance(error, str)
        assert error.startswith("error: ")
        assert message in error
        assert "Traceback" not in error
        assert ask(connection, observation())["actions"].shape == (4, 2)
        wait_until(lambda: server.metrics.num_requests == 1)
        assert server.metrics.num_rejected == 1


def test_two_hundred_malformed_messages_leave_another_client_untouched(policy: FlowPolicy) -> None:
    rng = np.random.default_rng(0)
    valid = pack(observation())
    with serving(policy) as server, client(server) as good, client(server) as bad:
        for number in range(200):
            kind = number % 4
            if kind == 0:  # cut off
                bad.send(valid[: rng.integers(len(valid))])
            elif kind == 1:  # noise
                bad.send(rng.bytes(int(rng.integers(1, 200))))
            elif kind == 2:  # text
                bad.send("give me actions")
            else:  # a value of a wrong type
                key = rng.choice(["state", "front", "wrist"])
                bad.send(pack({**observation(), key: [None, "x", {}, [[]], -1][number % 5]}))
            assert isinstance(bad.recv(timeout=20), str)
            if number % 40 == 0:
                assert ask(good, observation())["actions"].shape == (4, 2)
        assert ask(bad, observation())["actions"].shape == (4, 2)
        assert server.metrics.num_rejected == 200


def test_a_fault_of_the_server_gives_no_traceback_to_the_client(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path")

    with serving(policy) as server:
        with client(server) as connection:
            monkeypatch.setattr(FlowPolicy, "sample_chunk", broken)
            connection.send(pack(observation()))
            error = connection.recv(timeout=20)
            assert error == "error: internal error of the policy server, see its log"
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=20)
        monkeypatch.undo()
        with client(server) as connection:
            assert "actions" in ask(connection, observation())
    assert "secret path" in caplog.text


def test_a_message_above_the_cap_closes_its_connection_alone(policy: FlowPolicy) -> None:
    with serving(policy, max_message_mib=0.1) as server, client(server) as good:
        with client(server) as bad:
            bad.send(bytes(200_000))
            with pytest.raises(ConnectionClosed) as closed:
                bad.recv(timeout=20)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        assert "actions" in ask(good, observation())


def test_a_client_that_leaves_in_mid_request_takes_nothing_with_it(policy: FlowPolicy) -> None:
    with serving(policy, max_wait_ms=30) as server, client(server) as good:
        for _ in range(10):
            with client(server) as lost:
                lost.send(pack(observation()))
                lost.socket.shutdown(socket.SHUT_RDWR)
            assert "actions" in ask(good, observation())
        wait_until(lambda: server.metrics.num_clients == 1)
        wait_until(lambda: server.metrics.num_requests >= 10)


def test_a_half_open_socket_is_closed_by_the_keep_alive(policy: FlowPolicy) -> None:
    with (
        serving(policy, ping_seconds=0.2) as server,
        socket.create_connection(("127.0.0.1", server.port)) as silent,
    ):
        silent.sendall(HANDSHAKE)
        wait_until(lambda: server.metrics.num_clients == 1)
        wait_until(lambda: server.metrics.num_clients == 0)  # it never answers a ping


def test_keep_alives_are_answered_while_the_policy_computes(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = FlowPolicy.sample_chunk

    def slow(*args: object, **options: object) -> object:
        time.sleep(1.0)
        return compute(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FlowPolicy, "sample_chunk", slow)
    with serving(policy) as server, client(server) as busy, client(server) as other:
        busy.send(pack(observation()))
        time.sleep(0.2)
        assert other.ping().wait(0.5)
        assert get(server, "/healthz") == "OK\n"
        received(busy)


def get(server: PolicyServer, path: str, key: str | None = None) -> str:
    """Return a page of the server."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}")
    if key is not None:
        request.add_header("Authorization", f"Api-Key {key}")
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def test_the_pages_give_health_and_figures(policy: FlowPolicy) -> None:
    with serving(policy) as server, client(server) as connection:
        ask(connection, observation())
        assert get(server, "/healthz") == "OK\n"
        wait_until(lambda: server.metrics.num_requests == 1)
        page = get(server, "/metrics")
        assert "pitune_requests_total 1\n" in page
        assert 'pitune_latency_seconds{quantile="0.99"} 0' in page


def test_a_large_counter_keeps_all_its_digits() -> None:
    assert "pitune_requests_total 1234567\n" in ServerMetrics(num_requests=1_234_567).page()


def test_a_key_is_demanded_of_clients_and_figures_but_not_of_health(policy: FlowPolicy) -> None:
    right = {"additional_headers": {"Authorization": "Api-Key secret"}}
    wrong = {"additional_headers": {"Authorization": "Api-Key guess"}}
    with serving(policy, api_key="secret") as server:
        for options in ({}, wrong):
            with pytest.raises(InvalidStatus, match="401"), client(server, **options):
                pass
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(server, "/metrics")
        assert get(server, "/healthz") == "OK\n"
        assert "requests" in get(server, "/metrics", "secret")
        with client(server, **right) as connection:
            assert "actions" in ask(connection, observation())


def test_a_client_above_the_limit_is_refused(policy: FlowPolicy) -> None:
    with serving(policy, max_clients=1) as server:
        with client(server), pytest.raises(InvalidStatus, match="503"), client(server):
            pass
        wait_until(lambda: server.metrics.num_clients == 0)
        with client(server) as connection:
            assert "actions" in ask(connection, observation())


class Handshake:
    """A connection whose handshake is under way."""

    state = State.CONNECTING

    def respond(self, status: int, text: str) -> int:
        return status


def test_handshakes_that_are_under_way_count_as_clients(policy: FlowPolicy) -> None:
    server = PolicyServer(policy, ServerConfig(max_clients=2))
    http = HttpRequest("/", Headers())
    first, second, third = (Handshake() for _ in range(3))

    def reply(connection: Handshake) -> object:
        return server._process_request(connection, http)  # type: ignore[arg-type]

    assert [reply(first), reply(second), reply(third)] == [None, None, 503]
    first.state = State.CLOSED  # it left in its handshake
    assert reply(third) is None


def test_clients_that_connect_at_once_do_not_exceed_the_limit(policy: FlowPolicy) -> None:
    with serving(policy, max_clients=3) as server:
        address = ("127.0.0.1", server.port)
        sockets = [socket.create_connection(address) for _ in range(12)]
        for opened in sockets:
            opened.sendall(HANDSHAKE)
        replies = [opened.recv(64).split(b"\r\n")[0] for opened in sockets]
        assert sum(b"101" in reply for reply in replies) == 3
        assert sum(b"503" in reply for reply in replies) == 9
        for opened in sockets:
            opened.close()
        wait_until(lambda: server.metrics.num_clients == 0)
        with client(server), client(server), client(server) as connection:
            assert "actions" in ask(connection, observation())


def test_a_request_in_flight_is_answered_before_the_server_stops(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = FlowPolicy.sample_chunk

    def slow(*args: object, **options: object) -> object:
        time.sleep(0.5)
        return compute(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FlowPolicy, "sample_chunk", slow)
    with ExitStack() as stack:
        with serving(policy) as server:
            connection = stack.enter_context(client(server))
            connection.send(pack(observation()))
            time.sleep(0.1)
        assert unpack(received(connection))["actions"].shape == (4, 2)
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=5)


def test_a_client_that_asks_nothing_does_not_keep_the_server_from_stopping(
    policy: FlowPolicy,
) -> None:
    with ExitStack() as stack:
        with serving(policy) as server:
            connection = stack.enter_context(client(server))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


def wait_until(condition: object, seconds: float = 20.0) -> None:
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_metadata_describe_the_observation(policy: FlowPolicy) -> None:
    assert policy_metadata(policy) == {
        "server": "pitune",
        "action_horizon": 4,
        "execution_horizon": 2,
        "action_dim": 2,
        "state_dim": 4,
        "cameras": ["front", "wrist"],
        "prompt": True,
    }


def test_the_warm_up_computes_a_chunk(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PolicyServer(policy, ServerConfig())
    assert server.warm_up() > 0
    monkeypatch.setattr(server_module, "blank_observation", lambda policy: {})
    with pytest.raises(ValueError, match="no prompt"):
        server.warm_up()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch", 0),
        ("max_clients", 0),
        ("port", -1),
        ("port", 70000),
        ("max_wait_ms", -1.0),
        ("max_wait_ms", float("nan")),
        ("max_message_mib", 0.0),
        ("ping_seconds", 0.0),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        ServerConfig(**{name: value})  # type: ignore[arg-type]
