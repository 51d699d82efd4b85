"""The stage process's line to its parent: orders in, reports and heartbeats out, from a thread of its own.

The main thread may be inside the engine for as long as a step takes. This thread sleeps meanwhile, beats once a
second, and sees to it that an order to stop, a signal or the parent's death ends the process in any case.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from types import FrameType

from exo.worker.runner.messages import FromChild, Heartbeat, StopRunner, ToChild
from exo.worker.runner.pipes import MessageDecoder, PipeError, encode_message
from exo.worker.runner.steps import StepLedger


class Control(threading.Thread):
    """Started by the main thread, which takes orders from `orders` whenever `wakeups` can be read.

    Args:
        orders_fd: Where the parent's messages come from.
        reports_fd: Where messages to the parent go.
        heartbeat_interval_s: Time between two heartbeats.
    """

    def __init__(self, orders_fd: int, reports_fd: int, *, heartbeat_interval_s: float) -> None:
        super().__init__(name="control", daemon=True)
        self.orders: deque[ToChild] = deque()
        self.wakeups, self._wake = socket.socketpair()
        self.wakeups.setblocking(False)
        self._wake.setblocking(False)
        self.step_began_at: float | None = None
        """Set by the main thread while the engine runs, on the monotonic clock."""
        self.stop_grace_s = 0.0
        """How long the main thread has, after an order to stop, to come out of the engine and take its leave."""
        self.requests_active = 0
        self.tokens_total = 0
        self.busy_s = 0.0
        self.ledger: StepLedger | None = None
        """Emptied with each heartbeat, as soon as there is one."""
        self._orders_fd = orders_fd
        self._reports_fd = reports_fd
        self._interval_s = heartbeat_interval_s
        self._decoder = MessageDecoder.of_parent()
        self._lock = threading.Lock()
        self._must_end_at: float | None = None
        self._signals, self._signalled = socket.socketpair()
        self._signals.setblocking(False)
        self._signalled.setblocking(False)

    def take_signals(self) -> None:
        """Make SIGTERM mean `StopRunner`, even while the main thread is inside the engine. Main thread only."""
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, _leave_it_to_the_thread)
        # Ctrl-C in a terminal is for the parent, which then stops its children in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say(self, message: FromChild) -> None:
        """Send a message to the parent; ends the process when there is no parent any more."""
        data = memoryview(encode_message(message))
        try:
            with self._lock:
                while data:
                    data = data[os.write(self._reports_fd, data) :]
        except OSError:
            os._exit(0)

    def run(self) -> None:
        """Sleep, listen and beat until the process ends."""
        next_beat_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_beat_at:
                self._beat(now)
                next_beat_at = now + self._interval_s
            if self._must_end_at is not None and now >= self._must_end_at:
                os._exit(0)
            wake_at = next_beat_at if self._must_end_at is None else min(next_beat_at, self._must_end_at)
            readable, _, _ = select.select([self._orders_fd, self._signals], [], [], max(0.0, wake_at - now))
            if self._signals in readable:
                self._signals.recv(4096)
                self._order(StopRunner())
            if self._orders_fd in readable:
                self._listen()

    def _listen(self) -> None:
        try:
            data = os.read(self._orders_fd, 65536)
        except OSError:
            data = b""
        if not data:
            os._exit(0)  # The parent is gone; nobody is left to serve.
        try:
            for order in self._decoder.feed(data):
                self._order(order)
        except PipeError:
            os._exit(1)

    def _order(self, order: ToChild) -> None:
        if isinstance(order, StopRunner) and self._must_end_at is None:
            self._must_end_at = time.monotonic() + self.stop_grace_s
        self.orders.append(order)
        with contextlib.suppress(BlockingIOError):  # Then a wake-up is waiting already.
            self._wake.send(b"!")

    def _beat(self, now: float) -> None:
        began_at = self.step_began_at
        self.say(
            Heartbeat(
                step_running_s=0.0 if began_at is None else max(0.0, now - began_at),
                requests_active=self.requests_active,
                tokens_total=self.tokens_total,
                busy_s=self.busy_s,
                steps=None if self.ledger is None else self.ledger.take(),
            )
        )


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Do nothing here: the byte that the signal writes wakes the control thread."""
