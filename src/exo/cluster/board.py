"""What this node knows, for everybody here to look at: the folded state, and feeds of what was folded."""

from collections.abc import Sequence

import msgspec

from exo.cluster.signal import Signal
from exo.cluster.watching import Feeds
from exo.shared.apply import apply_entries, apply_frames
from exo.shared.invariants import check
from exo.shared.types.events import LogEntry, TelemetryFrame
from exo.shared.types.ids import NodeId
from exo.shared.types.state import NodeTelemetry, State


class ImpossibleStateError(Exception):
    """Raised when decisions led to a state that cannot be: a bug, found where invariants are checked."""


class Board:
    """The state and those who watch it. `announce` after a change wakes them."""

    def __init__(self, node_id: NodeId, *, feed_backlog: int, is_checking_invariants: bool) -> None:
        self.state = State()
        self.version = 0
        """Counts changes of the state and of who leads."""
        self.changed = Signal()
        self.feeds = Feeds(feed_backlog)
        self._node_id = node_id
        self._is_checking_invariants = is_checking_invariants

    def announce(self) -> None:
        self.version += 1
        self.changed.fire()

    def fold(self, entries: Sequence[LogEntry]) -> None:
        """Fold decisions in, together. Telemetry that waited for them is the lane's: see `Lane.released`."""
        self.state = apply_entries(self.state, entries)
        self.feeds.push(entries)
        self._check()

    def fold_frames(self, frames: Sequence[TelemetryFrame]) -> Sequence[TelemetryFrame]:
        """Fold telemetry in, together, and return what of it was news: not old, and of members."""
        self.state, news = apply_frames(self.state, frames)
        self.feeds.push(news)
        return news

    def replace(self, state: State) -> None:
        """Go on from another state. Feeds end: what lies between cannot be told."""
        self.feeds.end_all()
        self.state = self._with_own(state, state.live)
        self._check()

    def replace_live(self, live: dict[NodeId, NodeTelemetry]) -> None:
        """Go on from other telemetry; this node knows its own best."""
        nodes = self.state.nodes
        members = {
            node_id: latest
            for node_id, latest in live.items()
            if node_id in nodes and nodes[node_id].identity.boot_id == latest.boot_id
        }
        self.state = self._with_own(self.state, members)

    def _with_own(self, state: State, live: dict[NodeId, NodeTelemetry]) -> State:
        """Return `state` with `live`, and with this node's own telemetry where what is here is newer."""
        own, theirs, node = (
            self.state.live.get(self._node_id),
            live.get(self._node_id),
            state.nodes.get(self._node_id),
        )
        is_of_member = own is not None and node is not None and node.identity.boot_id == own.boot_id
        is_theirs_newer = (
            own is not None and theirs is not None and theirs.boot_id == own.boot_id and theirs.seq >= own.seq
        )
        if own is not None and is_of_member and not is_theirs_newer:
            live = {**live, self._node_id: own}
        return msgspec.structs.replace(state, live=live)

    def _check(self) -> None:
        if self._is_checking_invariants:
            violations = check(self.state)
            if violations:
                raise ImpossibleStateError(f"at index {self.state.index}: {'; '.join(violations)}")
