"""The telemetry lane: of events about the same thing only the last is kept, on every step of the way. Pure."""

from collections import deque
from collections.abc import Iterable, Sequence

from loguru import logger

from exo.cluster.errors import UnsendableError
from exo.cluster.transport.base import MESSAGE_BYTES_MAX
from exo.cluster.wire import Publish, TelemetryTick, encode, encode_checked
from exo.shared.types.events import (
    DeviceGPUStateUpdated,
    DevicePaceMeasured,
    GPUBandwidthMeasured,
    InstancePaceMeasured,
    LinkMeasured,
    NodeProfileUpdated,
    StageProgressed,
    Telemetry,
    TelemetryFrame,
)
from exo.shared.types.ids import InstanceId, NodeId

_EVENT_BYTES_MAX = 64 * 1024
_OF_INSTANCE = "instance pace"
Key = tuple[str, ...]


def subject(event: Telemetry) -> Key:
    """Return what an event is about: a later event about the same replaces it."""
    match event:
        case DeviceGPUStateUpdated(state=state):
            return ("device", state.device_id)
        case NodeProfileUpdated():
            return ("profile",)
        case GPUBandwidthMeasured():
            return ("bandwidth", event.source_device_id, event.dest_device_id)
        case LinkMeasured(dest_node_id=dest):
            return ("link", dest)
        case StageProgressed():
            return ("stage", event.instance_id, str(event.generation), str(event.rank))
        case DevicePaceMeasured(pace=pace):
            return ("pace", pace.device_id, pace.engine, pace.dtype)
        case InstancePaceMeasured(pace=pace):
            return (_OF_INSTANCE, pace.instance_id)


def merge_frames(before: TelemetryFrame | None, later: TelemetryFrame) -> TelemetryFrame:
    """Return one frame that says what both of a node say."""
    if before is None or before.boot_id != later.boot_id:
        return later
    events = {subject(event): event for event in (*before.events, *later.events)}
    return TelemetryFrame(
        node_id=later.node_id, boot_id=later.boot_id, seq=later.seq, events=tuple(events.values())
    )


class OwnTelemetry:
    """What this node has published since it started: what is fresh, and what a new master has to be told again."""

    def __init__(self, node_id: NodeId, boot_id: str) -> None:
        self._node_id = node_id
        self._boot_id = boot_id
        self._seq = -1
        self._latest: dict[Key, Telemetry] = {}
        self._fresh: dict[Key, Telemetry] = {}

    @property
    def has_fresh(self) -> bool:
        return bool(self._fresh)

    def publish(self, events: Iterable[Telemetry]) -> None:
        """Keep the last of each subject. What no message can carry is left out, with a warning."""
        for event in events:
            try:
                encode_checked(self._frame([event]), "an event of telemetry", _EVENT_BYTES_MAX)
            except UnsendableError as error:
                logger.warning("telemetry is left out: {}", error.message)
                continue
            self._fresh[subject(event)] = event

    def _frame(self, events: Iterable[Telemetry]) -> Publish:
        return Publish(
            frame=TelemetryFrame(
                node_id=self._node_id, boot_id=self._boot_id, seq=max(0, self._seq), events=tuple(events)
            )
        )

    def refresh_all(self, instances: Iterable[InstanceId]) -> None:
        """Count everything as fresh again; what was told of instances that are gone is forgotten."""
        known = set(instances)
        everything = {**self._latest, **self._fresh}
        self._fresh = {
            key: event
            for key, event in everything.items()
            if key[0] not in ("stage", _OF_INSTANCE) or key[1] in known
        }
        self._latest = {}

    def take(self) -> TelemetryFrame:
        """Return what is fresh as this node's next frame."""
        self._seq += 1
        frame = TelemetryFrame(
            node_id=self._node_id, boot_id=self._boot_id, seq=self._seq, events=tuple(self._fresh.values())
        )
        self._latest.update(self._fresh)
        self._fresh = {}
        return frame


class HeldFrames:
    """A follower's side: frames made on decisions that it has not folded yet wait here for them.

    Folded before their node is known they would be lost. Of each node at most two frames wait: those of the first
    index that is waited for, and in one the rest, so that an index which keeps growing holds nothing back for ever.
    """

    def __init__(self) -> None:
        self.clear()

    def hold(self, index: int, frames: Iterable[TelemetryFrame]) -> None:
        """Keep frames until `index` is folded; of several of one node the last values."""
        if not self._first:
            self._first_index = index
            held = self._first
        elif not self._rest and index <= self._first_index:
            held = self._first
        else:
            # Behind the others, whatever its index: frames of one node have to stay in their order.
            self._rest_index = max(self._rest_index, index)
            held = self._rest
        for frame in frames:
            held[frame.node_id] = merge_frames(held.get(frame.node_id), frame)

    def release(self, index: int) -> Sequence[TelemetryFrame]:
        """Return the frames that a state at `index` can take, in the order in which to fold them; they go."""
        released: list[TelemetryFrame] = []
        while self._first and index >= self._first_index:
            released += self._first.values()
            self._first_index, self._first = self._rest_index, self._rest
            self._rest_index, self._rest = 0, {}
        return released

    def clear(self) -> None:
        """All there is comes anew, or from a history in which indices mean something else."""
        self._first_index = self._rest_index = 0
        self._first: dict[NodeId, TelemetryFrame] = {}
        self._rest: dict[NodeId, TelemetryFrame] = {}


class TickRing:
    """The master's side: frames gathered into numbered ticks, each encoded once for all followers.

    A follower that has fallen behind further than the ring reaches is sent the live state instead.
    """

    def __init__(self, ticks_max: int = 64) -> None:
        self.tick = 0
        """The newest."""
        self._encoded: deque[bytes] = deque(maxlen=ticks_max)
        self._gathered: dict[NodeId, TelemetryFrame] = {}

    @property
    def has_gathered(self) -> bool:
        return bool(self._gathered)

    def gather(self, frame: TelemetryFrame) -> None:
        """Add a frame that was folded here; later values replace earlier ones."""
        self._gathered[frame.node_id] = merge_frames(self._gathered.get(frame.node_id), frame)

    def close_tick(self, term: int, index: int = 0) -> tuple[TelemetryFrame, ...]:
        """End the tick: what was gathered can be sent. Returns its frames.

        Args:
            term: In which this node leads.
            index: Of the state that they were folded into here.
        """
        frames = tuple(self._gathered.values())
        self._gathered = {}
        self.tick += 1
        data = encode(TelemetryTick(term=term, tick=self.tick, index=index, frames=frames))
        if len(data) > MESSAGE_BYTES_MAX:
            self._encoded.clear()  # As for one that has fallen behind: the live state comes instead.
        else:
            self._encoded.append(data)
        return frames

    def since(self, tick: int) -> Sequence[bytes] | None:
        """Return the encoded ticks behind `tick`, or None when they are no longer all here."""
        count = self.tick - tick
        if count > len(self._encoded):
            return None
        return [self._encoded[position] for position in range(len(self._encoded) - count, len(self._encoded))]

    def clear(self) -> None:
        """A new term begins; ticks go on counting."""
        self._encoded.clear()
        self._gathered = {}
