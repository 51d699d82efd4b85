"""One thread for each device: it carries blocking calls out in order, and each has a deadline.

Calls into a driver can hang, and nothing can end them. So nobody waits longer than a call's deadline; from then on
everybody is refused at once, until the call returns after all.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from loguru import logger

from exo.gpu.countdown import Countdown
from exo.gpu.driver_call import DriverCall
from exo.gpu.errors import DeviceHangError

T = TypeVar("T")

_SOON_S = 0.01
"""Until the thread is looked at again, when it is between two calls."""


class DriverThread:
    """Runs one device's calls. Used from one event loop; the thread begins with the first call.

    It is a daemon: a call that never returns does not hold up the end of the process. There is never a second one.

    Args:
        name: The device, as in `cuda:0`: for messages.
        clock: Monotonic seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._jobs: SimpleQueue[DriverCall | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: DriverCall | None = None
        self._is_stopping = False
        self._backlog_s = 0.0

    @property
    def backlog_s(self) -> float:
        """The longest that everything asked for until now may take."""
        return self._backlog_s

    @property
    def hanging_s(self) -> float | None:
        """How long the call has been running that is past its deadline; None while all is well."""
        with self._lock:
            return self._hanging_s()

    async def call(
        self,
        function: Callable[[], T],
        *,
        doing: str,
        timeout_s: float,
        discard: Callable[[T], object] | None = None,
        is_never_skipped: bool = False,
    ) -> T:
        """Run a function on the thread, after all that was asked for before.

        Args:
            function: May block.
            doing: What it does, as in `reading its telemetry`.
            timeout_s: How long it may take once it runs.
            discard: Runs on the thread with a result that nobody waits for any more: the caller was cancelled, or
                the result came after the deadline.
            is_never_skipped: Run it even if the caller is cancelled, or refused, before its turn comes.

        Raises:
            DeviceHangError: It did not return in time; or one before it has not, then this one has not begun.
        """
        return await self.outcome(
            self.begin(
                function,
                doing=doing,
                timeout_s=timeout_s,
                discard=discard,
                is_never_skipped=is_never_skipped,
            )
        )

    def begin(
        self,
        function: Callable[[], object],
        *,
        doing: str,
        timeout_s: float,
        discard: Callable[[Any], object] | None = None,
        is_never_skipped: bool = False,
        together: Countdown | None = None,
    ) -> DriverCall:
        """Have a function run as `call` does; what came of it is in `is_done` and `outcome`.

        Args:
            together: Is told when it is over.

        Raises:
            DeviceHangError: A call before it has not returned in time.
        """
        job = DriverCall(
            function,
            doing=doing,
            timeout_s=timeout_s,
            discard=discard,
            is_never_skipped=is_never_skipped,
            loop=asyncio.get_running_loop(),
            together=together,
        )
        if not is_never_skipped:
            self.check()
        if together is not None:
            together.one_begins()
        self._put(job)
        return job

    def post(self, function: Callable[[], object], *, doing: str, timeout_s: float) -> None:
        """Have a function run in its turn, even after a hang, without waiting for it; a failure is only logged."""
        self._put(DriverCall(function, doing=doing, timeout_s=timeout_s, is_never_skipped=True))

    def check(self) -> None:
        """Raise `DeviceHangError` while a call hangs."""
        with self._lock:
            error = self._hang_error()
        if error is not None:
            raise error

    def stop(self) -> None:
        """End the thread once its calls are done. A later call starts it again."""
        with self._lock:
            if self._thread is not None and not self._is_stopping:
                self._is_stopping = True
                self._jobs.put(None)

    def _put(self, job: DriverCall) -> None:
        with self._lock:
            self._is_stopping = False
            job.has_waited = self._backlog_s > 0
            self._backlog_s += job.timeout_s
            self._jobs.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"exo {self.name}", daemon=True)
                self._thread.start()

    async def outcome(self, job: DriverCall) -> Any:
        """Return what came of a call, or raise it; once. If the caller is cancelled, the call is for nobody any more.

        Raises:
            DeviceHangError: It did not return in time; or one before it has not, then this one has not begun.
        """
        job.is_awaited = True
        try:
            while not job.is_done:
                job.changed.clear()
                remaining_s = self._remaining_s(job)
                if remaining_s <= 0:
                    with self._lock:
                        if not job.is_done and (error := self._hang_error()) is not None:
                            job.is_dropped = True
                            raise error
                if not job.is_done:
                    await _changed(job, max(remaining_s, 0))
        except asyncio.CancelledError:
            self.abandon(job)
            raise
        error, result = job.error, job.result
        job.error = job.result = None
        if error is None:
            return result
        try:
            raise error
        finally:
            del error, job  # Both are in the error's traceback, which would keep them alive.

    def abandon(self, job: DriverCall) -> None:
        """Take in that nobody waits for a call any more."""
        with self._lock:
            job.is_dropped = True
            is_late = job.is_done
        if is_late and job.error is None and job.discard is not None:
            self.post(partial(job.discard, job.result), doing=job.doing, timeout_s=job.timeout_s)

    def _remaining_s(self, job: DriverCall) -> float:
        """Until the running call's deadline."""
        with self._lock:
            running = self._running
            if running is None or running.started_at_s is None:
                # The next to run is this one, unless others were before it, of which nobody knows how long they take.
                return _SOON_S if job.has_waited else job.timeout_s
            return running.started_at_s + running.timeout_s - self._clock()

    def _hanging_s(self) -> float | None:
        running = self._running
        if running is None or running.started_at_s is None:
            return None
        lasted_s = self._clock() - running.started_at_s
        return lasted_s if lasted_s >= running.timeout_s else None

    def _hang_error(self) -> DeviceHangError | None:
        hanging_s = self._hanging_s()
        if hanging_s is None or self._running is None:
            return None
        return DeviceHangError(
            f"{self.name} has not answered for {hanging_s:.1f} s ({self._running.doing}): its driver hangs; "
            "it is used again when it answers, and if it does not, restart the machine"
        )

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                with self._lock:
                    if self._is_stopping and self._jobs.empty():
                        self._is_stopping = False
                        self._thread = None
                        return
                continue
            self._carry_out(job)
            job.leave_countdown()
            del job  # A result may be large, and the next call may be long in coming.

    def _carry_out(self, job: DriverCall) -> None:
        with self._lock:
            if job.is_dropped and not job.is_never_skipped:
                self._leave_locked(job)
                return
            job.started_at_s = self._clock()
            self._running = job
        if job.has_waited:
            job.notify()  # It was another call's deadline that its caller looked at.
        result: Any = None
        error: BaseException | None = None
        try:
            result = job.function()
        except BaseException as failure:
            error = failure
        if not self._finish(job, result, error):
            self._throw_away(job, result, error)
            self._leave(job)
        elif job.loop is None and error is not None:
            logger.debug("{}: {} failed: {}", self.name, job.doing, error)
        job.notify()

    def _finish(self, job: DriverCall, result: Any, error: BaseException | None) -> bool:
        """Hand the outcome over, unless nobody waits for it."""
        with self._lock:
            if job.is_dropped:
                return False
            job.result, job.error, job.is_done = result, error, True
            self._leave_locked(job)
            return True

    def _leave(self, job: DriverCall) -> None:
        with self._lock:
            self._leave_locked(job)

    def _leave_locked(self, job: DriverCall) -> None:
        self._running = None
        self._backlog_s = max(0.0, self._backlog_s - job.timeout_s)

    def _throw_away(self, job: DriverCall, result: Any, error: BaseException | None) -> None:
        if error is not None:
            logger.debug("{}: {} failed after its caller had gone: {}", self.name, job.doing, error)
        elif job.discard is not None:
            try:
                job.discard(result)
            except Exception as failure:
                logger.debug("{}: clearing up after {} failed: {}", self.name, job.doing, failure)


async def _changed(job: DriverCall, timeout_s: float) -> None:
    """Return when something happened to a call, or when the time is over. Cheaper than a cancel scope."""
    timer = asyncio.get_running_loop().call_later(timeout_s, job.changed.set)
    try:
        await job.changed.wait()
    finally:
        timer.cancel()
