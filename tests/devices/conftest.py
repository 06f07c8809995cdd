"""The tests of this folder run in a process of their own.

The pretend device is the accelerator of the whole process once torch knows it. Then memory of the
host cannot be pinned, and a forked child cannot compute gradients after one on the device. Tests
that come later would fail, so a child runs these, and its reports are shown here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

REPORTS = "PITUNE_DEVICE_REPORTS"
"""Variable with the file that the child appends its reports to. If it is set, this is the child."""
FOLDER = Path(__file__).parent

Reports = dict[str, list[dict[str, Any]]]
"""Reports of each test by its id, as numbers and texts."""
reports_key = pytest.StashKey[tuple[Reports, str]]()


def run_child(items: list[pytest.Item]) -> tuple[Reports, str]:
    """Run tests in a child, and return their reports and the end of its output."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "reports.jsonl"
        file.touch()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"]
        child = subprocess.run(
            [*command, *(item.nodeid for item in items)],
            cwd=items[0].config.rootpath,
            env=os.environ | {REPORTS: str(file)},
            capture_output=True,
            text=True,
            check=False,
        )
        reports: Reports = {}
        for line in file.read_text().splitlines():
            data = json.loads(line)
            reports.setdefault(data["nodeid"], []).append(data)
    return reports, (child.stdout + child.stderr)[-4000:]


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Show the reports of the child in the place of running a test."""
    if REPORTS in os.environ:
        return None
    stash, config = item.session.stash, item.config
    if reports_key not in stash:
        stash[reports_key] = run_child([i for i in item.session.items if FOLDER in i.path.parents])
    reports, output = stash[reports_key]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    found = [
        config.hook.pytest_report_from_serializable(config=config, data=data)
        for data in reports.get(item.nodeid, [])
    ]
    if not found or found[-1].when != "teardown":  # the child ended before it
        lost = f"the process of the device tests ended before this test did:\n{output}"
        found.append(pytest.TestReport(item.nodeid, item.location, {}, "failed", lost, "call"))
    for report in found:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write each report of the child to its file."""
    report = yield
    if REPORTS in os.environ:
        hook = item.config.hook
        data = hook.pytest_report_to_serializable(config=item.config, report=report)
        with open(os.environ[REPORTS], "a") as file:
            file.write(json.dumps(data, default=str) + "\n")
    return report
