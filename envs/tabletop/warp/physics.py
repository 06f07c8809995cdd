"""The physics of E tabletop scenes in MuJoCo Warp, in torch tensors on one device.

MuJoCo Warp computes in float32, with its own kernels. Its contacts are those of MuJoCo's C engine
here, because boxes collide by the same algorithm (`_warp_model`). Every control step starts from
the stored state and a contact solver without warm start, as in `physics.TabletopPhysics`. So on the
CPU the next state of a scene is a function of its own state and action. On a GPU, sums of parallel
threads differ in their last bits from run to run.

The state is kept in float64, so that a start is observed exactly as with the C engine.

Letters: E envs, N rows.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import mujoco
import mujoco_warp
import torch
import warp
from torch import Tensor

from pitune.envs.tabletop.layout import PHYSICS_STEPS, controls_of, scene_of, start_positions
from pitune.envs.tabletop.model import build_model
from pitune.envs.tabletop.starts import Starts
from pitune.envs.tabletop.tasks import Scene, Task

CONTACTS, CONSTRAINTS = 48, 200
"""Largest numbers of contacts (on average over the scenes) and of constraint rows of one scene. A
scene that exceeds them is reported as broken down, because MuJoCo Warp drops the excess."""
SOLVER_TOLERANCE = 1e-8
"""Tolerance of the contact solver, as in C. The default of MuJoCo Warp, 1e-6, moves pushed cubes
millimeters away from those of the C engine."""
LARGEST = 1e10
"""Positions and velocities beyond it count as broken down, as in MuJoCo."""

_Overflow = mujoco_warp.OverflowType
_EXCESS = int(_Overflow.NEFC | _Overflow.BROADPHASE | _Overflow.NARROWPHASE)


class WarpPhysics:
    """The physics of E scenes on one device.

    Example:
        >>> from pitune.envs.tabletop.tasks import TASKS
        >>> physics = WarpPhysics(TASKS["PickCube"], 2, torch.device("cpu"))  # doctest: +SKIP
        >>> physics.scene.tool.shape  # doctest: +SKIP
        torch.Size([2, 3])

    Args:
        task: Determines the number of cubes and the goal marker.
        num_envs: E.
        device: Device of the physics and of all tensors.
    """

    def __init__(self, task: Task, num_envs: int, device: torch.device) -> None:
        self.model = build_model(task.num_cubes, task.goal_marker)
        self.device = device
        self.positions = torch.zeros(num_envs, self.model.nq, dtype=torch.float64, device=device)
        self.velocities = torch.zeros(num_envs, self.model.nv, dtype=torch.float64, device=device)
        self.goals = torch.zeros(num_envs, 3, dtype=torch.float64, device=device)

        # MuJoCo Warp's arrays, and tensors that share their memory
        warp.config.log_level = warp.LOG_WARNING  # no line per compiled kernel
        warp.init()
        self._warp_device = warp.device_from_torch(device)
        with warp.ScopedDevice(self._warp_device):
            self._warp_model = _put_model(self.model)
            self._data: Any = mujoco_warp.make_data(
                self.model, nworld=num_envs, nconmax=CONTACTS, njmax=CONSTRAINTS
            )
        self._positions, self._velocities, self._controls, self._warm_start, self._overflow = (
            warp.to_torch(getattr(self._data, name))
            for name in ("qpos", "qvel", "ctrl", "qacc_warmstart", "overflow")
        )
        self._graph: Any = None
        if device.type == "cuda":
            self._graph = self._capture()

    @property
    def scene(self) -> Scene:
        """The true state of all scenes, in tensors that are not written to again."""
        return scene_of(self.positions, self.velocities, self.goals)

    def set_starts(self, rows: Tensor, starts: Starts) -> None:
        """Set some scenes to their starts, at rest.

        Args:
            rows: These scenes (N,) int64.
            starts: Their starts.
        """
        self.positions = self.positions.index_copy(0, rows, start_positions(starts))
        self.velocities = self.velocities.index_fill(0, rows, 0.0)
        self.goals = self.goals.index_copy(0, rows, starts.goal)

    def advance(self, active: Tensor, action: Tensor) -> Tensor:
        """Advance some scenes by one control step and return which broke down (E,) bool.

        A scene that breaks down keeps its last state, and so do those that are not active. Nothing
        is copied to the host.

        Args:
            active: Scenes to advance (E,) bool.
            action: (E, 4), finite, clipped to [-1, 1].
        """
        # All scenes are simulated, and the results of those that are not active are discarded.
        self._positions.copy_(self.positions)
        self._velocities.copy_(self.velocities)
        self._controls.copy_(controls_of(self.positions, action.double()))
        self._warm_start.zero_()
        self._overflow.zero_()
        with self._stream():
            if self._graph is None:
                self._simulate()
            else:
                warp.capture_launch(self._graph)

        # results (E, 5 + 7 * cubes) and (E, 5 + 6 * cubes)
        positions, velocities = self._positions.double(), self._velocities.double()
        is_valid = (positions.abs() < LARGEST).all(1) & (velocities.abs() < LARGEST).all(1)
        is_valid &= (self._overflow & _EXCESS) == 0
        moved = (active & is_valid)[:, None]
        self.positions = torch.where(moved, positions, self.positions)
        self.velocities = torch.where(moved, velocities, self.velocities)
        return active & ~is_valid

    def _simulate(self) -> None:
        """Run the physics steps of one control step."""
        for _ in range(PHYSICS_STEPS):
            mujoco_warp.step(self._warp_model, self._data)

    def _capture(self) -> Any:
        """Return a CUDA graph of one control step, which needs no host while it runs."""
        with self._stream():
            self._simulate()  # compiles the kernels, which a capture cannot
            with warp.ScopedCapture(self._warp_device) as capture:
                self._simulate()
        return capture.graph

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        """Launch Warp's kernels on torch's stream, in order with torch's own."""
        with warp.ScopedDevice(self._warp_device):
            if self.device.type == "cpu":
                yield
                return
            with warp.ScopedStream(warp.stream_from_torch(torch.cuda.current_stream(self.device))):
                yield


def version() -> str:
    """Return the versions of MuJoCo Warp and of its parts."""
    packages = ("mujoco_warp", "warp-lang", "mujoco")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def _put_model(model: mujoco.MjModel) -> Any:
    """Return MuJoCo Warp's copy of a model."""
    flags = model.opt.disableflags
    # With this flag two boxes collide by the algorithm of the C engine.
    model.opt.disableflags = flags | int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    result = mujoco_warp.put_model(model)
    model.opt.disableflags = flags
    result.opt.tolerance.fill_(SOLVER_TOLERANCE)
    return result
