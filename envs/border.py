"""Between a simulator and a policy on another device: few copies, and no questions to the device.

A policy on an accelerator decides there, and the simulator may be on the host. Then a decision
costs one read, of its actions, and the outcome moves in one copy. TorchRL asks after each decision
whether an episode has ended, which would be a wait for the accelerator. The host knows the ends: of
its own simulator, or from the read of a chunk's checks.

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from pitune.envs.checked import CheckedEnv

ALIGNMENT = 8
"""Beginnings of the entries of a packed copy are multiples of this [bytes]."""


def moved_together(
    values: Mapping[str, Tensor | TensorDictBase], device: torch.device
) -> dict[str, Tensor | TensorDictBase]:
    """Return entries on a device, of which the tensors of the host are moved in one copy.

    The copy to CUDA does not stop the host. Its pinned memory is given to nobody else before it is
    done, by torch's allocator.

    Args:
        values: Tensors of the host or of the device, and nested entries.
        device: Not the host.
    """
    host = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    host = {key: value for key, value in host.items() if value.device != device}
    if len(host) < 2:
        return {key: value.to(device) for key, value in values.items()}
    content = _packed(host)
    memory = torch.empty(len(content), dtype=torch.uint8, pin_memory=device.type == "cuda")
    moved = _unpacked(memory.copy_(content).to(device, non_blocking=True), host)
    return {**values, **moved}


def read_together(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors of one device on the host, by one read.

    Args:
        values: Tensors of the host or of another device.

    Example:
        >>> read_together({"done": torch.tensor([True])})
        {'done': tensor([True])}
    """
    values = {key: value.detach() for key, value in values.items()}
    if all(value.device.type == "cpu" for value in values.values()):
        return {key: value.clone() for key, value in values.items()}
    read = _unpacked(_packed(values).cpu(), values)
    return {key: value.clone() for key, value in read.items()}


def _packed(values: Mapping[str, Tensor]) -> Tensor:
    """Return the bytes of tensors of one device, one after the other."""
    parts = []
    for value in values.values():
        content = value.contiguous().flatten().view(torch.uint8)
        parts += [content, content.new_zeros(-len(content) % ALIGNMENT)]
    return torch.cat(parts)


def _unpacked(content: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the shapes of others from the bytes of `_packed`."""
    found, begin = {}, 0
    for key, value in values.items():
        part = content[begin : begin + value.nbytes]
        found[key] = part.view(value.dtype).view(value.shape)
        begin += value.nbytes + -value.nbytes % ALIGNMENT
    return found


class BorderEnv(EnvBase):
    """An environment of TorchRL whose simulator may be on another device.

    Args:
        home: Device of the simulator.
        device: Device of the decisions, that of the simulator by default.
        num_envs: E.

    Example:
        >>> BorderEnv(torch.device("cpu"), None, 4).is_split
        False
    """

    def __init__(self, home: torch.device, device: torch.device | None, num_envs: int) -> None:
        super().__init__(device=device or home, batch_size=torch.Size([num_envs]))
        self.home = home
        """Device of the simulator and of the episodes' state."""
        self.is_split = self.device != home
        """Whether decisions and simulator are on two devices."""
        self._ended = torch.zeros(num_envs, dtype=torch.bool)
        """The episodes (E,) that the last decision ended, on the host. Only for a device."""

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Begin new episodes where they ended, as TorchRL does, and ask the host for the ends."""
        if self.device.type == "cpu":
            return super().maybe_reset(tensordict)
        if not self._ended.any():
            return tensordict
        begun = self._reset(TensorDict({"_reset": self._ended[:, None]}, self.batch_size))
        ended, merged = self._ended.to(self.device), tensordict.copy()
        for key in begun.keys(True, True):
            new, old = begun[key], merged[key]
            # (E,) against (E, ...)
            merged[key] = torch.where(ended.view(-1, *(1,) * (new.ndim - 1)), new, old)
        return merged

    def _read_ends(self, env: CheckedEnv, num_steps: Tensor, done: Tensor) -> int:
        """Read the checks of a chunk, the ended episodes (E,) and a number (), which is returned.

        It is one read of a simulator's device.
        """
        if self.home.type == "cpu":
            self._ended = done
            return env.confirm(num_steps)[0]
        num, *ended = env.confirm(num_steps, done)
        self._ended = torch.tensor(ended, dtype=torch.bool)
        return num

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return zeros on the simulator's device."""
        return torch.zeros(*shape, dtype=dtype, device=self.home)

    def _reset_check_done(self, *_: object) -> None:
        """Read nothing. TorchRL asks thrice per reset whether `_reset` left a flag up."""

    def _tensordict(self, values: Mapping[str, Tensor | TensorDictBase]) -> TensorDict:
        """Return entries of decisions on their device."""
        if self.is_split and self.device.type != "cpu":
            values = moved_together(values, self.device)
        return TensorDict(dict(values), batch_size=self.batch_size, device=self.device)
