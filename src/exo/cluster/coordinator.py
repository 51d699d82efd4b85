"""The seam between those who decide or act and the machinery that makes nodes agree."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from exo.cluster.facts import PeerSeen
from exo.shared.errors import ConfigurationError
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import Decision, LogEntry, Telemetry, TelemetryFrame
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State

T = TypeVar("T")

CommandHandler = Callable[[Command], Awaitable[Reply]]

CountedKind = Literal["connections", "beacons", "incidents"]
"""Connections of nodes and beacons by what became of them, and what members did that they should not, or seldom do."""


class Leadership(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads, as far as this node knows. (incarnation, term) fences what an earlier master still sends."""

    master_node_id: NodeId | None
    term: int
    incarnation: int
    is_self: bool


class Coordinator(ABC):
    """Proposes decisions, delivers the committed ones in order, and folds them into `state`."""

    @property
    @abstractmethod
    def node_id(self) -> NodeId:
        """This node's id."""

    @property
    @abstractmethod
    def state(self) -> State:
        """The newest state folded here: committed decisions and the live part."""

    @property
    @abstractmethod
    def leadership(self) -> Leadership:
        """Who leads, as far as this node knows."""

    @property
    def counts(self) -> Mapping[CountedKind, Mapping[str, int]]:
        """What this node let in, refused and noticed since it started, for `/metrics`."""
        return {}

    @property
    def peers_seen(self) -> Sequence[PeerSeen]:
        """Other nodes that were noticed, and why those that are no members are none."""
        return ()

    @abstractmethod
    async def propose(self, events: Sequence[Decision], *, cause_id: str) -> int:
        """Have decisions committed, together and once, however often the connection breaks meanwhile.

        Returns:
            The index of the last of them, once all are committed, durable and folded into `state` here.

        Raises:
            NoMasterError: No master could be reached for so long that the proposal was given up, or the node stops.
                Whether the decisions are committed is unknown then: they may be, or become so later. Whoever
                proposes again looks at `state` first, or proposes what changes nothing the second time.
            UnsendableError: A NoMasterError before anything was tried: the decisions cannot be put into a message
                (too long, a number beyond 64 bits, text that is no UTF-8). They are not committed.
        """

    @abstractmethod
    async def send(self, command: Command, *, timeout_s: float) -> Reply:
        """Have the master carry out a command. When the reply says it is done, `state` here contains it.

        Without a master it gives up long before `timeout_s`; a master that has the command gets all of it.

        Raises:
            NoMasterError: No master could be reached, or it was lost before it answered: then the command may have
                been carried out.
            UnsendableError: A NoMasterError before anything was tried: the command cannot be put into a message.
        """

    @abstractmethod
    async def confirm(self, *, timeout_s: float) -> int:
        """Make sure that `state` here is as new as the moment of the call: what any node had acknowledged is in it.

        Returns:
            The index that it was brought up to.

        Raises:
            NoMasterError: There is no master, or a majority does not confirm in time that there is.
        """

    async def forget(self, node_ids: Sequence[NodeId]) -> int:
        """Begin the history anew without voters that are lost for good, and with them what only they had.

        Raises:
            ConfigurationError: There is a master, this node has no copy, or other nodes are named than those that
                are missing.
            NoMasterError: It did not succeed.
        """
        raise ConfigurationError("this coordinator has no voters of its own to forget")

    async def leave(self) -> None:
        """Hand over what this node does for the others, as far as that is possible in a moment; it stops soon."""
        return

    @abstractmethod
    def set_command_handler(self, handler: CommandHandler) -> None:
        """Name the function that carries commands out while this node is the master."""

    @abstractmethod
    def publish(self, events: Sequence[Telemetry]) -> None:
        """Hand over telemetry of this node; never waits. Of events about the same thing only the last is sent."""

    @abstractmethod
    def changes(self) -> AsyncIterator[State]:
        """Yield the state now, then again after changes; a slow consumer skips to the newest."""

    @abstractmethod
    def feed(self, after_index: int | None = None) -> AsyncIterator[LogEntry | TelemetryFrame]:
        """Yield committed entries in order and telemetry as it is folded, from now or from after an index.

        A node that does not lead keeps only the recent entries. Asked for older ones it begins, without a word,
        with the oldest that it has: whoever needs all of them compares the first index with `after_index + 1`, and
        asks the master, or reads `state` and goes on from its index. Ends when the consumer falls too far behind;
        it may come back with the last index it saw.
        """

    async def wait_for(self, wanted: Callable[[State], T | None], *, timeout_s: float) -> T:
        """Return `wanted(state)` as soon as it is not None.

        Raises:
            TimeoutError: It stayed None for `timeout_s`.
        """
        import anyio

        with anyio.fail_after(timeout_s):
            async for state in self.changes():
                found = wanted(state)
                if found is not None:
                    return found
        raise TimeoutError
