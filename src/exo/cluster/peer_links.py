"""The links to all who agree with this node, one each, and the core's messages put on them."""

from collections.abc import Iterator

from exo.cluster.peer_link import PeerLink
from exo.cluster.peer_wire import encode_peer_message
from exo.cluster.raft.messages import Append, PeerMessage
from exo.shared.types.ids import NodeId


class PeerLinks:
    """Keeps the newest link to each peer; `node_id in links` says whether there is one."""

    def __init__(self) -> None:
        self._links: dict[NodeId, PeerLink] = {}
        self._encoded: tuple[Append | None, list[bytes]] = (None, [])

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._links

    def __iter__(self) -> Iterator[PeerLink]:
        return iter(list(self._links.values()))

    def holds(self, link: PeerLink) -> bool:
        """Say whether this is the link to its peer, and not one that another has replaced."""
        return self._links.get(link.node_id) is link

    def add(self, link: PeerLink) -> bool:
        """Say whether the link takes the place of another one, which is closed."""
        before = self._links.get(link.node_id)
        self._links[link.node_id] = link
        if before is not None:
            before.close("the same node has connected again")
        return before is not None

    def remove(self, link: PeerLink) -> bool:
        """Say whether this was the link to its peer."""
        is_held = self.holds(link)
        if is_held:
            del self._links[link.node_id]
        return is_held

    def send(self, to: NodeId, message: PeerMessage) -> None:
        """Queue a message; without a link it is lost."""
        link = self._links.get(to)
        if link is None:
            return
        if isinstance(message, Append) and message.entries:
            # Followers that are level get the same message: encoded once.
            before, encoded = self._encoded
            if before is None or before != message:
                encoded = encode_peer_message(message)
                self._encoded = (message, encoded)
            link.send(encoded)
        else:
            link.send(encode_peer_message(message))

    def close(self, node_id: NodeId, reason: str) -> None:
        link = self._links.get(node_id)
        if link is not None:
            link.close(reason)

    def close_all(self, reason: str) -> None:
        """Close every link; whoever carries one takes it away when it has ended."""
        for link in self:
            link.close(reason)

    def drop_all(self, reason: str) -> None:
        """Close every link and hold none from now on."""
        self.close_all(reason)
        self._links.clear()
