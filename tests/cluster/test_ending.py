"""Whole nodes that are told to stop while a stage stands still: they end all the same, and leave nothing behind."""

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from benchmarks.nodes import NodeProcess

from support.nodes import MODEL, answer, eventually, in_flight, place

pytestmark = pytest.mark.slow

FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "a", "--telemetry-interval", "0.5") as started:
        yield started
        print(started.log()[-8000:])


def suspended_stage(node: NodeProcess) -> psutil.Process:
    """Wait for the stage's process, and have it stand still."""
    (stage,) = eventually(node.stages, "a stage is started")
    stage.suspend()
    return stage


def while_it_starts(node: NodeProcess) -> psutil.Process:
    placing = threading.Thread(target=node.call, args=("POST", "/instance", {"model_id": MODEL}))
    placing.start()
    stage = suspended_stage(node)
    placing.join(60)
    return stage


def while_it_serves(node: NodeProcess) -> psutil.Process:
    place(node)
    return suspended_stage(node)


def while_it_is_ended(node: NodeProcess) -> psutil.Process:
    instance = place(node)
    stage = suspended_stage(node)
    status, _ = node.call("DELETE", f"/instance/{instance['instance_id']}")
    assert status == 200
    return stage


def while_somebody_waits_for_an_answer(node: NodeProcess) -> psutil.Process:
    place(node)
    stage = suspended_stage(node)
    threading.Thread(target=ask_in_vain, args=(node,)).start()
    eventually(lambda: in_flight(node) >= 1, "the request is under way")
    return stage


def ask_in_vain(node: NodeProcess) -> None:
    with suppress(OSError, http.client.HTTPException):
        node.call(
            "POST", "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        )


@pytest.mark.parametrize(
    "stand_still",
    [while_it_starts, while_it_serves, while_it_is_ended, while_somebody_waits_for_an_answer],
)
def test_a_node_ends_though_its_stage_stands_still(
    node: NodeProcess, stand_still: Callable[[NodeProcess], psutil.Process]
) -> None:
    stage = stand_still(node)
    assert node.terminate() == 0
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """Have a process obey no signal, not even SIGKILL, as one that waits for a driver."""
    group = FREEZER / f"exo-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"processes cannot be frozen here: {error}")
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        (group / "freezer.state").write_text("FROZEN")
        eventually(lambda: (group / "freezer.state").read_text().strip() == "FROZEN", "it is frozen")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        with suppress(psutil.NoSuchProcess):
            process.wait(20)
        eventually(lambda: not (group / "cgroup.procs").read_text(), "the process is gone")
        group.rmdir()


@pytest.mark.privileged
def test_a_node_ends_though_its_stage_obeys_no_signal(node: NodeProcess) -> None:
    place(node)
    right = answer(node, "What is 12 + 30?")
    assert "42" in right
    (stage,) = node.stages()
    with frozen(stage):
        assert node.terminate() == 0
        assert stage.is_running()
        said = f"its process {stage.pid} does not end, not even by SIGKILL; it is left behind"
        assert said in node.log() and node.log().rstrip().endswith("stopped")
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
