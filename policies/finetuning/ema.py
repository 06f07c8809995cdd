"""An exponential moving average of the weights that are trained, to evaluate and to save.

The average begins at the pretrained weights and follows with a constant decay, as openpi's does;
frozen weights are not copied. Training goes on with the raw weights: the average takes their place
only inside `swapped`.
Source: openpi `scripts/train.py`, decay 0.99 (π0's own fine-tuning).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pitune.policies.checkpoints.weights import key_differences
from pitune.policies.finetuning.trainable import trained_parameters


class EMA:
    """Average of a module's trained parameters.

    Make it when all is in its place: after `pitune.policies.apply_finetuning`, on the
    final device, and before the first gradient step.

    Args:
        module: Whose parameters that require a gradient are averaged.
        decay: What is left of the old average after an update [-], in [0, 1).

    Raises:
        ValueError: `decay` is outside its range, nothing is trained, or a trained parameter is not
            float32, in which small changes would be lost.
    """

    def __init__(self, module: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the average's decay={decay} must be in [0, 1)")
        self.decay = decay
        self._parameters = dict(trained_parameters(module))
        if not self._parameters:
            raise ValueError("no parameter is trained, so there is nothing to average")
        other = {
            name: value.dtype
            for name, value in self._parameters.items()
            if value.dtype != torch.float32
        }
        if other:
            raise ValueError(
                f"trained parameters must be float32 to be averaged, but {other} are not; "
                "policies.apply_finetuning makes them so"
            )
        self._average = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._inside = False

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights; call it after each gradient step.

        Raises:
            RuntimeError: inside `swapped`, where the module has the average's weights.
        """
        self._refuse_inside("update")
        torch._foreach_lerp_(
            list(self._average.values()), list(self._parameters.values()), 1 - self.decay
        )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the module the averaged weights for as long as the context lasts; no copies.

        Raises:
            RuntimeError: inside another `swapped`.
        """
        self._refuse_inside("swapped")
        self._exchange()
        self._inside = True
        try:
            yield
        finally:
            self._exchange()
            self._inside = False

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the raw weights, whichever of them the module has at present.

        A checkpoint's policy has the averaged weights; training resumes with these.
        """
        raw = {name: value.detach() for name, value in self._parameters.items()}
        average = self._average
        if self._inside:
            raw, average = average, raw
        return {
            **{f"average.{name}": value for name, value in average.items()},
            **{f"raw.{name}": value for name, value in raw.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average, and the raw weights in the module.

        Raises:
            RuntimeError: inside `swapped`.
            ValueError: the state is that of other parameters.
        """
        self._refuse_inside("load_state_dict")
        own = self.state_dict()
        differences = key_differences(own, state)
        if differences:
            raise ValueError(
                "the state of an average does not fit the parameters that are trained: "
                f"{differences}; train the same groups as the run that wrote it"
            )
        for key, value in own.items():
            value.copy_(state[key])

    def _exchange(self) -> None:
        """Let each parameter and its average trade their memory."""
        for name, parameter in self._parameters.items():
            parameter.data, self._average[name] = self._average[name], parameter.data

    def _refuse_inside(self, what: str) -> None:
        if self._inside:
            raise RuntimeError(
                f"{what} was called inside EMA.swapped, where the module has the averaged weights; "
                "call it outside"
            )
