"""result.json and table.md of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pitune.envs import EnvSpec, start_split
from pitune.experiments.evaluation.folder import RESULT, TABLE
from pitune.experiments.evaluation.play import Stage, instructions
from pitune.experiments.evaluation.report import CellResult, comparison_lines, summary_lines, tables
from pitune.experiments.runs.config_file import plain, provenance, write_whole
from pitune.policies.serving.remote_policy import RemotePolicy


def write(stage: Stage, cells: Sequence[CellResult]) -> None:
    """Write the results into `out` and `folder`, if they are set."""
    config = stage.config
    text = json.dumps(record_of(stage, cells), indent=2) + "\n"
    if config.out is not None:
        write_whole(config.out, text)
    if config.folder is not None:
        write_whole(config.folder / RESULT, text)
        write_whole(config.folder / TABLE, markdown(stage, cells))


def record_of(stage: Stage, cells: Sequence[CellResult]) -> dict[str, Any]:
    """Return the record of an evaluation as JSON values."""
    config, spec = stage.config, stage.env.spec
    record: dict[str, Any] = {
        "config": plain(config.with_typed_options()),
        "provenance": provenance(),
        "seeded_starts": spec.deterministic_reset,
        "environment": _environment(spec),
    }
    servers = [p.policy for p in stage.players.values() if isinstance(p.policy, RemotePolicy)]
    if servers:
        record["waiting_seconds"] = sum(policy.waiting_seconds for policy in servers)
    if config.shuffle_instructions:
        record["instructions"] = {
            str(seed): list(instructions(config, spec, seed) or ()) for seed in config.all_seeds
        }
    if len(cells) == 1 and not cells[0].cell:
        return {**record, **{k: v for k, v in cells[0].record().items() if k != "settings"}}
    return {**record, "cells": [cell.record() for cell in cells]}


def _environment(spec: EnvSpec) -> dict[str, Any]:
    """Return the tasks of an environment, and the split of its fixed starts."""
    split = None
    if spec.num_starts is not None:
        split = start_split(spec.num_starts, shared=spec.shared_starts)
    return {
        "simulator": spec.simulator,
        "tasks": list(spec.task_names or spec.tasks),
        "instructions": list(spec.tasks),
        "num_starts": spec.num_starts,
        "starts": None if split is None else {name: list(s) for name, s in split.items()},
    }


def markdown(stage: Stage, cells: Sequence[CellResult]) -> str:
    """Return the report as Markdown."""
    config, spec = stage.config, stage.env.spec
    blocks = [f"# {config.env.id}, {config.episodes} episodes, seeds {list(config.all_seeds)}"]
    if len(cells) == 1:
        blocks += [line.strip() for line in summary_lines(config.env.id, spec, cells[0])]
    blocks += [table.markdown() for table in tables(spec, cells)]
    blocks += [line for cell in cells for line in comparison_lines(cell)]
    return "\n\n".join(blocks) + "\n"
