"""Opening one connection to a peer: connect, prove each other, or say why not, within a time."""

import asyncio

from exo.cluster.errors import HandshakeError, dial_failure
from exo.cluster.transport.base import Heartbeat
from exo.cluster.transport.channel import Channel
from exo.cluster.transport.tcp_connection import ConnectionOwner, TcpConnection
from exo.cluster.trust.certificates import NodeCertificate
from exo.shared.types.nodes import HostPort


class Dialling(ConnectionOwner):
    """Owns a connection that this node opens. To be extended with what is to happen while it lasts."""

    def __init__(self, address: HostPort) -> None:
        self._address = address
        self._greeted: asyncio.Future[TcpConnection] = asyncio.get_running_loop().create_future()

    def choose_channel(self, first_byte: int, peer: HostPort) -> Channel:
        raise AssertionError("a dialer has chosen already")

    def greeted(self, connection: TcpConnection) -> None:
        if not self._greeted.done():
            self._greeted.set_result(connection)

    def ended(self, connection: TcpConnection, error: HandshakeError | None) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(
                error or dial_failure(self._address, "it hung up before it had proved itself")
            )

    def reason_to_end(self, certificate: NodeCertificate) -> str | None:
        return None

    async def open(self, channel: Channel, *, heartbeat: Heartbeat, timeout_s: float) -> TcpConnection:
        """Connect, and return when the peer has proved itself.

        Raises:
            HandshakeError: One of the two cannot prove that it belongs to the other.
            DialError: The peer could not be reached within the time.
        """
        made: TcpConnection | None = None
        is_open = False
        try:
            async with asyncio.timeout(timeout_s):
                _, made = await asyncio.get_running_loop().create_connection(
                    lambda: TcpConnection(
                        self, channel=channel, peer_address=self._address, heartbeat=heartbeat
                    ),
                    self._address.host,
                    self._address.port,
                )
                connection = await self._greeted
            is_open = True
            return connection
        except TimeoutError as error:
            raise dial_failure(self._address, f"no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise dial_failure(self._address, error.strerror or str(error)) from error
        finally:
            if not self._greeted.cancel() and not self._greeted.cancelled():
                self._greeted.exception()  # Seen, also when the time was up in the same moment.
            if made is not None and not is_open:
                made.close("the dialer gave up")
