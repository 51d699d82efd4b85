"""A node that was told to stop ends, whatever holds it up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import anyio
import pytest

from exo import node
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


class Server:
    """Counts how often it is told to stop."""

    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(5000):
        if is_so():
            return
        await anyio.sleep(0.002)
    pytest.fail("it did not come about")


async def test_the_first_signal_sets_the_limit_and_the_second_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int] = []
    server = Server()
    monkeypatch.setattr(node, "end_within", lambda: limits.append(server.stops))
    before = signal.getsignal(signal.SIGTERM)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node._stop_on_signal, server)  # pyright: ignore[reportPrivateUsage, reportArgumentType]
            await until(lambda: signal.getsignal(signal.SIGTERM) is not before)
            for count in (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
                await until(lambda least=count: server.stops >= least)
            tasks.cancel_scope.cancel()
    assert limits == [0]
