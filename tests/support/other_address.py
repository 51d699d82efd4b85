"""Run in a network namespace of its own: one host that reaches itself under an address that is not loopback.

Prints `ok`, or fails.
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from exo.cluster.errors import HandshakeError, NotDiallableError
from exo.cluster.transport.tcp import TcpTransport
from exo.shared.types.nodes import HostPort

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.memberships import Membership

OTHER = "192.0.2.1"
COMMANDS = (
    "ip link set lo up",
    f"ip address add {OTHER}/32 dev lo",
)


async def main(directory: Path) -> None:
    membership = Membership(directory)
    server, bare, member = (TcpTransport(b"s" * 32) for _ in range(3))
    server.set_identity(membership.identity("server"))
    member.set_identity(membership.identity("member"))
    async with await server.listen(HostPort("127.0.0.1", 0)) as listener:
        await listener.widen("0.0.0.0")
        other = HostPort(OTHER, listener.address.port)
        try:
            await bare.dial(other, timeout_s=2)
        except NotDiallableError:
            pass
        else:
            raise AssertionError("dialled another host without a certificate")
        # The right secret, from an address that only seems to be this host's.
        deceived = TcpTransport(b"s" * 32, is_local=lambda host: True)
        try:
            await deceived.dial(other, timeout_s=2)
        except HandshakeError as error:
            assert error.code == "plain_from_afar", error.code
        else:
            raise AssertionError("let in without a certificate")
        near = await member.dial(other, timeout_s=2)
        far = await listener.accept()
        assert (near.peer_node_id, far.peer_node_id) == ("server", "member")
        assert far.peer_address.host == OTHER, far.peer_address
        local = await member.dial(HostPort("127.0.0.1", other.port), timeout_s=2)
        assert (await listener.accept()).peer_node_id is None
        for connection in (near, local):
            connection.close("done")
        await asyncio.sleep(0)
    print("ok")


if __name__ == "__main__":
    for command in COMMANDS:
        subprocess.run(command.split(), check=True)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))
