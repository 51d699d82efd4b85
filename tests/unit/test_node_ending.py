"""A node that was told to stop ends, whatever holds it up."""

import subprocess
import sys
import time

import pytest

from exo.api.server import _SHUTDOWN_GRACE_S  # pyright: ignore[reportPrivateUsage]
from exo.cluster.options import CoordinatorOptions
from exo.dataplane.client import CLOSE_TIMEOUT_S
from exo.gpu.discovery import _FAREWELL_S  # pyright: ignore[reportPrivateUsage]
from exo.gpu.limits import CallLimits
from exo.node_ending import END_MAX_S
from exo.worker.runner.supervisor import RunnerTimeouts

HELD_UP = {
    "an event loop that waits": "import time; time.sleep(60)",
    "a thread that the interpreter waits for": (
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"
    ),
    "a library that lets no Python run": "import ctypes; ctypes.PyDLL(None).sleep(60)",
}


@pytest.mark.parametrize("what", HELD_UP)
def test_what_is_held_up_is_ended_and_says_where(what: str) -> None:
    code = f"from exo.node_ending import end_within\nend_within(0.6)\n{HELD_UP[what]}"
    began_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1 and time.monotonic() - began_s < 20
    assert "Timeout (0:00:00.600" in ended.stderr and "most recent call first" in ended.stderr
    if "no Python" not in what:
        assert "did not end within 0.6 s, so it is ended now; please report what follows" in ended.stderr


def test_what_ends_by_itself_says_nothing() -> None:
    code = "from exo.node_ending import end_within\nend_within(30)"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=25
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_node_that_is_only_slow_is_given_all_the_time_that_it_takes_for_others() -> None:
    patience_s = (
        _SHUTDOWN_GRACE_S,
        CoordinatorOptions().leave_s,
        RunnerTimeouts().kill_s,
        CLOSE_TIMEOUT_S,
        _FAREWELL_S,
        CallLimits().close_s,
    )
    assert sum(patience_s) + 1 <= END_MAX_S
