"""Runs a stage process from the node's side: starts it, listens to it, notices when it dies or hangs, ends it."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

import anyio
import msgspec
from loguru import logger

from exo.dataplane.identity import DataTrust
from exo.shared.types.nodes import HostPort
from exo.worker.runner.environment import private_scratch_dir, stage_environment
from exo.worker.runner.messages import (
    FromChild,
    Heartbeat,
    LinkPeers,
    LoadProgressed,
    ProcessEnding,
    RunnerFailed,
    RunnerLoaded,
    RunnerSpec,
    StopRunner,
    ToChild,
    TrustChanged,
    WorkAdvised,
)
from exo.worker.runner.pipes import MessageDecoder, PipeError, encode_message

STAGE_COMMAND = (sys.executable, "-P", "-m", "exo.worker.runner.child")
STDERR_LINES_KEPT = 8
LINE_CHARACTERS_MAX = 500
PIPE_END_GRACE_S = 1.0
"""From the pipe's end to the process's own, which follows it unless something is wrong."""


class RunnerTimeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a stage process may be silent. Generous: a tight limit misfires on a loaded machine."""

    first_word_s: float = 60.0
    """From the start to the first heartbeat."""
    heartbeat_s: float = 20.0
    """Between two heartbeats."""
    step_s: float = 120.0
    """One step of the engine."""
    load_s: float = 300.0
    """Between two words on how loading goes."""
    stop_s: float = 3.0
    """From the order to stop to SIGTERM, and from there to SIGKILL."""
    kill_s: float = 3.0
    """From SIGKILL to leaving it behind when the node itself ends: what is stuck in a driver obeys no signal."""


