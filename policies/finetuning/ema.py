"""An exponential moving average of the trained weights, for evaluation and for checkpoints.

The average starts at the pretrained weights and has a constant decay, as in openpi. Frozen weights
are not copied. Training continues with the raw weights, and the average replaces them only inside
`swapped`.
Source: openpi `scripts/train.py`, decay 0.99 (π0's own fine-tuning).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from pitune.policies.checkpoints.keys import key_differences
from pitune.policies.finetuning.trainable import trained_parameters


class EMA:
    """Average of a module's trained parameters.

    Construct it after `pitune.policies.apply_finetuning`, on the final device, and before the
    first gradient step.

    Args:
        module: The module. Its parameters that require a gradient are averaged.
        decay: Weight of the old average in an update [-], in [0, 1).

    Raises:
        ValueError: `decay` is outside its range, nothing is trained, or a trained parameter is not
            float32. A lower precision would lose small changes.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> ema = EMA(layer, decay=0.75)
        >>> _ = nn.init.ones_(layer.weight)
        >>> ema.update()
        >>> with ema.swapped():
        ...     layer.weight.item()
        0.25
    """

    def __init__(self, module: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the average's decay={decay} must be in [0, 1); openpi uses 0.99")
        self.decay = decay
        self._parameters = dict(trained_parameters(module))
        if not self._parameters:
            raise ValueError(
                "no parameter is trained, so there is nothing to average; name groups in "
                "FinetuneConfig.trainable"
            )
        # a small share of a difference would be rounded away in bfloat16
        wrong_dtypes = {
            name: value.dtype
            for name, value in self._parameters.items()
            if value.dtype != torch.float32
        }
        if wrong_dtypes:
            raise ValueError(
                f"trained parameters must be float32 to be averaged, but {wrong_dtypes} are not; "
                "call policies.apply_finetuning first, it converts them"
            )
        self._average = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._inside = False

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights. Call it after each gradient step.

        Raises:
            RuntimeError: inside `swapped`, where the module holds the averaged weights.
        """
        self._refuse_inside("update")
        torch._foreach_lerp_(
            list(self._average.values()), list(self._parameters.values()), 1 - self.decay
        )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averaged weights into the module while the context lasts, without copies.

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
        """Return the average and the raw weights, inside `swapped` and outside.

        A checkpoint's policy holds the averaged weights. Training resumes with this state.
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
            ValueError: the state is that of other parameters than the trained ones.
        """
        self._refuse_inside("load_state_dict")
        own = self.state_dict()
        differences = key_differences(own, state)
        if differences:
            raise ValueError(
                f"the state of an average does not fit the trained parameters: {differences}; "
                "train the same groups as the run that wrote it"
            )
        for key, value in own.items():
            value.copy_(state[key])

    def _exchange(self) -> None:
        """Swap the memory of each parameter with that of its average."""
        for name, parameter in self._parameters.items():
            parameter.data, self._average[name] = self._average[name], parameter.data
        # the average may have moved since its last exchange, which held casts would not notice
        increment_version(list(self._parameters.values()))

    def _refuse_inside(self, method: str) -> None:
        if self._inside:
            raise RuntimeError(
                f"{method} was called inside EMA.swapped, where the module holds the averaged "
                "weights; call it outside"
            )
