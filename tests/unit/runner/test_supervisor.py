"""The supervisor against processes that misbehave in every way: the reason is told and nothing is left behind."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from exo.dataplane.identity import DataIdentity, DataTrust
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.messages import (
    FromChild,
    Heartbeat,
    ProcessEnding,
    RunnerFailed,
    RunnerReady,
    RunnerSpec,
)
from exo.worker.runner.supervisor import RunnerTimeouts, StageRunner

QUICK = RunnerTimeouts(first_word_s=10, heartbeat_s=0.4, step_s=5, load_s=10, stop_s=0.3)

SPEC = RunnerSpec(
    node_id=NodeId("n"),
    instance_id=InstanceId("i"),
    generation=1,
    rank=2,
    stage_count=3,
    engine="scripted",
    model_id="m",
    model_dir="/none",
    start_layer=0,
    end_layer=1,
    device="cpu:0",
    context_length=10,
    concurrency=1,
    data_host="127.0.0.1",
    secret=b"",
)

PRELUDE = """
import os, sys, time, signal
sys.path.insert(0, {source!r})
from exo.worker.runner.messages import *
from exo.worker.runner.pipes import *
def say(message):
    os.write(1, encode_message(message))
def beat(step=0.0):
    say(Heartbeat(step_running_s=step, requests_active=0, tokens_total=0))
orders = MessageDecoder.of_parent()
def hear():
    while not (got := orders.feed(os.read(0, 65536))):
        pass
    return got
heard = hear()
spec = heard.pop(0)
"""
SOURCE = str(Path(__file__).parents[3] / "src")


class Watched:
    """A runner, what it said, and its task."""

    def __init__(self, script: str, timeouts: RunnerTimeouts = QUICK) -> None:
        code = PRELUDE.format(source=SOURCE) + script
        self.runner = StageRunner(SPEC, timeouts=timeouts, command=(sys.executable, "-c", code))
        self.messages: list[FromChild] = []
        self.changed = asyncio.Event()
        self.task = asyncio.create_task(self.runner.run(self._heard))

    def _heard(self, message: FromChild) -> None:
        self.messages.append(message)
        self.changed.set()

    async def wait_for(self, wanted: Callable[[FromChild], bool]) -> FromChild:
        async with asyncio.timeout(20):
            while not (found := [message for message in self.messages if wanted(message)]):
                self.changed.clear()
                await self.changed.wait()
        return found[0]

    async def failure(self) -> RunnerFailed:
        async with asyncio.timeout(20):
            await self.task
        last = self.messages[-1]
        assert isinstance(last, RunnerFailed)
        assert sum(isinstance(message, RunnerFailed) for message in self.messages) == 1
        assert self.runner.pid is None
        return last


async def test_a_process_that_ends_is_told_with_its_last_lines() -> None:
    failed = await Watched("print('first line', 'second', sep='\\n', file=sys.stderr); sys.exit(7)").failure()
    assert "stage 2 of i ended with exit code 7" in failed.reason
    assert "first line | second" in failed.reason
    assert not failed.is_permanent
    assert failed.ending == ProcessEnding(exit_code=7, is_hung=False, last_words="first line\nsecond")


async def test_a_process_that_is_killed_is_told_with_the_signal() -> None:
    failed = await Watched("os.kill(os.getpid(), signal.SIGKILL)").failure()
    assert "was killed by SIGKILL" in failed.reason
    assert failed.ending == ProcessEnding(exit_code=-signal.SIGKILL, is_hung=False, last_words="")


async def test_its_own_reason_counts_more() -> None:
    failed = await Watched(
        "say(RunnerFailed(reason='the file is truncated', is_permanent=True)); sys.exit(1)"
    ).failure()
    assert failed == RunnerFailed(reason="the file is truncated", is_permanent=True)


async def test_messages_come_in_order() -> None:
    watched = Watched("beat(); say(RunnerReady()); sys.exit(0)")
    await watched.failure()
    assert [type(message) for message in watched.messages] == [Heartbeat, RunnerReady, RunnerFailed]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("beat(); time.sleep(60)", "has not been heard of"),
        ("beat(); os.kill(os.getpid(), signal.SIGSTOP)", "has not been heard of"),
        ("beat(step=6.0); time.sleep(60)", "a step of the engine has been running for 6 s"),
        ("os.write(1, b'Hello, world! This is a print.'); time.sleep(60)", "at most"),
        ("os.write(1, b'\\0\\0\\0\\3abc'); time.sleep(60)", "no message"),
        ("beat(); os.close(1); time.sleep(60)", "closed its pipe|has not been heard of"),
    ],
)
async def test_a_process_that_hangs_is_ended(script: str, said: str) -> None:
    watched = Watched(script)
    failed = await watched.failure()
    assert re.search(said, failed.reason), failed.reason
    assert failed.ending is not None and failed.ending.is_hung


async def test_a_process_that_never_says_a_word_is_ended() -> None:
    limits = RunnerTimeouts(first_word_s=0.3, heartbeat_s=30, step_s=30, load_s=30, stop_s=1)
    failed = await Watched("time.sleep(60)", limits).failure()
    assert "has not been heard of" in failed.reason


async def test_loading_that_does_not_get_on_is_ended() -> None:
    limits = RunnerTimeouts(first_word_s=30, heartbeat_s=30, step_s=30, load_s=0.3, stop_s=1)
    failed = await Watched("while True: beat(); time.sleep(0.05)", limits).failure()
    assert "loading has not got on" in failed.reason


async def test_a_node_that_was_held_up_itself_blames_nobody() -> None:
    watched = Watched("while True: beat(); time.sleep(0.05)")
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    time.sleep(1.0)  # noqa: ASYNC251 - it is the point to block the loop
    seen = len(watched.messages)
    await watched.wait_for(lambda _: len(watched.messages) > seen + 20)
    assert not any(isinstance(message, RunnerFailed) for message in watched.messages)
    await watched.runner.stop()
    await watched.task


async def test_a_program_that_is_not_there() -> None:
    runner = StageRunner(SPEC, command=("/no/such/program",))
    heard: list[FromChild] = []
    await runner.run(heard.append)
    (failed,) = heard
    assert isinstance(failed, RunnerFailed)
    assert "cannot be started" in failed.reason


async def test_links_reach_it_even_when_told_early() -> None:
    watched = Watched(
        "links = (heard or hear())[0]\nsay(LoadProgressed(loaded_layers=1, total_layers=1, "
        "detail=str(links.addresses[1])))\ntime.sleep(60)"
    )
    watched.runner.link([HostPort("127.0.0.1", 1), HostPort("127.0.0.1", 2)])
    message = await watched.wait_for(lambda _: True)
    assert getattr(message, "detail", None) == "127.0.0.1:2"
    await watched.runner.stop()
    await watched.task


async def test_stopping_is_quiet() -> None:
    watched = Watched("beat(); hear(); sys.exit(0)")
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    await watched.runner.stop()
    await watched.task
    assert not any(isinstance(message, RunnerFailed) for message in watched.messages)


@pytest.mark.parametrize(
    "script",
    [
        "beat()\nwhile True: time.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nbeat()\nwhile True: time.sleep(60)",
    ],
)
async def test_a_process_that_does_not_stop_is_ended(script: str) -> None:
    watched = Watched(script, RunnerTimeouts(heartbeat_s=60, stop_s=0.2))
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    pid = watched.runner.pid
    assert pid is not None
    async with asyncio.timeout(10):
        await watched.runner.stop()
    await watched.task
    assert not psutil.pid_exists(pid)
    assert not any(isinstance(message, RunnerFailed) for message in watched.messages)


async def test_stopping_before_it_was_started_starts_nothing() -> None:
    runner = StageRunner(SPEC, command=(sys.executable, "-c", "raise SystemExit(3)"))
    await runner.stop()
    heard: list[FromChild] = []
    await runner.run(heard.append)
    assert heard == []


async def test_being_cancelled_leaves_nothing_behind() -> None:
    watched = Watched("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nbeat()\nwhile True: time.sleep(60)")
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    pid = watched.runner.pid
    assert pid is not None
    watched.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watched.task
    assert not psutil.pid_exists(pid)


async def test_one_that_obeys_no_signal_is_left_behind_when_the_node_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a process that is stuck in a driver. Here it is the signals that do not reach it."""
    watched = Watched("beat()\ntime.sleep(60)", RunnerTimeouts(heartbeat_s=60, kill_s=0.3))
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    pid = watched.runner.pid
    assert pid is not None
    with monkeypatch.context() as deaf:
        deaf.setattr(os, "killpg", lambda *_: None)
        watched.task.cancel()
        await asyncio.sleep(0)
        watched.task.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await watched.task
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)
    process = watched.runner._process  # pyright: ignore[reportPrivateUsage]
    assert process is not None and await process.wait() == -signal.SIGKILL


