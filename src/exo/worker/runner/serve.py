"""Serves requests with a loaded stage: links it to its neighbours, then turns between sockets and engine steps."""

import time
from collections.abc import Callable, Hashable

from loguru import logger

from exo.dataplane.codec import Payload
from exo.dataplane.errors import ProtocolError
from exo.dataplane.frames import Frame, Generate, ReplyTo
from exo.dataplane.handshake import REPLIES, REQUESTS, stage_purpose
from exo.engines.base import Stage
from exo.shared.types.ids import NodeId
from exo.worker.runner.control import Control
from exo.worker.runner.first import FirstStage
from exo.worker.runner.following import FollowingStage
from exo.worker.runner.messages import (
    LinkPeers,
    RunnerReady,
    RunnerSpec,
    StopRunner,
    TrustChanged,
    WorkAdvised,
)
from exo.worker.runner.network import Connection, Network
from exo.worker.runner.role import Role, StageBrokenError
from exo.worker.runner.tempo import Tempo, prefill_share

LINK_TIMEOUT_S = 60.0
"""From the order to link to all neighbours being there: nodes hear of it at different times."""
FLUSH_TIMEOUT_S = 0.5
STOP_GRACE_S = 2.0
"""From the order to stop to the end: for the step that runs, and for telling whoever waits."""


