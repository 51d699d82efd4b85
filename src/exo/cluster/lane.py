"""This node's part in the telemetry lane: its own, gathered for the master or, as master, for all."""

from collections.abc import Iterable, Sequence

from exo.cluster.board import Board
from exo.cluster.signal import Signal
from exo.cluster.telemetry import HeldFrames, OwnTelemetry, TickRing, merge_frames
from exo.cluster.wire import LiveState, Publish, TelemetryTick
from exo.shared.types.events import Telemetry, TelemetryFrame
from exo.shared.types.ids import InstanceId, NodeId


class Lane:
    """Folds telemetry into the board and keeps what has to be passed on; `flush` passes it on."""

    def __init__(self, board: Board, node_id: NodeId, boot_id: str) -> None:
        self.work = Signal()
        """`flush` has something to do, or will have once this node is a member."""
        self.ring = TickRing()
        self._board = board
        self._own = OwnTelemetry(node_id, boot_id)
        self._uplink: TelemetryFrame | None = None
        self._held = HeldFrames()
        self._held_live: LiveState | None = None

    def publish(self, events: Iterable[Telemetry]) -> None:
        self._own.publish(events)
        self.work.fire()

    def tell_all(self, instances: Iterable[InstanceId]) -> None:
        """A master that is new, or has just admitted this node, knows nothing of what was published before."""
        self._own.refresh_all(instances)
        self.work.fire()

    def has_work(self, *, is_member: bool) -> bool:
        return (is_member and self._own.has_fresh) or self.ring.has_gathered

    def flush_own(self, *, is_leading: bool, is_following: bool) -> None:
        """Fold this node's fresh telemetry, and queue it for whoever passes it on. Only of use to a member."""
        if not self._own.has_fresh:
            return
        frame = self._own.take()
        if self._board.fold_frames((frame,)):
            self._board.announce()
        if is_leading:
            self.ring.gather(frame)
        elif is_following:
            self._uplink = merge_frames(self._uplink, frame)

    def frame_received(self, frame: TelemetryFrame) -> None:
        """As master: a follower published."""
        if self._board.fold_frames((frame,)):
            self._board.announce()
            self.ring.gather(frame)
            self.work.fire()

    def tick_received(self, message: TelemetryTick) -> None:
        """As follower: the master passes on what all published. It waits for the decisions that it was folded into."""
        self._held.hold(message.index, message.frames)
        if self.released(self._board.state.index):
            self._board.announce()

    def live_received(self, message: LiveState) -> None:
        """As follower: the master tells all telemetry there is. It waits in the same way."""
        self._held.clear()
        self._held_live = message
        if self.released(self._board.state.index):
            self._board.announce()

    def released(self, index: int) -> bool:
        """The state is at `index`: fold what waited for that. Say whether anything changed; announcing is left to you.

        To be called whenever decisions were folded into the board, or a state without telemetry took its place.
        """
        live, has_changed = self._held_live, False
        if live is not None and index >= live.index:
            self._held_live, has_changed = None, True
            self._board.replace_live(live.live)
        frames = self._held.release(index)
        return bool(frames and self._board.fold_frames(frames)) or has_changed

    def take_uplink(self) -> Sequence[Publish]:
        frame, self._uplink = self._uplink, None
        return () if frame is None else (Publish(frame=frame),)

    def drop_uplink(self) -> None:
        """The master is lost: the next one is told all, and tells all itself."""
        self._uplink = None
        self.drop_held()

    def drop_held(self) -> None:
        """What waits is out of date: a state that brings newer telemetry with it has taken the place of this one."""
        self._held.clear()
        self._held_live = None
