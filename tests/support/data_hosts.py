"""Sides of the data plane that take each other for other hosts, though all of them are on loopback."""

from pathlib import Path

from exo.cluster.trust.identity import TlsIdentity
from exo.dataplane.identity import DataIdentity, DataTrust
from support.memberships import Membership


def is_nobody_local(host: str) -> bool:
    """Take everybody for another host."""
    return False


def data_identity(identity: TlsIdentity) -> DataIdentity:
    """Return a node's certificate as the data plane takes it."""
    return DataIdentity(
        certificate_file=str(identity.certificate_file),
        key_file=str(identity.key_file),
        authority_pem=identity.authority_pem,
    )


def member(membership: Membership, node_id: str) -> DataTrust:
    """Return what a member of a cluster shows."""
    return DataTrust(identity=data_identity(membership.identity(node_id)))


def mixed_up(membership: Membership, other: Membership, node_id: str, directory: Path) -> DataIdentity:
    """Return a certificate of another cluster, shown by somebody who trusts this one."""
    foreign = data_identity(other.identity(node_id))
    return DataIdentity(
        certificate_file=foreign.certificate_file,
        key_file=foreign.key_file,
        authority_pem=membership.authority.certificate_pem,
    )
