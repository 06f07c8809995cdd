"""The tests of this folder need a CUDA device: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """Return the device."""
    if not torch.cuda.is_available():
        pytest.fail("these tests need a CUDA device, and torch finds none")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Compute in whole float32, so that the host's numbers are comparable."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = tf32
