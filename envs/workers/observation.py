"""The observations of Gymnasium environments, converted where that is certain, refused elsewhere.

The space decides once how each part is read, and every observation is held to it:

- A picture `image/<camera>` is (Y, X, 3) or (3, Y, X), uint8 or floats in [0, 1].
- Numbers are one `state`: a Box, or a Dict of Boxes that Gymnasium flattens. Integers and booleans
  become floats. Pictures are never flattened into it.
- A Text space holds the instruction, and `task_id` is an index into the instructions.

A missing key, another shape or dtype, or a number outside the range of a picture raises
`ObservationError`, because it is a fault of the environment's code that every episode has. A number
that is not finite raises `FloatingPointError`, because it is a breakdown of one episode.

Letters: E envs, N rows, s robot state dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from pitune.envs.workers.pictures import PictureReader, looks_like_a_picture

Arrays = dict[str, np.ndarray]
"""An observation of N rows: `state` (N, s) float32, `image/<camera>` (N, C, Y, X) uint8, `task_id`
(N,) int64."""
ADVICE = (
    "wrap the environment with gymnasium.wrappers.TransformObservation, so that it has a Box, or a "
    "Dict of `state` (Box) and `image/<camera>` (Box Y,X,3 of uint8)"
)
INSTRUCTION_KEYS = (
    "instruction",
    "language_instruction",
    "prompt",
    "task",
    "task_description",
    "language",
)
"""Names under which environments give their instruction, the first one found counts."""


class ObservationError(ValueError):
    """An observation that does not have the form of its space.

    Example:
        >>> raise ObservationError("gym/x: observation 'state' is missing")
        Traceback (most recent call last):
            ...
        pitune.envs.workers.observation.ObservationError: gym/x: observation 'state' is missing
    """


@dataclass(frozen=True)
class ObsReader:
    """Reads observations of one space.

    Example:
        >>> space = spaces.Dict(state=spaces.Box(-1, 1, (2,)), task_id=spaces.Discrete(3))
        >>> reader = ObsReader.of("gym/x", space)
        >>> obs = reader.read({"state": np.zeros(2, np.float32), "task_id": 2})
        >>> obs["state"].shape, int(obs["task_id"])
        ((2,), 2)
    """

    env_id: str
    state: Mapping[str, spaces.Box]
    """Path within the observation -> the numbers there, in the order of Gymnasium's flattening."""
    pictures: Mapping[str, PictureReader]
    """Camera -> how its picture is read."""
    task_ids: spaces.Discrete | None
    text: str | None
    """Path of the instruction."""
    is_dict: bool

    @classmethod
    def of(cls, env_id: str, space: spaces.Space[Any]) -> ObsReader:
        """Return the reader of a space.

        Raises:
            ObservationError: a policy cannot use a part of it.
        """
        if not isinstance(space, spaces.Dict):
            parts: dict[str, Any] = {"state": space}
            return cls(env_id, _numbers(env_id, parts), {}, None, None, is_dict=False)

        # parts with a name of ours, and numbers under any other names if there is no `state`
        parts = dict(_leaves(space))
        texts = [path for path, part in parts.items() if isinstance(part, spaces.Text)]
        cameras = [key for key in parts if key.startswith("image/")]
        rest = {k: v for k, v in parts.items() if k not in (*texts, *cameras, "task_id")}
        has_names = "state" in space.spaces or cameras
        for key, part in rest.items() if has_names else ():
            if key.partition("/")[0] != "state":
                raise _unusable(env_id, key, part)
        task_ids = parts.get("task_id")
        if task_ids is not None and not isinstance(task_ids, spaces.Discrete):
            raise _unusable(env_id, "task_id", task_ids)
        return cls(
            env_id,
            _numbers(env_id, rest),
            {
                key.removeprefix("image/"): PictureReader.of(env_id, key, parts[key], ADVICE)
                for key in cameras
            },
            task_ids,
            _instruction_key(env_id, texts),
            is_dict=True,
        )

    @property
    def state_dim(self) -> int:
        """State dim s."""
        return sum(int(np.prod(part.shape)) for part in self.state.values())

    @property
    def cameras(self) -> dict[str, tuple[int, int, int]]:
        """Camera -> (C, Y, X) of its picture."""
        return {name: picture.shape for name, picture in self.pictures.items()}

    def read(self, raw: Any, rows: tuple[int, ...] = (), *, pictures: bool = True) -> Arrays:
        """Return copies of one raw observation, or of a batch of them.

        Args:
            raw: As the environment returned it.
            rows: `(E,)` for a batch of E observations.
            pictures: Whether to read the pictures too.

        Raises:
            ObservationError: it does not have the form of its space.
            FloatingPointError: a picture has a number that is not finite.
        """
        # an empty part keeps the rows where there is no state
        columns = [np.zeros((*rows, 0), np.float32)]
        for path, box in self.state.items():
            value = self._numeric(path, self._part(raw, path))
            self._check_shape(path, value, (*rows, *box.shape))
            if value.dtype != np.float32:
                with np.errstate(over="ignore"):  # infinity is reported as a breakdown
                    value = value.astype(np.float32)
            columns.append(value.reshape(*rows, -1))
        obs: Arrays = {"state": np.concatenate(columns, axis=-1)}
        for name, picture in self.pictures.items() if pictures else ():
            path = f"image/{name}"
            value = self._numeric(path, self._part(raw, path))
            self._check_shape(path, value, (*rows, *picture.space.shape))
            try:
                obs[path] = picture.read(value)
            except ValueError as error:
                raise ObservationError(f"{self.env_id}: {error}; {ADVICE}") from error
        if self.task_ids is not None:
            value = self._numeric("task_id", self._part(raw, "task_id"))
            self._check_shape("task_id", value, rows)
            obs["task_id"] = self._task_id(value)
        return obs

    def words(self, raw: Any) -> Any:
        """Return the instruction in a raw observation, or None."""
        return None if self.text is None else self._part(raw, self.text)

    def _part(self, raw: Any, path: str) -> Any:
        """Return the part of a raw observation at a path."""
        if not self.is_dict:
            return raw
        value = raw
        flat = isinstance(raw, Mapping) and path in raw
        for key in (path,) if flat else path.split("/"):
            if not isinstance(value, Mapping) or key not in value:
                given = sorted(value) if isinstance(value, Mapping) else type(value).__name__
                raise ObservationError(
                    f"{self.env_id}: observation {path!r} is missing, although its space has it; "
                    f"the environment returned {given}; return every key at every step"
                )
            value = value[key]
        return value

    def _numeric(self, path: str, value: Any) -> np.ndarray:
        """Return a part as an array of numbers."""
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):  # ragged, or a tensor that numpy cannot read
            array = np.array(None, dtype=object)
        if array.dtype.kind not in "biuf":
            raise ObservationError(
                f"{self.env_id}: observation {path!r} is {type(value).__name__} of "
                f"{array.dtype}, but its space promises numbers; return a numpy array"
            )
        return array

    def _check_shape(self, path: str, value: np.ndarray, expected: tuple[int, ...]) -> None:
        """Raise if an array has another shape. Axes of length 1 do not count outside pictures."""
        same = value.shape == expected
        if not same and not path.startswith("image/"):
            same = [n for n in value.shape if n != 1] == [n for n in expected if n != 1]
        if not same:
            raise ObservationError(
                f"{self.env_id}: observation {path!r} has shape {value.shape}, but its space "
                f"promises {expected}; return what observation_space declares at every step"
            )

    def _task_id(self, value: np.ndarray) -> np.ndarray:
        """Return indices (N,) or () of tasks."""
        if self.task_ids is None or value.dtype.kind not in "iu":
            raise ObservationError(f"{self.env_id}: observation 'task_id'={value} is no integer")
        index = value.astype(np.int64) - int(self.task_ids.start)
        if (index < 0).any() or (index >= int(self.task_ids.n)).any():
            raise ObservationError(
                f"{self.env_id}: observation 'task_id'={value.tolist()} is outside {self.task_ids}"
            )
        return index


