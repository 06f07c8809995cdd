"""Parameter groups that pretrained weights lack.

An extension is a module whose parameters no published checkpoint has. A network with extensions
still loads a published checkpoint: the extensions start from their own initialization, which should
leave the network's numbers unchanged. From then on they are ordinary parameters. They are trained
by name (`FinetuneConfig.trainable`), have a row of their own in the memory table, and are saved and
loaded strictly. Exports to formats that cannot hold them fail and name them.

A registered extension is stored under `Pi0.extensions` and maps the action tokens (B, M, H, D) to
action tokens, before the action expert. An extension anywhere else in the network needs no
registration: its place in the network calls it.

Letters: B rows, M scored flow steps, H action horizon, D width of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pitune.policies.network.config import Pi0Config

PRETRAINED_GROUPS = ("action_expert", "vlm", "vision", "projections")
"""Parameter groups of the published networks: the expert, the language model, the vision tower
with its projector, and the linear layers between the robot's numbers and the expert."""


class Extension(nn.Module):
    """A module of the network whose parameters pretrained weights lack.

    Example:
        >>> from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
        >>> from pitune.policies.network.pi0 import Pi0
        >>> @register_extension("doc_gain")
        ... class Gain(Extension):
        ...     def __init__(self, config):
        ...         super().__init__()
        ...         self.log_gain = nn.Parameter(torch.empty(config.expert.width))
        ...         self.reset_parameters()
        ...
        ...     def reset_parameters(self):
        ...         nn.init.zeros_(self.log_gain)
        ...
        ...     def forward(self, tokens):  # (B, M, H, D)
        ...         return tokens * self.log_gain.exp()
        >>> sizes = Pi0Config(state_dim=4, action_dim=2, action_horizon=3, expert=LAPTOP_EXPERT)
        >>> network = Pi0(sizes)
        >>> network.add_extension("doc_gain")
        >>> new_parameters(network)
        {'extensions.doc_gain.log_gain': 'doc_gain'}
    """

    group: ClassVar[str]
    """Name of its parameter group. `register_extension` sets it."""

    def reset_parameters(self) -> None:
        """Give every parameter and buffer its initial value, where no checkpoint holds them."""
        raise NotImplementedError(f"{type(self).__name__} must define reset_parameters")


_EXTENSIONS: dict[str, type[Extension]] = {}
ExtensionClass = TypeVar("ExtensionClass", bound=type[Extension])


def register_extension(name: str) -> Callable[[ExtensionClass], ExtensionClass]:
    """Register a class of extensions under a name, which is also its parameter group.

    The class is called with the network's `Pi0Config` and the extension's options as keywords.
    The options are saved in the checkpoint as JSON.

    Raises:
        ValueError: another class has the name, or it is reserved or no Python identifier.
    """

    def register(cls: ExtensionClass) -> ExtensionClass:
        before = _EXTENSIONS.get(name, cls)
        same_class = before.__module__ == cls.__module__ and before.__qualname__ == cls.__qualname__
        reserved = name in (*PRETRAINED_GROUPS, "all", *dir(nn.ModuleDict))
        if not same_class or reserved or not name.isidentifier():  # a notebook's cell may run twice
            raise ValueError(
                f"extension name={name!r} is taken, reserved or no identifier; registered are "
                f"{extension_names()}, choose another name"
            )
        cls.group = name
        _EXTENSIONS[name] = cls
        return cls

    return register


def extension_names() -> list[str]:
    """Return the names of the registered extensions."""
    return sorted(_EXTENSIONS)


def make_extension(name: str, config: Pi0Config, options: dict[str, Any]) -> Extension:
    """Build a registered extension for a network of these sizes.

    Args:
        name: As registered.
        config: Sizes of the network.
        options: Keyword arguments of the extension's class.

    Raises:
        ValueError: the name is not registered.
    """
    if name not in _EXTENSIONS:
        raise ValueError(
            f"unknown extension {name!r}; registered are {extension_names()}. Import the module "
            "that registers it first"
        )
    return _EXTENSIONS[name](config, **options)


def extensions_of(network: nn.Module) -> Iterator[tuple[str, Extension]]:
    """Yield the extensions of a network with their names, wherever they are in it."""
    return (
        (name, module) for name, module in network.named_modules() if isinstance(module, Extension)
    )


def new_parameters(network: nn.Module) -> dict[str, str]:
    """Return the parameters and buffers that pretrained weights lack, each with its group."""
    return {
        f"{prefix}.{name}": extension.group
        for prefix, extension in extensions_of(network)
        for name in extension.state_dict()
    }


def _named_tensors(extension: Extension) -> list[tuple[str, Tensor]]:
    """Return the parameters and buffers that can be marked, which those of bool cannot."""
    tensors = (*extension.named_parameters(), *extension.named_buffers())
    return [(name, value) for name, value in tensors if value.dtype != torch.bool]


def _mark(value: Tensor) -> float:
    """Return the entry that marks a tensor of this dtype as without a value."""
    if value.is_floating_point() or value.is_complex():
        return math.nan
    return torch.iinfo(value.dtype).max


def initialize_extensions(network: nn.Module, device: torch.device | str = "cpu") -> None:
    """Allocate the extensions' parameters and buffers on a device and give them their values.

    For a network built on the meta device around the weights of a published checkpoint.

    Raises:
        ValueError: `reset_parameters` of an extension left out a parameter or a buffer.
    """
    for name, extension in extensions_of(network):
        extension.to_empty(device=device)
        with torch.no_grad():
            for _, value in _named_tensors(extension):
                value.fill_(_mark(value))  # shows below if nothing replaces it
        extension.reset_parameters()
        left_out = [
            key
            for key, value in _named_tensors(extension)
            if (value.isnan() | (value == _mark(value))).any()
        ]
        if left_out:
            raise ValueError(
                f"reset_parameters of extension {name} ({type(extension).__name__}) gave no value "
                f"to {left_out}; initialize every parameter and buffer there"
            )
