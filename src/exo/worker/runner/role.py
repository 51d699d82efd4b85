"""What a stage does with frames and steps, as its process sees it. Roles neither wait nor touch a socket."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Protocol

from exo.dataplane.codec import Payload
from exo.dataplane.errors import ProtocolError
from exo.dataplane.frames import Frame, ReplyTo
from exo.shared.errors import ExoError
from exo.worker.runner.steps import StepLedger

STEP_FAILURES_MAX = 3
"""After this many failed steps with none between that worked, the stage is taken for broken."""


class StageBrokenError(ExoError):
    """Raised when a stage must not go on: memory ran out, its engine fails again and again, or a peer is confused."""


class Outbox(Protocol):
    """Where a role's frames go. Nothing here waits."""

    def to_client(self, client: Hashable, frame: Frame) -> None:
        """Send to an API node on the connection its request came by; without effect when that is gone."""
        ...

    def to_reply(self, reply_to: ReplyTo, frame: Frame) -> None:
        """Send to where an API node takes tokens."""
        ...

    def to_next(self, frame: Frame, payload: bytes | memoryview = b"") -> None:
        """Send to the stage behind this one; behind the last one is the first."""
        ...

    def hold_previous(self, is_held: bool) -> None:
        """Stop or go on taking frames from the stage before this one."""
        ...

    @property
    def next_backlog_bytes(self) -> int:
        """What the stage behind this one has not taken yet."""
        ...


class Role(ABC):
    """One stage's part in serving requests. Frames come in, `step` runs the engine once, frames go out."""

    tokens_total: int = 0
    """Tokens this stage had a part in, for telemetry."""

    def __init__(self) -> None:
        self.ledger = StepLedger()
        """What its decoding steps take."""

    @property
    @abstractmethod
    def active_count(self) -> int:
        """How many requests it works on or keeps waiting."""

    @property
    @abstractmethod
    def is_paced(self) -> bool:
        """Whether it knows all that it has to know of the other stages before requests may come."""

    @abstractmethod
    def linked(self) -> None:
        """Take notice that the neighbours are there: frames can be sent."""

    @abstractmethod
    def slow_down(self, *, may_run_ahead: bool, prefill_share: float) -> None:
        """Take notice of whether steps may follow on each other at once.

        Args:
            may_run_ahead: Whether the engine may begin with a step before it is asked to: not while rests count.
            prefill_share: How much of the usual number of positions a step of a prompt may have.
        """

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether `step` would do something."""

    @abstractmethod
    def step(self) -> None:
        """Run the engine once for the request whose turn it is.

        Raises:
            StageBrokenError: The stage must not go on.
        """

    @abstractmethod
    def from_previous(self, frame: Frame, payload: Payload) -> None:
        """Take a frame from the stage before this one.

        Raises:
            ProtocolError: It has no place here.
            StageBrokenError: The stage must not go on.
        """

    def from_client(self, client: Hashable, frame: Frame) -> None:
        """Take a frame from an API node. Only first stages get any."""
        raise ProtocolError(f"{type(frame).__name__} was sent to a stage that is not the first one")

    @abstractmethod
    def client_lost(self, client: Hashable) -> None:
        """Take notice that an API node's connection is gone: nobody waits for its requests any more."""

    @abstractmethod
    def reply_lost(self, reply_to: ReplyTo, reason: str) -> None:
        """Take notice that tokens can no longer be sent there."""

    @abstractmethod
    def fail_all(self, code: str, message: str) -> None:
        """End every request with an error that another try may not meet."""


class StepFailures:
    """Tells a request that fails from a stage that is broken."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def worked(self) -> None:
        """A step went well."""
        self._in_a_row = 0

    def failed(self, error: Exception) -> None:
        """A step failed.

        Raises:
            StageBrokenError: Memory ran out, or this has happened too often.
        """
        self._in_a_row += 1
        if is_memory_error(error):
            raise StageBrokenError(f"memory ran out: {error}") from error
        if self._in_a_row >= STEP_FAILURES_MAX:
            raise StageBrokenError(f"{self._in_a_row} steps in a row failed: {error}") from error


def is_memory_error(error: Exception) -> bool:
    """Say whether an engine's error means that memory ran out; engines say so in words only."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "unable to allocate", "bad_alloc", "insufficient memory")
    )