class StageServer:
    """The whole of a stage process once its layers are loaded. Also the roles' `Outbox`.

    Args:
        spec: What this process serves.
        stage: Loaded layers.
        network: Listening.
        control: The line to the parent.
        clock: Monotonic seconds, for how long steps and rests take.
    """

    def __init__(
        self,
        spec: RunnerSpec,
        stage: Stage,
        network: Network,
        control: Control,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._tempo = Tempo()
        self._network = network
        self._control = control
        self._role: Role = (
            FirstStage(spec, stage, self) if spec.rank == 0 else FollowingStage(spec, stage, self)
        )
        self._previous_purpose: str | None = None
        if spec.stage_count > 1:
            rank = (spec.rank - 1) % spec.stage_count
            self._previous_purpose = stage_purpose(spec.instance_id, spec.generation, rank)
        self._previous: Connection | None = None
        self._next: Connection | None = None
        self._replies: dict[ReplyTo, Connection] = {}
        self._link_deadline: float | None = None
        self._is_linked = False
        self._is_ready = False
        network.on_frame = self._frame_received
        network.on_open = self._opened
        network.on_lost = self._lost
        network.watch_wakeups(control.wakeups)
        control.stop_grace_s = STOP_GRACE_S
        control.ledger = self._role.ledger

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            StageBrokenError: A neighbour is lost, or the engine cannot go on; all requests have been told.
        """
        try:
            while self.turn():
                pass
        except StageBrokenError as error:
            self._role.fail_all("stage_failed", error.message)
            self._network.flush(FLUSH_TIMEOUT_S)
            raise
        self._role.fail_all("stopped", "the model is being stopped or moved; try again")
        self._network.flush(FLUSH_TIMEOUT_S)

    def turn(self) -> bool:
        """Follow orders, let the sockets have their turn, then the engine: one step. Return False when told to stop.

        Raises:
            StageBrokenError: As `run`.
        """
        if not self._follow_orders():
            return False
        self._turn()
        return True

    def _turn(self) -> None:
        role, control, tempo = self._role, self._control, self._tempo
        self._network.poll(self._until_next_step())
        # Whoever rests is alive: the sockets are served, and no step is under way that could take too long.
        if role.has_work and tempo.rest_s(began_at := self._clock()) == 0:
            control.step_began_at = began_at
            role.step()
            control.step_began_at = None
            tempo.worked(began_at, self._clock())
            control.busy_s = tempo.busy_s
        control.requests_active = role.active_count
        control.tokens_total = role.tokens_total
        if self._link_deadline is not None and time.monotonic() >= self._link_deadline:
            raise StageBrokenError(self._who_is_missing())

    def _until_next_step(self) -> float | None:
        """Return how long the sockets may take: an order ends the wait in any case."""
        idle_s = self._idle_timeout()
        rest_s = self._tempo.rest_s(self._clock()) if self._role.has_work else None
        if rest_s is None or idle_s is None:
            return idle_s if rest_s is None else rest_s
        return min(rest_s, idle_s)

    def _idle_timeout(self) -> float | None:
        return None if self._link_deadline is None else max(0.0, self._link_deadline - time.monotonic())

    def _follow_orders(self) -> bool:
        while self._control.orders:
            order = self._control.orders.popleft()
            if isinstance(order, StopRunner):
                return False
            if isinstance(order, LinkPeers):
                self._link(order)
            if isinstance(order, TrustChanged):
                self._network.set_trust(order.trust)
            if isinstance(order, WorkAdvised):
                self._tempo.advise(order.fraction, self._clock())
                # Rests between steps let a device cool down and clock up: its usual pace is another one.
                self._role.ledger.is_open = not self._tempo.is_slowed
                self._role.slow_down(
                    may_run_ahead=not self._tempo.is_slowed, prefill_share=prefill_share(order.fraction)
                )
        return True

    # Neighbours.

    def _link(self, order: LinkPeers) -> None:
        if self._next is not None or self._is_ready:
            return
        spec = self._spec
        if len(order.addresses) != spec.stage_count:
            raise StageBrokenError(f"{len(order.addresses)} addresses came for {spec.stage_count} stages")
        if spec.stage_count > 1:
            self._link_deadline = time.monotonic() + LINK_TIMEOUT_S
            rank = (spec.rank + 1) % spec.stage_count
            self._next = self._network.dial(
                order.addresses[rank],
                stage_purpose(spec.instance_id, spec.generation, spec.rank),
                f"stage {rank} at {order.addresses[rank]}",
                node_id=self._node_of(rank),
            )
        self._become_ready()

    def _node_of(self, rank: int) -> NodeId | None:
        """Return where a stage runs by the plan."""
        known = self._spec.stage_node_ids
        return known[rank % self._spec.stage_count] if known else None

    def _become_ready(self) -> None:
        if self._spec.stage_count > 1 and not (self._previous and self._next and self._next.is_open):
            return
        if not self._is_linked:
            self._is_linked = True
            self._role.linked()
        if not self._role.is_paced:
            return
        self._link_deadline = None
        self._is_ready = True
        if isinstance(self._role, FirstStage):
            self._role.is_ready = True
        self._control.say(RunnerReady())

    def _who_is_missing(self) -> str:
        count = self._spec.stage_count
        missing = [
            f"stage {rank % count}"
            for rank, is_there in (
                (self._spec.rank - 1, self._previous is not None),
                (self._spec.rank + 1, self._next is not None and self._next.is_open),
            )
            if not is_there
        ]
        if not missing:
            return (
                f"stage {count - 1} is linked, but did not say within {LINK_TIMEOUT_S:g} s what it can take"
            )
        return f"no link to {' and '.join(missing)} within {LINK_TIMEOUT_S:g} s"

    # Sockets.

    def _opened(self, connection: Connection) -> None:
        if connection is self._next:
            self._become_ready()
        elif connection.is_dialled or connection.peer is None:
            return
        elif connection.peer.purpose == self._previous_purpose:
            if connection.node_id not in (None, self._node_of(self._spec.rank - 1)):
                self._network.lose(connection, f"the stage before this one is not on {connection.node_id}")
                return
            if self._previous is not None:
                raise StageBrokenError("the stage before this one connected twice")
            self._previous = connection
            if self._next is not None:
                self._become_ready()
        elif connection.peer.purpose != REQUESTS:
            # Such as a stage of an earlier generation that still knows this port.
            self._network.lose(connection, f"it came for {connection.peer.purpose}, which is not served here")

    def _frame_received(self, connection: Connection, frame: Frame, payload: Payload) -> None:
        if connection is self._previous:
            try:
                self._role.from_previous(frame, payload)
            except ProtocolError as error:
                raise StageBrokenError(error.message) from error
            if self._next is not None and not self._is_ready:
                self._become_ready()
        elif not connection.is_dialled:
            if isinstance(frame, Generate) and connection.node_id not in (None, frame.reply_to.node_id):
                raise ProtocolError(f"{connection.node_id} asks for tokens on behalf of another node")
            self._role.from_client(connection, frame)

    def _lost(self, connection: Connection, reason: str) -> None:
        if connection is self._next or connection is self._previous:
            count = self._spec.stage_count
            rank = (self._spec.rank + (1 if connection is self._next else -1)) % count
            what = "was lost" if connection.is_open else "cannot be reached"
            raise StageBrokenError(f"stage {rank}, a neighbour of this one, {what}: {reason}")
        for reply_to, reply in list(self._replies.items()):
            if reply is connection:
                del self._replies[reply_to]
                logger.info("no way for tokens to {}: {}", reply_to, reason)
                self._role.reply_lost(reply_to, reason)
                return
        self._role.client_lost(connection)

    # The roles' outbox.

    def to_client(self, client: Hashable, frame: Frame) -> None:
        """See `Outbox`."""
        assert isinstance(client, Connection)
        client.send(frame)

    def to_reply(self, reply_to: ReplyTo, frame: Frame) -> None:
        """See `Outbox`."""
        connection = self._replies.get(reply_to)
        if connection is None:
            connection = self._replies[reply_to] = self._network.dial(
                reply_to.address, REPLIES, f"the API node at {reply_to}", node_id=reply_to.node_id
            )
        connection.send(frame)

    def to_next(self, frame: Frame, payload: bytes | memoryview = b"") -> None:
        """See `Outbox`."""
        assert self._next is not None
        self._next.send(frame, payload)

    def hold_previous(self, is_held: bool) -> None:
        """See `Outbox`."""
        if self._previous is not None:
            self._previous.read_or_pause(not is_held)

    @property
    def next_backlog_bytes(self) -> int:
        """See `Outbox`."""
        return 0 if self._next is None else self._next.backlog_bytes
