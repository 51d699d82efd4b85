"""A coordinator that agrees with nobody: it holds a state that is set from outside, for measuring what reads it."""

from collections.abc import AsyncIterator, Sequence

import anyio

from exo.cluster.coordinator import CommandHandler, Coordinator, Leadership
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import Decision, LogEntry, Telemetry, TelemetryFrame
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State


class StillCoordinator(Coordinator):
    """Follows the master that the state names."""

    def __init__(self, node_id: NodeId, state: State) -> None:
        self._node_id = node_id
        self.held = state
        """What `state` is from now on."""

    @property
    def node_id(self) -> NodeId:
        return self._node_id

    @property
    def state(self) -> State:
        return self.held

    @property
    def leadership(self) -> Leadership:
        return Leadership(
            master_node_id=self.held.master_node_id, term=self.held.term, incarnation=1, is_self=False
        )

    async def propose(self, events: Sequence[Decision], *, cause_id: str) -> int:
        raise NoMasterError("nothing is decided here")

    async def send(self, command: Command, *, timeout_s: float) -> Reply:
        raise NoMasterError("nothing is decided here")

    async def confirm(self, *, timeout_s: float) -> int:
        """As of now, which is for ever."""
        return self.held.index

    def set_command_handler(self, handler: CommandHandler) -> None:
        return

    def publish(self, events: Sequence[Telemetry]) -> None:
        return

    async def changes(self) -> AsyncIterator[State]:
        yield self.held
        await anyio.sleep_forever()

    async def feed(self, after_index: int | None = None) -> AsyncIterator[LogEntry | TelemetryFrame]:
        await anyio.sleep_forever()
        raise AssertionError
        yield
