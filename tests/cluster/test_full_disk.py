"""Real processes on real disks that fill up, or that cannot be written: they say so, stop, and come back."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from benchmarks.nodes import NodeFailedError, NodeProcess

from exo.cluster.log.store import open_store
from exo.cluster.node_id import load_node_id
from support.coordinator_process import Place
from support.coordinator_processes import (
    CoordinatorProcess,
    end_and_check,
    master_of,
    rest,
    running,
    wait_for_election,
    wait_for_one,
    wait_for_work,
)
from support.discoveries import free_udp_port
from support.small_disks import SmallDisk, small_disk

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

MIB = 2**20
LOG_FAILED = 4
CANNOT_START = 2
"""The exit code."""


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, SmallDisk]]:
    """A small disk for each of three nodes."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(small_disk(tmp_path / name, size_bytes=16 * MIB))
            for name in ("one", "two", "three")
        }


def says_that_the_disk_is_full(text: str) -> bool:
    return "No space left on device" in text and "make room" in text


def test_a_full_disk_stops_its_node_and_nobody_else(tmp_path: Path, disks: dict[str, SmallDisk]) -> None:
    port = free_udp_port()
    secret_file = str(tmp_path / "own" / "secret")
    places = [
        Place(home=str(disk.path), secret_file=secret_file, discovery_port=port) for disk in disks.values()
    ]
    with running([CoordinatorProcess(place) for place in places]) as processes:
        for process in processes:
            process.tell("work")
        wait_for_work(processes, 30)

        master, followers = master_of(processes)
        filled_s = time.monotonic()
        disks[master.home.name].fill()
        assert master.wait_ended() == LOG_FAILED
        assert says_that_the_disk_is_full(master.errors())
        wait_for_election(followers, master, filled_s)
        wait_for_work(followers, 30)
        disks[master.home.name].make_room()
        master.start()
        master.tell("work")
        wait_for_work(processes, 30)

        master, (follower, other) = master_of(processes)
        term = master.report()["term"]
        disks[follower.home.name].fill()
        assert follower.wait_ended() == LOG_FAILED
        wait_for_work([master, other], 30)
        before = follower.errors()
        follower.launch()  # Before there is room.
        assert follower.wait_ended() == CANNOT_START
        assert says_that_the_disk_is_full(follower.errors().removeprefix(before))
        wait_for_work([master, other], 30)
        assert master.report()["term"] == term, "who cannot write is not missed"
        disks[follower.home.name].make_room()
        follower.start()
        follower.tell("work")
        wait_for_work(processes, 30)

        rest(processes)
        wait_for_one(processes)
        end_and_check(processes)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size_bytes=4 * MIB) as mounted:
        yield mounted


@pytest.fixture
def node(tmp_path: Path, disk: SmallDisk) -> Iterator[NodeProcess]:
    """A whole node whose data are on the small disk, and what it prints is not."""
    made = NodeProcess(disk.path / "home", "--no-discovery")
    made.log_file = tmp_path / "node.log"
    try:
        yield made
    finally:
        if made.process is not None:
            made.kill()


def made_keys(node: NodeProcess) -> set[str]:
    return {key["name"] for key in node.get("/keys")["keys"]}


def test_a_node_whose_disk_is_full_says_so_and_keeps_what_it_acknowledged(
    node: NodeProcess, disk: SmallDisk
) -> None:
    node.start()
    disk.fill()
    acknowledged: set[str] = set()
    for number in range(2000):
        # It had taken some room ahead.
        name = f"{number} " + "x" * 40
        try:
            status, _ = node.call("POST", "/keys", {"name": name, "scopes": ["read"]}, timeout_s=20)
        except (OSError, json.JSONDecodeError):
            break
        if status != 201:
            break
        acknowledged.add(name)
    assert node.process is not None
    assert node.process.wait(20) == LOG_FAILED
    assert says_that_the_disk_is_full(node.log().splitlines()[-1]), node.log()
    with pytest.raises(NodeFailedError) as failure:
        node.start()
    assert says_that_the_disk_is_full(str(failure.value).splitlines()[-1]), node.log()
    disk.make_room()
    node.start()
    assert len(acknowledged) > 5
    assert acknowledged <= made_keys(node)
    node.terminate()


def test_a_disk_that_cannot_be_written_is_one_sentence_and_exit_code_2(
    tmp_path: Path, disk: SmallDisk
) -> None:
    used = disk.path / "used"
    used.mkdir()
    load_node_id(used)
    open_store(used / "log").close()
    disk.set_writable(is_writable=False)
    secret_file = str(tmp_path / "own" / "secret")
    for home in (used, disk.path / "new"):
        done = subprocess.run(
            [sys.executable, "-m", "exo", "--port=0", "--cluster-port=0", "--data-port=0", "--no-discovery"],
            env=os.environ | {"EXO_HOME": str(home), "EXO_HOST_SECRET_FILE": secret_file},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert f"{home}: Read-only file system" in done.stderr and "EXO_HOME" in done.stderr
        assert "Traceback" not in done.stderr
