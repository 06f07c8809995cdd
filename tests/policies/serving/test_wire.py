from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np
import pytest

from pitune.policies.serving.wire import WireError, pack, unpack

RECORDED = sorted((Path(__file__).parents[2] / "fixtures" / "websocket").glob("*.msgpack"))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_openpis_recorded_bytes_are_read_and_written_alike(file: Path) -> None:
    data = file.read_bytes()
    assert pack(unpack(data)) == data


def test_a_recorded_observation_has_its_arrays() -> None:
    raw = unpack(RECORDED[1].read_bytes())
    assert raw["observation/image"].shape == (224, 224, 3)
    assert raw["observation/image"].dtype == np.uint8
    assert raw["observation/state"].dtype == np.float64
    assert raw["prompt"] == "do something"


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros((0, 4), np.float32),
        np.array(2.5),
        np.float32(1.5),
        np.bool_(True),
        np.array(["a", "bc"]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        [1, "two", None, {"x": 3.0}],
    ],
    ids=repr,
)
def test_a_value_survives_the_way(value: object) -> None:
    result = unpack(pack({"value": value}))["value"]
    np.testing.assert_array_equal(result, value)
    assert getattr(result, "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize("value", [np.array([object()]), np.array([1j]), object(), {1, 2}])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(WireError, match="cannot be written"):
        pack({"value": value})


def encoded(**changes: object) -> bytes:
    """Return a message whose array is described wrongly."""
    array = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    names = {name.encode(): value for name, value in changes.items()}
    return msgpack.packb({"state": array | names})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty or cut off"),
        (b"\xc1", "no msgpack"),
        (msgpack.packb({"state": [1.0]})[:-1], "empty or cut off"),
        (msgpack.packb({"state": 1}) + b"\x00", "bytes follow"),
        (msgpack.packb([1, 2]), "a map with text keys, not list"),
        (msgpack.packb({1: 2}), "a map with text keys"),
        (msgpack.packb(None), "a map with text keys, not NoneType"),
        (encoded(shape=[3]), r"has 12 bytes, but the message holds 8"),
        (encoded(shape=[-2]), "list of sizes"),
        (encoded(shape=[2**40, 2**40]), "but the message holds 8"),
        (encoded(shape="2"), "list of sizes"),
        (encoded(dtype="|O"), "not part of the protocol"),
        (encoded(dtype="<c8"), "not part of the protocol"),
        (encoded(dtype="|V8"), "not part of the protocol"),
        (encoded(dtype="float33"), "unknown type"),
        (encoded(dtype=3), "unknown type"),
        (encoded(data="text"), "must be bytes"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"dtype": "<f4"}}), "no valid value"),
        (b"\x91" * 2000, "no msgpack"),
    ],
)
def test_a_malformed_message_is_refused_with_its_cause(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack(data)


@pytest.mark.parametrize("dtype", ["(2,f4", "(1,,2)f4", ","])
def test_a_type_that_cannot_be_parsed_is_refused(dtype: str) -> None:
    array = {b"__ndarray__": True, b"data": b"", b"dtype": dtype, b"shape": [0]}
    scalar = {b"__npgeneric__": True, b"data": 1, b"dtype": dtype}
    for value in (array, scalar):
        with pytest.raises(WireError, match="unknown type"):
            unpack(msgpack.packb({"state": value}))


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("|S3", 3_000_000_000),  # 3 GB of zeros
        ("|S3", "text"),
        ("<U3", 5),
        ("<U3", b"abc"),
        ("<f4", "1"),
        ("<f4", [1, 2]),
        ("<i4", None),
        ("|b1", [True]),
    ],
)
def test_a_scalar_of_another_kind_than_its_type_is_refused(dtype: str, data: object) -> None:
    value = {b"__npgeneric__": True, b"data": data, b"dtype": dtype}
    with pytest.raises(WireError, match="has no valid value"):
        unpack(msgpack.packb({"state": value}))