class StageRunner:
    """One stage process. `run` it once, in a task that is held; the other methods may be called meanwhile.

    Args:
        spec: What it is to load and serve.
        timeouts: How long it may be silent.
        command: The program; it gets this process's id as its last argument.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        *,
        timeouts: RunnerTimeouts | None = None,
        command: Sequence[str] = STAGE_COMMAND,
    ) -> None:
        self._spec = spec
        self._command = command
        self._timeouts = timeouts or RunnerTimeouts()
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._failure: RunnerFailed | None = None
        self._killed_because: str | None = None
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._links: LinkPeers | None = None
        self._trust: TrustChanged | None = None
        self._work: WorkAdvised | None = None
        self._heard_at = 0.0
        self._progressed_at = 0.0
        self._has_beaten = False
        self._is_loaded = False
        self._name = f"stage {spec.rank} of {spec.instance_id}"

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return None if self._process is None or self._has_ended.is_set() else self._process.pid

    async def run(self, on_message: Callable[[FromChild], None]) -> None:
        """Start the process and stay until it has ended, by itself, by `stop` or by being cancelled.

        Args:
            on_message: Gets every message; must not wait. The last one is `RunnerFailed` unless `stop` was called.
        """
        try:
            if not self._is_stopping.is_set():
                await self._run(on_message)
        finally:
            try:
                await self._make_sure_it_is_gone()
            finally:
                self._has_ended.set()
        if not self._is_stopping.is_set():
            on_message(
                self._failure or RunnerFailed(reason=self._why_it_ended(), ending=self._how_it_ended())
            )

    async def _run(self, on_message: Callable[[FromChild], None]) -> None:
        environment = stage_environment(
            os.environ,
            engine=self._spec.engine,
            device=self._spec.device,
            scratch_dir=private_scratch_dir(),
        )
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                str(os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            self._failure = RunnerFailed(reason=f"the stage's process cannot be started: {error}")
            return
        self._heard_at = self._progressed_at = time.monotonic()
        self._send(self._spec)
        if self._trust is not None:
            self._send(self._trust)
        if self._work is not None:
            self._send(self._work)
        if self._links is not None:
            self._send(self._links)
        if self._is_stopping.is_set():
            self._send(StopRunner())
        async with asyncio.TaskGroup() as tasks:
            readers = [
                tasks.create_task(self._read_messages(process, on_message)),
                tasks.create_task(self._read_stderr(process)),
            ]
            watch = tasks.create_task(self._watch(process))
            await process.wait()
            watch.cancel()
            # What it said last is still in the pipes; a process of its own making may keep them open.
            _, late = await asyncio.wait(readers, timeout=PIPE_END_GRACE_S)
            for reader in late:
                reader.cancel()

    def link(self, addresses: Sequence[HostPort]) -> None:
        """Tell it where all stages of its generation listen, by rank."""
        self._links = LinkPeers(addresses=tuple(addresses))
        self._send(self._links)

    def set_trust(self, trust: DataTrust) -> None:
        """Tell it what to show to other hosts from now on, and who is not let in."""
        self._trust = TrustChanged(trust=trust)
        self._send(self._trust)

    def set_work(self, fraction: float) -> None:
        """Tell it how much of the time to work from now on: 1 is all of it, 0 a pause. It stays alive all the same."""
        self._work = WorkAdvised(fraction=fraction)
        self._send(self._work)

    async def stop(self) -> None:
        """End the process: ask, then SIGTERM, then SIGKILL. Returns when it is gone; `run` has ended then too."""
        is_first = not self._is_stopping.is_set()
        self._is_stopping.set()
        if self._process is None:
            return
        if is_first:
            self._send(StopRunner())
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.stop_s):
                    await self._has_ended.wait()
                    return
            logger.warning("{} does not stop; sending {}", self._name, signal.Signals(signal_number).name)
            self._signal(signal_number)
        await self._has_ended.wait()

    # The process.

    def _send(self, message: ToChild) -> None:
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            # A process that has just died takes nothing; its end is noticed elsewhere.
            with contextlib.suppress(OSError, RuntimeError):
                process.stdin.write(encode_message(message))

    def _signal(self, signal_number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)

    def _kill(self, reason: str) -> None:
        if self._killed_because is None:
            logger.warning("{}: {}; ending its process", self._name, reason)
            self._killed_because = reason
            self._signal(signal.SIGKILL)

    async def _make_sure_it_is_gone(self) -> None:
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGKILL)
        # SIGKILL is obeyed at once, and being cancelled has to wait for it: no process may be left behind. But one that
        # is stuck in the kernel ends with what it waits for, and no node can wait for that in order to end.
        cancelled: asyncio.CancelledError | None = None
        ends_s = time.monotonic() + self._timeouts.kill_s
        with anyio.CancelScope(shield=True):
            waiting = asyncio.ensure_future(process.wait())
            while not waiting.done() and (left_s := ends_s - time.monotonic()) > 0:
                try:
                    await asyncio.wait([waiting], timeout=left_s)
                except asyncio.CancelledError as error:
                    cancelled = error
            if not waiting.done():
                waiting.cancel()
                logger.error(
                    "{}: its process {} does not end, not even by SIGKILL; it is left behind, and ends when its "
                    "device's driver lets go of it",
                    self._name,
                    process.pid,
                )
        if process.stdin is not None:
            process.stdin.close()
        if cancelled is not None:
            raise cancelled

    async def _read_messages(
        self, process: asyncio.subprocess.Process, on_message: Callable[[FromChild], None]
    ) -> None:
        assert process.stdout is not None
        decoder = MessageDecoder.of_child()
        while data := await process.stdout.read(65536):
            try:
                for message in decoder.feed(data):
                    self._heard(message, on_message)
            except PipeError as error:
                self._kill(f"it sent {error.message}")
                return
        # The pipe is its only way to speak: without it the process is as good as dead.
        try:
            async with asyncio.timeout(PIPE_END_GRACE_S):
                await process.wait()
        except TimeoutError:
            self._kill("it closed its pipe without ending")

    def _heard(self, message: FromChild, on_message: Callable[[FromChild], None]) -> None:
        self._heard_at = time.monotonic()
        match message:
            case Heartbeat():
                self._has_beaten = True
                if message.step_running_s > self._timeouts.step_s:
                    self._kill(
                        f"a step of the engine has been running for {message.step_running_s:.0f} s, "
                        f"more than the {self._timeouts.step_s:g} s allowed"
                    )
                    return
            case LoadProgressed():
                self._progressed_at = self._heard_at
            case RunnerLoaded():
                self._is_loaded = True
            case RunnerFailed():
                self._failure = message
                return
            case _:
                pass
        on_message(message)

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        rest = b""
        while data := await process.stderr.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._stderr_line(line)
            if len(rest) > LINE_CHARACTERS_MAX * 8:
                self._stderr_line(rest)
                rest = b""
        if rest:
            self._stderr_line(rest)

    def _stderr_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:LINE_CHARACTERS_MAX]
        if text:
            self._stderr_lines.append(text)
            logger.debug("{}: {}", self._name, text)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        limits = self._timeouts
        interval_s = min(limits.first_word_s, limits.heartbeat_s, limits.load_s) / 4
        while True:
            slept_from = time.monotonic()
            await asyncio.sleep(interval_s)
            now = time.monotonic()
            if now - slept_from > 2 * interval_s:
                # This process itself was held up or asleep: what the child said meanwhile is yet to be read.
                self._heard_at = self._progressed_at = now
                continue
            silent_s = now - self._heard_at
            if silent_s > (limits.heartbeat_s if self._has_beaten else limits.first_word_s):
                self._kill(f"its process has not been heard of for {silent_s:.1f} s")
            elif not self._is_loaded and now - self._progressed_at > limits.load_s:
                self._kill(f"loading has not got on for {limits.load_s:g} s")

    def _how_it_ended(self) -> ProcessEnding:
        return ProcessEnding(
            exit_code=None if self._process is None else self._process.returncode,
            is_hung=self._killed_because is not None,
            last_words="\n".join(self._stderr_lines),
        )

    def _why_it_ended(self) -> str:
        if self._killed_because is not None:
            return f"{self._name} hung: {self._killed_because}"
        code = None if self._process is None else self._process.returncode
        if code is not None and code < 0:
            try:
                how = f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                how = f"was killed by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        said = f"; it said last: {' | '.join(self._stderr_lines)}" if self._stderr_lines else ""
        return f"the process of {self._name} {how}{said}"