async def test_what_it_started_goes_with_it() -> None:
    watched = Watched(
        "import subprocess\nother = subprocess.Popen(['sleep', '60'])\n"
        "say(LoadProgressed(loaded_layers=other.pid, total_layers=0))\nhear()\ntime.sleep(60)"
    )
    message = await watched.wait_for(lambda _: True)
    grandchild = psutil.Process(getattr(message, "loaded_layers", 0))
    watched.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watched.task
    _, alive = psutil.wait_procs([grandchild], timeout=5)
    assert not alive or grandchild.status() == psutil.STATUS_ZOMBIE


async def test_endless_output_without_a_line_end_is_bounded() -> None:
    failed = await Watched("sys.stderr.write('x' * 300_000); sys.stderr.flush(); sys.exit(1)").failure()
    assert len(failed.reason) < 8 * 600


async def test_a_stopped_process_is_ended_by_stop() -> None:
    watched = Watched("beat()\ntime.sleep(60)", RunnerTimeouts(heartbeat_s=60, stop_s=0.2))
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    pid = watched.runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        await watched.runner.stop()
    await watched.task


async def test_how_much_to_work_reaches_a_process_before_and_while_it_runs() -> None:
    watched = Watched(
        """
beat()
while sum(isinstance(one, WorkAdvised) for one in heard) < 2:
    beat()
    heard += hear()
say(RunnerFailed(reason=str([one.fraction for one in heard if isinstance(one, WorkAdvised)])))
"""
    )
    watched.runner.set_work(0.0)
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    watched.runner.set_work(0.5)
    assert (await watched.failure()).reason == "[0.0, 0.5]"


async def test_whom_to_trust_reaches_a_process_before_and_while_it_runs() -> None:
    identity = DataIdentity(certificate_file="/c.pem", key_file="/c.key", authority_pem="CA")
    trusts = [DataTrust(identity=identity), DataTrust(removed_node_ids=frozenset({NodeId("gone")}))]
    watched = Watched(
        """
beat()
while sum(isinstance(one, TrustChanged) for one in heard) < 2:
    beat()
    heard += hear()
told = [one.trust for one in heard if isinstance(one, TrustChanged)]
say(RunnerFailed(reason=f"{told[0].identity.key_file} {sorted(told[1].removed_node_ids)}"))
"""
    )
    watched.runner.set_trust(trusts[0])
    await watched.wait_for(lambda message: isinstance(message, Heartbeat))
    watched.runner.set_trust(trusts[1])
    assert (await watched.failure()).reason == "/c.key ['gone']"
