"""Messages of openpi's websocket protocol: msgpack with NumPy arrays, without pickle.

An array is a map with bytes as keys, `{b"__ndarray__": True, b"data": ..., b"dtype": "<f4",
b"shape": [...]}`, and a NumPy scalar is `{b"__npgeneric__": True, b"data": ..., b"dtype": ...}`.
Source: openpi `packages/openpi-client/src/openpi_client/msgpack_numpy.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

_KINDS = "biufSU"
"""Array types that the protocol carries: no objects, complex numbers or records."""


class WireError(ValueError):
    """A message that does not follow the protocol.

    Example:
        >>> unpack(b"")
        Traceback (most recent call last):
        ...
        pitune.policies.serving.wire.WireError: the message is no msgpack: it is empty or cut off
    """


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message.

    Raises:
        WireError: a value has no representation in the protocol.
    """
    try:
        return bytes(msgpack.packb(dict(message), default=_encode))
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"the message cannot be written as msgpack: {error}") from error


def unpack(data: bytes) -> dict[str, Any]:
    """Return the message of some bytes. Its arrays are read-only.

    Raises:
        WireError: the bytes are no msgpack, their top level is no map with text keys, or an array
            in them contradicts its own type or shape.
    """
    try:
        message = msgpack.unpackb(data, object_hook=_decode, strict_map_key=False)
    except WireError:
        raise
    except msgpack.ExtraData as error:
        raise WireError("the message is no msgpack: bytes follow its end") from error
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        cause = str(error) or type(error).__name__
        if "incomplete" in cause or not data:
            cause = "it is empty or cut off"
        raise WireError(f"the message is no msgpack: {cause}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise WireError(f"the message must be a map with text keys, not {_described(message)}")
    return message


def _encode(value: Any) -> dict[bytes, Any]:
    """Return the map of an array or a NumPy scalar."""
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{type(value).__name__} is no array, number, text, list or map")
    if value.dtype.kind not in _KINDS:
        raise TypeError(f"arrays of type {value.dtype} are not part of the protocol")
    dtype = value.dtype.str
    if isinstance(value, np.ndarray):
        data = value.tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype}


def _decode(value: dict[Any, Any]) -> Any:
    """Return the array of a map that describes one, and other maps unchanged."""
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        return _scalar(value)
    return value


def _scalar(value: dict[Any, Any]) -> np.generic:
    """Return the NumPy scalar of its map."""
    dtype, data = _dtype(value), value.get(b"data")
    # a number would be the length of bytes, of any size
    kinds: dict[str, tuple[type, ...]] = {"S": (bytes,), "U": (str,)}
    if not isinstance(data, kinds.get(dtype.kind, (bool, int, float))):
        raise WireError(f"a number of type {dtype} has no valid value: {_described(data)}")
    try:
        scalar: np.generic = dtype.type(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"a number of type {dtype} has no valid value: {error}") from error
    return scalar


def _array(value: dict[Any, Any]) -> np.ndarray:
    """Return the array of its map, after its size was checked."""
    dtype, data, shape = _dtype(value), value.get(b"data"), value.get(b"shape")
    if not isinstance(data, bytes):
        raise WireError(f"an array's data must be bytes, not {_described(data)}")
    sizes: list[Any] = list(shape) if isinstance(shape, list | tuple) else [None]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes):
        raise WireError(f"an array's shape must be a list of sizes, not {shape!r}")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise WireError(
            f"an array of shape {sizes} and type {dtype} has "
            f"{math.prod(sizes) * dtype.itemsize} bytes, but the message holds {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(sizes)


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    """Return the type of an array's or a scalar's map."""
    name = value.get(b"dtype")
    try:
        if not isinstance(name, str):
            raise TypeError("it is no text")
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise WireError(f"an array has the unknown type {_described(name)}") from error
    if dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise WireError(f"arrays of type {name!r} are not part of the protocol")
    return dtype


def _described(value: Any) -> str:
    """Return a short description of a wrong value."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
