"""Where commands leave the API: sent to the master, and written down with who asked and what came of it."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from exo.api.access_audit import AuditLog
from exo.api.access_callers import Caller, present_caller
from exo.api.access_gate import AccessRefused
from exo.api.metrics import ServiceMetrics
from exo.cluster.coordinator import Coordinator
from exo.shared.types import commands as c

NOTED_FIELDS: dict[type, tuple[str, ...]] = {
    c.DeleteInstance: ("instance_id",),
    c.CreateToken: ("token_id", "uses", "lifetime_s"),
    c.DeleteToken: ("token_id",),
    c.CreateKey: ("key_id", "name", "scopes", "lifetime_s"),
    c.DeleteKey: ("key_id",),
    c.EnrolNode: ("node_id", "name", "proof", "is_proven", "token_id", "fingerprint"),
    c.ApproveNode: ("node_id", "fingerprint"),
    c.DeclineNode: ("node_id", "reason"),
    c.RemoveNode: ("node_id", "reason"),
    c.ForgetNode: ("node_ids",),
}
"""What is written down of a command. What is not named here is not: no verifier, no hash, no prompt."""

FAILURES_NOTED_MAX = 60
"""Refused requests that are written down in a minute; the rest are counted."""
FAILURE_WINDOW_S = 60.0
FAILURE_KINDS_MAX = 1024


class CommandDesk:
    """Sends commands for whoever asks.

    Args:
        coordinator: Reaches the master.
        audit: Where it is written down.
        metrics: Counts what was refused, and times placements.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        audit: AuditLog,
        metrics: ServiceMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator = coordinator
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._noted: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._window_start_s = 0.0
        self._noted_count = 0
        self._left_out_count = 0

    async def send(self, command: c.Command, *, timeout_s: float, caller: Caller | None = None) -> c.Reply:
        """Have the master carry out a command; see `Coordinator.send`.

        Args:
            command: What is wanted.
            timeout_s: How long to wait.
            caller: Who asks, where that is not the present request's.

        Raises:
            NoMasterError: As `Coordinator.send`.
        """
        caller = caller or present_caller()
        begun_s = self._clock()
        try:
            reply = await self._coordinator.send(command, timeout_s=timeout_s)
        except BaseException as error:
            self._metrics.command_ended(command, None, self._clock() - begun_s)
            await self.note(command, caller, None, code=type(error).__name__)
            raise
        self._metrics.command_ended(command, reply, self._clock() - begun_s)
        if isinstance(command, c.EnrolNode) and isinstance(reply, c.Refusal):
            self._metrics.enrolments_refused.labels(reply.code).inc()
        await self.note(command, caller, reply)
        return reply

    async def note(
        self, command: c.Command, caller: Caller, reply: c.Reply | None, *, code: str | None = None
    ) -> None:
        """Write down a command and its answer; None where there was no answer."""
        if isinstance(command, c.Question):
            return  # A question: nothing is decided.
        if isinstance(command, c.EnrolNode) and isinstance(reply, c.Waiting) and not self._is_news(command):
            return  # It asks again every few seconds.
        if isinstance(reply, c.Refusal):
            # Strangers reach as far as this: what they make this node write is bounded.
            if isinstance(command, c.EnrolNode) and not self._is_noted((caller.address, reply.code)):
                self._left_out_count += 1
                return
            result, code = "refused", reply.code
        else:
            result = "unknown" if reply is None else "waiting" if isinstance(reply, c.Waiting) else "done"
        await self._audit.record(
            who=caller.label,
            address=caller.address,
            what=type(command).__name__,
            details=_details(command),
            result=result,
            index=getattr(reply, "index", None),
            code=code,
        )

    async def note_action(self, what: str, details: dict[str, Any], *, code: str | None = None) -> None:
        """Write down something that this node does itself, without the master; `code` says why it does not."""
        caller = present_caller()
        await self._audit.record(
            who=caller.label,
            address=caller.address,
            what=what,
            details=details,
            result="done" if code is None else "refused",
            code=code,
        )

    async def refused(self, refusal: AccessRefused, method: str, path: str) -> None:
        """Count a request that was not let in, and write it down unless the like of it was a moment ago."""
        self._metrics.authentication_failures.labels(refusal.code).inc()
        if not self._is_noted((refusal.who.address, refusal.code)):
            self._left_out_count += 1
            return
        details: dict[str, Any] = {"method": method, "path": path}
        if self._left_out_count:
            details["left_out_before"] = self._left_out_count
            self._left_out_count = 0
        await self._audit.record(
            who=refusal.who.label,
            address=refusal.who.address,
            what="request",
            details=details,
            result="refused",
            code=refusal.code,
        )

    def _is_news(self, command: c.EnrolNode) -> bool:
        return self._is_noted((command.node_id, command.fingerprint), window_s=3600.0, is_counted=False)

    def _is_noted(
        self, kind: tuple[str, str], *, window_s: float = FAILURE_WINDOW_S, is_counted: bool = True
    ) -> bool:
        """Say whether something is to be written down: once a minute of a kind, and not too many in all."""
        now_s = self._clock()
        last_s = self._noted.get(kind)
        if last_s is not None and now_s - last_s < window_s:
            return False
        if is_counted:
            if now_s - self._window_start_s >= FAILURE_WINDOW_S:
                self._window_start_s, self._noted_count = now_s, 0
            if self._noted_count >= FAILURES_NOTED_MAX:
                return False
            self._noted_count += 1
        self._noted[kind] = now_s
        self._noted.move_to_end(kind)
        while len(self._noted) > FAILURE_KINDS_MAX:
            self._noted.popitem(last=False)
        return True


def _details(command: c.Command) -> dict[str, Any]:
    if isinstance(command, c.PlaceInstance):
        return {"model_id": command.request.model_id, "reuse_existing": command.reuse_existing}
    details = {name: getattr(command, name) for name in NOTED_FIELDS.get(type(command), ())}
    if isinstance(command, c.CreateKey):
        limits = msgspec.structs.asdict(command.limits)
        details |= {name: value for name, value in limits.items() if value}
    return details
