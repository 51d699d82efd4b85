"""A coordinator of one node in memory: what is proposed is committed and folded at once."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import anyio

from exo.cluster.coordinator import CommandHandler, Coordinator, CountedKind, Leadership
from exo.cluster.facts import PeerSeen
from exo.shared.apply import apply_entry, apply_telemetry
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import Decision, LogEntry, Telemetry, TelemetryFrame
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import State


class MemoryCoordinator(Coordinator):
    """Leads unless `has_master` is set to False; then proposals and commands fail as without a master."""

    def __init__(self, node_id: NodeId, state: State) -> None:
        self._node_id = node_id
        self._state = state
        self._changed = anyio.Event()
        self._handler: CommandHandler | None = None
        self._telemetry_seq = 0
        self.has_master = True
        self.proposed: list[Decision] = []
        self.forgotten: list[tuple[NodeId, ...]] = []
        self.published: list[Telemetry] = []
        self.history: list[LogEntry | TelemetryFrame] = []
        self.peers: Sequence[PeerSeen] = ()
        self.counted: Mapping[CountedKind, Mapping[str, int]] = {}
        self.on_propose: Callable[[Sequence[Decision]], None] = lambda _: None

    @property
    def node_id(self) -> NodeId:
        return self._node_id

    @property
    def state(self) -> State:
        return self._state

    @property
    def leadership(self) -> Leadership:
        master = self._node_id if self.has_master else None
        return Leadership(
            master_node_id=master, term=self._state.term, incarnation=1, is_self=self.has_master
        )

    @property
    def counts(self) -> Mapping[CountedKind, Mapping[str, int]]:
        return self.counted

    @property
    def peers_seen(self) -> Sequence[PeerSeen]:
        return self.peers

    def set_state(self, state: State) -> None:
        """Replace the state, as if others had decided something."""
        self._state = state
        self._changed.set()
        self._changed = anyio.Event()

    async def propose(self, events: Sequence[Decision], *, cause_id: str) -> int:
        if not self.has_master:
            raise NoMasterError("there is no master")
        await anyio.lowlevel.checkpoint()
        state = self._state
        for event in events:
            entry = LogEntry(
                index=state.index + 1,
                term=max(1, state.term),
                event_id=EventId(f"event-{state.index + 1}"),
                cause_id=cause_id,
                origin=self._node_id,
                seq=state.last_seq.get(self._node_id, 0) + 1,
                at="2026-01-01T00:00:00Z",
                event=event,
            )
            state = apply_entry(state, entry)
            self.history.append(entry)
        self.proposed.extend(events)
        self.on_propose(events)
        self.set_state(state)
        return state.index

    async def send(self, command: Command, *, timeout_s: float) -> Reply:
        if not self.has_master or self._handler is None:
            raise NoMasterError("there is no master")
        with anyio.fail_after(timeout_s):
            return await self._handler(command)

    async def confirm(self, *, timeout_s: float) -> int:
        if not self.has_master:
            raise NoMasterError("there is no master")
        return self._state.index

    async def forget(self, node_ids: Sequence[NodeId]) -> int:
        self.forgotten.append(tuple(node_ids))
        return self._state.index + 1

    def set_command_handler(self, handler: CommandHandler) -> None:
        self._handler = handler

    def publish(self, events: Sequence[Telemetry]) -> None:
        self.published.extend(events)
        node = self._state.nodes.get(self._node_id)
        if node is None:
            return
        self._telemetry_seq += 1
        frame = TelemetryFrame(
            node_id=self._node_id,
            boot_id=node.identity.boot_id,
            seq=self._telemetry_seq,
            events=tuple(events),
        )
        self.history.append(frame)
        self.set_state(apply_telemetry(self._state, frame))

    async def changes(self) -> AsyncIterator[State]:
        while True:
            changed, state = self._changed, self._state
            yield state
            if state is self._state:
                await changed.wait()

    async def feed(self, after_index: int | None = None) -> AsyncIterator[LogEntry | TelemetryFrame]:
        position = len(self.history) if after_index is None else 0
        while True:
            changed = self._changed
            while position < len(self.history):
                item = self.history[position]
                position += 1
                if isinstance(item, TelemetryFrame) or item.index > (after_index or 0):
                    yield item
            await changed.wait()
