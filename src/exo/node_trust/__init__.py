"""This node's part in who belongs to its cluster: the authority's key, its own certificate, and asking to be let in."""

from exo.node_trust.authority import NodeAuthority
from exo.node_trust.trust import NodeTrust

__all__ = ["NodeAuthority", "NodeTrust"]
