"""The memory that training a policy needs, computed before it starts.

Weights, gradients and Adam's two moments are counted exactly. Activations are estimated, see
`pitune.policies.finetuning.activations`. The libraries' own memory, the simulator and the rollouts
are not included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from pitune.policies.finetuning.activations import activation_bytes
from pitune.policies.finetuning.trainable import parameter_groups
from pitune.policies.network.extensions import PRETRAINED_GROUPS
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.model_input import ModelInput

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class GroupMemory:
    """Memory of one group of parameters.

    Example:
        >>> sizes = {"weight_bytes": 12, "gradient_bytes": 12, "adam_bytes": 24}
        >>> GroupMemory(group="vlm", parameters=3, trained=3, **sizes).total_bytes
        48
    """

    group: str
    parameters: int
    """Number of parameters, adapters included [-]."""
    trained: int
    """Number of trained parameters [-]."""
    weight_bytes: int
    """Weights, frozen ones included [bytes]."""
    gradient_bytes: int
    """Gradients of the trained parameters [bytes]."""
    adam_bytes: int
    """Two moments of every trained parameter [bytes]."""

    @property
    def total_bytes(self) -> int:
        """Weights, gradients and moments [bytes]."""
        return self.weight_bytes + self.gradient_bytes + self.adam_bytes


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """Memory of training: by parameter group, and for the activations of a batch.

    Example:
        >>> MemoryReport(rows=(), batch_size=8, activation_bytes=2**20).total_bytes
        1048576
    """

    rows: tuple[GroupMemory, ...]
    """The groups of the network, extensions last."""
    batch_size: int
    """Observations in one gradient step."""
    activation_bytes: int
    """Activations that one batch keeps for its gradient, and trained weights in the precision of
    the towers, estimated [bytes]."""
    prefix_bytes: int = 0
    """Encoded observations of a rollout on the policy's device, in all their copies [bytes]."""
    host_prefix_bytes: int = 0
    """Those that the host holds, which are no part of the sums [bytes]."""

    @property
    def trained(self) -> int:
        """Number of trained parameters [-]."""
        return sum(row.trained for row in self.rows)

    @property
    def total_bytes(self) -> int:
        """All groups, the activations and the encoded observations [bytes]."""
        others = self.activation_bytes + self.prefix_bytes
        return sum(row.total_bytes for row in self.rows) + others

    def rank_bytes(self, num_ranks: int) -> int:
        """Return the memory of each of some ranks that split the policy (`--shard`) [bytes].

        A rank holds its part of weights, gradients and moments, and gathers all weights.

        Args:
            num_ranks: Number of ranks. One rank holds everything once.
        """
        if num_ranks == 1:
            return self.total_bytes
        parts = sum(row.total_bytes for row in self.rows)
        gathered = sum(row.weight_bytes for row in self.rows)
        return -(-parts // num_ranks) + gathered + self.activation_bytes + self.prefix_bytes

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

        # activations, and the sum
        table.add_section()
        table.add_row("activations (estimate)", "", "", "", "", readable(self.activation_bytes))
        if self.prefix_bytes:
            table.add_row("encoded observations", "", "", "", "", readable(self.prefix_bytes))
        if self.host_prefix_bytes:
            host = f"{readable(self.host_prefix_bytes)} of the host"
            table.add_row("encoded observations beyond", "", "", "", "", host)
        parameters = sum(row.parameters for row in self.rows)
        total = readable(self.total_bytes)
        table.add_row("all", f"{parameters:,}", f"{self.trained:,}", "", "", total)
        sizes_of_ranks = (f"{n} ranks {readable(self.rank_bytes(n))}" for n in (2, 4, 8))
        table.caption = f"each rank with --shard: {', '.join(sizes_of_ranks)}"
        return table

    def text(self) -> str:
        """Return the table as plain text."""
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def parameter_report(
    policy: FlowPolicy,
    batch_size: int = 1,
    prefix_bytes: int = 0,
    host_prefix_bytes: int = 0,
    predicted: int = 0,
) -> MemoryReport:
    """Return the memory of training a policy, after `pitune.policies.apply_finetuning`.

    Args:
        policy: The policy. Parameters with `requires_grad` are trained.
        batch_size: Observations in one gradient step, each with one flow time.
        prefix_bytes: Encoded observations of a rollout on the device, see `kept_prefixes` [bytes].
        host_prefix_bytes: Those of the host [bytes].
        predicted: Tokens that a language head predicts for each observation, 0 without its loss.
    """
    rows, network = [], policy.network
    groups = parameter_groups(network)
    # pretrained groups first, then those of extensions
    for group in dict.fromkeys((*PRETRAINED_GROUPS, *groups.values())):
        values = [v for name, v in policy.network.named_parameters() if groups[name] == group]
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
        activation_bytes=activation_bytes(policy, batch_size, predicted),
        prefix_bytes=prefix_bytes,
        host_prefix_bytes=host_prefix_bytes,
    )


def example_input(policy: FlowPolicy) -> ModelInput:
    """Return the input of one observation, all zeros, for its size."""
    preprocessor, device = policy.preprocessor, policy.device
    pictures, prompt = preprocessor.config.pictures, preprocessor.config.prompt
    images = tokens = mask = None
    if pictures is not None:
        shape = (1, len(pictures.cameras), 3, pictures.size, pictures.size)
        dtype = torch.uint8 if pictures.resize == "pillow" else torch.float32
        images = torch.zeros(shape, dtype=dtype, device=device)
    if prompt is not None:
        tokens = torch.zeros(1, prompt.max_tokens, dtype=torch.int64, device=device)
        mask = torch.ones(1, prompt.max_tokens, dtype=torch.bool, device=device)
    remainder = delay = None
    if policy.remainder_steps:
        rest = (1, policy.remainder_steps, policy.chunk_shape[1])
        remainder = torch.zeros(rest, device=device)
        delay = torch.zeros(1, dtype=torch.int64, device=device)
    return ModelInput(
        state=torch.zeros(1, preprocessor.model_state_dim, device=device),
        robot_state=torch.zeros(1, preprocessor.state_dim, device=device),
        images=images,
        tokens=tokens,
        token_mask=mask,
        remainder=remainder,
        delay=delay,
        memory=policy.empty_memory(1),
        last_action=torch.zeros(1, preprocessor.action_dim, device=device)
        if policy.reads_last_action
        else None,
        task_id=torch.zeros(1, dtype=torch.int64, device=device)
        if policy.condition_tasks
        else None,
    )


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device, or of the machine for the CPU [bytes]."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return int(psutil.virtual_memory().available)


def check_memory(report: MemoryReport, available: int, other: int = 0, num_ranks: int = 1) -> None:
    """Fail if training cannot fit into memory.

    The weights are allocated already, so only gradients, moments and activations have to fit.

    Args:
        report: From `parameter_report`.
        available: Free memory, `available_bytes` [bytes].
        other: Further allocations, for example copies of the policy [bytes].
        num_ranks: Number of ranks that split the policy.

    Raises:
        ValueError: training needs more than the free memory.
    """
    # the weights are in memory already
    allocated = sum(row.weight_bytes for row in report.rows) // num_ranks
    needed = report.rank_bytes(num_ranks) - allocated + other
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
    """Return a number of bytes as text, in GiB or MiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / 2**20:.2f} MiB"
