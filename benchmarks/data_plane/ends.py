"""The two ends of the measured links: networks as stages have them, in plain and in TLS."""

from enum import Enum
from pathlib import Path

from benchmarks.cluster.assembly import admit
from exo.cluster.node_id import load_node_id
from exo.cluster.trust.key_store import KeyStore
from exo.dataplane.frames import Activation
from exo.dataplane.handshake import REPLIES
from exo.dataplane.identity import DataIdentity, DataTrust
from exo.shared.types.ids import RequestId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.network import Connection, Network

SECRET = b"the secret of this machine, for what stays on it"


class Way(Enum):
    """How bytes travel."""

    PLAIN = "plain"
    TLS = "tls"


class End:
    """One network of one process, which takes everybody for this machine or, in TLS, for another one."""

    def __init__(self, home: Path, way: Way) -> None:
        identity = KeyStore(home).load_identity(load_node_id(home))
        assert identity is not None
        shown = DataIdentity(
            certificate_file=str(identity.certificate_file),
            key_file=str(identity.key_file),
            authority_pem=identity.authority_pem,
        )
        self._other = home.parent / ("there" if home.name == "here" else "here")
        self.network = Network(
            "127.0.0.1",
            secret=SECRET,
            sender=home.name,
            node_id=load_node_id(home),
            trust=DataTrust(identity=shown) if way is Way.TLS else None,
            is_local=lambda host: way is Way.PLAIN,
        )

    def dial(self, peer: HostPort) -> Connection:
        """Begin to connect to the other process."""
        return self.network.dial(peer, REPLIES, "the other one", node_id=load_node_id(self._other))

    @staticmethod
    def activation(*, wants_token: bool) -> Activation:
        """What goes before hidden values."""
        return Activation(
            request_id=RequestId("benchmark"),
            position=1000,
            shape=(1, 1, 4096),
            dtype="bfloat16",
            wants_token=wants_token,
        )


def admit_both(directory: Path) -> tuple[Path, Path]:
    """Make the homes of two nodes with certificates of one authority."""
    here, there = directory / "here", directory / "there"
    for home in (here, there):
        admit(home)
    return here, there
