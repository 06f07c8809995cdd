"""Time of a piece of work, on the CPU or on an accelerator that works behind the program's back."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done all of its work, which was only queued so far.

    Args:
        device: On the CPU all work is done when its call returns.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return the clock [s] that measures work on a device.

    On the CPU it is the time of this process, to which another program adds little. The process
    sleeps while an accelerator works, so that work is measured by the clock on the wall.
    """
    return time.process_time if device.type == "cpu" else time.perf_counter


def seconds(act: Callable[[], int], device: torch.device, least: float = 0.2) -> float:
    """Return the time of a piece of work [s], from enough repetitions.

    The first call is not measured: it fills caches and loads kernels. The device is waited for
    before and after the repetitions, not between them, as in a run.

    Args:
        act: Does the work, and returns how often.
        device: Device that works.
        least: Least time of the measured repetitions together [s].
    """
    clock, repetitions = clock_of(device), 1
    act()
    while True:
        wait_for(device)
        start = clock()
        done = sum(act() for _ in range(repetitions))
        wait_for(device)
        spent = clock() - start
        if spent >= least:
            return spent / done
        # a clock may have counted nothing
        missing = 1.2 * least / max(spent, least / 100)
        repetitions = max(repetitions + 1, int(missing * repetitions))
