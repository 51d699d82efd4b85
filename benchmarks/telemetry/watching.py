"""Has `watching_process` do something, and returns what it says."""

import json
import subprocess
import sys
from typing import Any

from benchmarks.cluster.measuring import CannotMeasureError
from benchmarks.telemetry import stub_driver

INTERVAL_S = 2.0
"""At which a node reads its devices."""


def ask(what: str, amount: float, *, timeout_s: float) -> dict[str, Any]:
    """Run one measurement in a process of its own.

    Raises:
        CannotMeasureError: There is no stub here, or the process did not come to an end.
    """
    stub_driver.needed()
    command = [sys.executable, "-m", "benchmarks.telemetry.watching_process", what, f"{amount:g}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise CannotMeasureError(f"the process that watches devices took more than {timeout_s:g} s") from None
    if done.returncode != 0:
        raise CannotMeasureError(f"the process that watches devices failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)
