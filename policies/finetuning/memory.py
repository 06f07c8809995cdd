"""What training a policy needs in memory, told before it starts.

Weights, gradients and Adam's two moments are counted exactly; activations are estimated, see
`pitune.policies.finetuning.activations`. What the libraries themselves take, the simulator and the
rollouts are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from pitune.policies.finetuning.activations import activation_bytes
from pitune.policies.finetuning.trainable import GROUPS, group_of
from pitune.policies.policy import FlowPolicy

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class GroupMemory:
    """One group of parameters, in bytes."""

    group: str
    parameters: int
    """Numbers in it, adapters included [-]."""
    trained: int
    """How many of them are trained [-]."""
    weight_bytes: int
    gradient_bytes: int
    adam_bytes: int
    """Two moments of every trained number."""

    @property
    def total_bytes(self) -> int:
        """All of the above."""
        return self.weight_bytes + self.gradient_bytes + self.adam_bytes


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """What training needs, by group, and for a batch."""

    rows: tuple[GroupMemory, ...]
    """The groups that the network has."""
    batch_size: int
    """Observations in one gradient step."""
    activation_bytes: int
    """What one batch keeps for its gradient, estimated."""

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(row.trained for row in self.rows)

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return sum(row.total_bytes for row in self.rows) + self.activation_bytes

    def table(self) -> Table:
        """Return a table for `rich`."""
        from rich.table import Table

        table = Table(title=f"Training memory, minibatch {self.batch_size}")
        for name in ("group", "parameters", "trained", "weights", "gradients", "Adam"):
            table.add_column(f"{name}", justify="left" if name == "group" else "right")
        for row in self.rows:
            sizes = (row.weight_bytes, row.gradient_bytes, row.adam_bytes)
            table.add_row(
                row.group, f"{row.parameters:,}", f"{row.trained:,}", *map(readable, sizes)
            )
        table.add_section()
        table.add_row("activations (estimate)", "", "", "", "", readable(self.activation_bytes))
        parameters = sum(row.parameters for row in self.rows)
        total = readable(self.total_bytes)
        table.add_row("all", f"{parameters:,}", f"{self.trained:,}", "", "", total)
        return table

    def text(self) -> str:
        """Return the table as plain text."""
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def parameter_report(policy: FlowPolicy, batch_size: int = 1) -> MemoryReport:
    """Return what training a policy needs, after `pitune.policies.apply_finetuning`.

    Args:
        policy: Whose parameters say by `requires_grad` whether they are trained.
        batch_size: Observations in one gradient step, each with one point of flow time.
    """
    rows = []
    for group in GROUPS:
        values = [v for name, v in policy.network.named_parameters() if group_of(name) == group]
        trained = [value for value in values if value.requires_grad]
        gradients = sum(value.nbytes for value in trained)
        row = GroupMemory(
            group=group,
            parameters=sum(value.numel() for value in values),
            trained=sum(value.numel() for value in trained),
            weight_bytes=sum(value.nbytes for value in values),
            gradient_bytes=gradients,
            adam_bytes=2 * gradients,
        )
        if values:
            rows.append(row)
    return MemoryReport(
        rows=tuple(rows),
        batch_size=batch_size,
        activation_bytes=activation_bytes(policy, batch_size),
    )


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device, or of the machine for the CPU [bytes]."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)


def check_memory(report: MemoryReport, available: int, other: int = 0) -> None:
    """Refuse a run that cannot fit.

    The weights are there already when this is asked, so only what comes on top has to fit.

    Args:
        report: From `parameter_report`.
        available: Free memory, `available_bytes` [bytes].
        other: What else will be allocated, as copies of the policy and their like [bytes].

    Raises:
        ValueError: more is needed than there is.
    """
    needed = report.total_bytes - sum(row.weight_bytes for row in report.rows) + other
    if needed > available:
        raise ValueError(
            f"training needs {readable(needed)} more ({report.trained:,} trained parameters: "
            f"gradients {readable(sum(row.gradient_bytes for row in report.rows))}, Adam "
            f"{readable(sum(row.adam_bytes for row in report.rows))}; activations of minibatch "
            f"{report.batch_size} about {readable(report.activation_bytes)}; other "
            f"{readable(other)}), but {readable(available)} are free; train fewer groups or with "
            "LoRA, compute in bfloat16, turn gradient checkpointing on, or take a smaller minibatch"
        )


def readable(num_bytes: int) -> str:
    """Return a number of bytes in words, in GiB or MiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / 2**20:.2f} MiB"
