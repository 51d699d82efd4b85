"""Links between the nodes that agree: dialled, accepted, and carried both ways."""

from collections.abc import Callable

import anyio
import msgspec
from anyio.abc import TaskGroup
from loguru import logger

from exo.cluster.errors import ConnectionLostError, DialError
from exo.cluster.facts import ClusterFacts, Sighting
from exo.cluster.kernel import Kernel
from exo.cluster.peer_link import PeerLink
from exo.cluster.peer_wire import PeerMessageReader
from exo.cluster.transport.base import Connection, Transport
from exo.cluster.wire import Agreed, Hello, NotNow, decode_from_listener, encode
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

LOOK_S = 0.25
"""How often it is looked for links that are missing."""
COURTESY_S = 1.0
"""Of two nodes the one with the smaller id dials; the other waits this long, then tries it the other way."""


class Mesh:
    """Keeps one link to every node that this one agrees with."""

    def __init__(
        self,
        kernel: Kernel,
        transport: Transport,
        *,
        clock: Callable[[], float],
        report: Callable[[Sighting], None],
        noticed_at: Callable[[NodeId], HostPort | None],
    ) -> None:
        self._kernel = kernel
        self._situation = kernel.situation
        self._transport = transport
        self._clock = clock
        self._report = report
        self._noticed_at = noticed_at
        self._tried: dict[NodeId, HostPort] = {}
        """The address that was dialled last."""
        self._missing_since_s: dict[NodeId, float] = {}
        self._dialling: set[NodeId] = set()
        self._pauses_s: dict[NodeId, tuple[float, float]] = {}
        """The last pause between two attempts, and when the next one is due."""

    async def run(self) -> None:
        """Dial until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._look(tasks)
                with anyio.move_on_after(LOOK_S):
                    await self._kernel.board.changed.wait()
                    # Many changes at once are one reason to look.
                    await anyio.sleep(0.005)

    def _look(self, tasks: TaskGroup) -> None:
        situation, links, now_s = self._situation, self._kernel.links, self._clock()
        wanted = situation.peers_to_link()
        self._missing_since_s = {
            node_id: self._missing_since_s.get(node_id, now_s) for node_id in wanted if node_id not in links
        }
        for node_id, since_s in self._missing_since_s.items():
            is_polite = node_id > situation.node_id or situation.core.leading is not None
            _, due_s = self._pauses_s.get(node_id, (0.0, 0.0))
            if node_id in self._dialling or now_s < due_s:
                continue
            if is_polite or now_s - since_s >= COURTESY_S:
                self._dialling.add(node_id)
                tasks.start_soon(self._dial, node_id, self._next_address(node_id, wanted[node_id]))

    def _next_address(self, node_id: NodeId, logged: HostPort) -> HostPort:
        """Return where to try next: the log's address, and the one at which the node was noticed, in turn.

        Where all nodes come back with other addresses, the log cannot learn of them before there is a master.
        """
        noticed = self._noticed_at(node_id) or logged
        address = logged if self._tried.get(node_id, logged) == noticed else noticed
        self._tried[node_id] = address
        return address

    async def _dial(self, node_id: NodeId, address: HostPort) -> None:
        options = self._kernel.options
        pause_s, _ = self._pauses_s.get(node_id, (0.0, 0.0))
        self._pauses_s[node_id] = (min(max(options.redial_s, 2 * pause_s), options.redial_max_s), 0.0)
        try:
            connection = await self._transport.dial(address, timeout_s=options.dial_timeout_s)
            reason = "the node is stopping"
            try:
                reason = await self._greet(connection, node_id)
            finally:
                connection.close(reason)
        except (DialError, ConnectionLostError) as error:
            logger.debug("no link to {}: {}", node_id, error.message)
        except (TimeoutError, msgspec.DecodeError) as error:
            self._kernel.counts["peer_malformed"] += isinstance(error, msgspec.DecodeError)
            logger.debug("no link to {}: {}", node_id, error)
        finally:
            self._dialling.discard(node_id)
            pause_s, _ = self._pauses_s[node_id]
            self._pauses_s[node_id] = (pause_s, self._clock() + pause_s)

    async def _greet(self, connection: Connection, node_id: NodeId) -> str:
        own = self._situation.facts()
        with anyio.fail_after(self._kernel.options.answer_timeout_s):
            await connection.send(encode(Hello(facts=own, intent="agree")))
            answer = decode_from_listener(await connection.receive())
        if isinstance(answer, NotNow):
            self._report(Sighting(address=connection.peer_address, facts=answer.facts, via="greeting"))
            return "that was all"
        is_other = connection.peer_node_id not in (None, node_id)
        if isinstance(answer, Agreed) and connection.peer_node_id not in (None, answer.facts.node_id):
            self._kernel.counts["peer_lied"] += 1
        if not isinstance(answer, Agreed) or answer.facts.node_id != node_id or is_other:
            return "it is another node than was expected"
        if (
            answer.facts.cluster_id != self._situation.cluster_id
            or own.cluster_id != self._situation.cluster_id
        ):
            return "it belongs to another cluster"
        self._pauses_s[node_id] = (0.0, 0.0)
        return await self.carry(connection, answer.facts)

    async def carry(self, connection: Connection, facts: ClusterFacts) -> str:
        """Exchange messages until the connection ends; returns why it did."""
        link = PeerLink(facts.node_id, connection, is_voteless=facts.is_voteless)
        self._kernel.link_up(link)
        is_ended = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, link)
                try:
                    await self._receive(link)
                except ConnectionLostError as error:
                    is_ended = error.is_ended
                    return error.message
                except msgspec.DecodeError as error:
                    self._kernel.counts["peer_malformed"] += 1
                    logger.warning("ending the link to {}: {}", link.node_id, error)
                    return f"it speaks another release of exo ({error})"
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            self._kernel.link_down(link, is_ended=is_ended)
        return "that was all"

    async def _receive(self, link: PeerLink) -> None:
        reader = PeerMessageReader()
        while True:
            message = reader.feed(await link.connection.receive())
            if message is not None:
                self._kernel.peer_said(link, message)

    async def _send(self, link: PeerLink) -> None:
        try:
            while True:
                messages = link.take()
                for message in messages:
                    await link.connection.send(message)
                if not messages:
                    await link.work.wait()
        except ConnectionLostError:
            return  # The receiving side notices too, and says why.