def empty_obs(state_dim: int, cameras: Mapping[str, tuple[int, int, int]], num_rows: int) -> Arrays:
    """Return an observation of zeros for N rows.

    Example:
        >>> empty_obs(3, {"top": (3, 64, 64)}, num_rows=2)["image/top"].shape  # (N, C, Y, X)
        (2, 3, 64, 64)
    """
    images = {f"image/{name}": (num_rows, *shape) for name, shape in cameras.items()}
    return {
        "state": np.zeros((num_rows, state_dim), np.float32),
        **{key: np.zeros(shape, np.uint8) for key, shape in images.items()},
        "task_id": np.zeros(num_rows, np.int64),
    }


def _leaves(space: spaces.Dict, prefix: str = "") -> Iterator[tuple[str, spaces.Space[Any]]]:
    """Yield the path and the space of every part of a Dict."""
    for key, part in space.spaces.items():
        if isinstance(part, spaces.Dict):
            yield from _leaves(part, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", part


def _numbers(env_id: str, parts: Mapping[str, spaces.Space[Any]]) -> dict[str, spaces.Box]:
    """Return the parts of a state."""
    boxes: dict[str, spaces.Box] = {}
    for path, part in parts.items():
        if not isinstance(part, spaces.Box) or np.dtype(part.dtype).kind not in "biuf":
            raise _unusable(env_id, path, part)
        if looks_like_a_picture(part):
            raise ObservationError(
                f"{env_id}: observation {path!r} is {_short(part)}, which looks like a picture; "
                f"pictures are not flattened into the state; name it image/<camera> in a Dict, or "
                f"{ADVICE}"
            )
        boxes[path] = part
    return boxes


def _instruction_key(env_id: str, texts: list[str]) -> str | None:
    """Return the path of the instruction among the parts that are text."""
    known = [path for path in texts if path.rpartition("/")[2] in INSTRUCTION_KEYS]
    chosen = known or texts
    if len(chosen) > 1:
        raise ObservationError(
            f"{env_id}: observations {chosen} are all text; one of them can be the instruction; "
            "remove the others with gymnasium.wrappers.FilterObservation"
        )
    return chosen[0] if chosen else None


def _short(part: spaces.Space[Any]) -> str:
    """Return a space in words that fit into a message."""
    text = str(part)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _unusable(env_id: str, key: str, part: spaces.Space[Any]) -> ObservationError:
    advice = ADVICE
    if isinstance(part, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Tuple):
        advice = f"wrap it with gymnasium.wrappers.FlattenObservation, or {ADVICE}"
    return ObservationError(
        f"{env_id}: observation {key!r} is {_short(part)}, but a Box, or a Dict of `state` (Box) "
        f"and `image/<camera>` (Box Y,X,3 of uint8) is needed; {advice}"
    )
