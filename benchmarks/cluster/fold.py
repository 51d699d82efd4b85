"""Decoding what a master sends and folding it in, as a follower of a cluster of 1,000 nodes of 8 GPUs does.

Nothing waits for anything here, so the processor's time is what counts: other programs do not change it.
"""

import time
from collections.abc import Sequence

from benchmarks.cluster import large
from benchmarks.cluster.measuring import Sheet
from benchmarks.results import Result
from exo.cluster.board import Board
from exo.cluster.telemetry import TickRing
from exo.cluster.wire import Entries, TelemetryTick, decode_from_listener, encode_entries
from exo.shared.types.events import Decision, DeviceLost, NodeDisconnected, NodeJoined
from exo.shared.types.ids import DeviceId
from exo.shared.types.state import State

ENTRIES_PER_MESSAGE = 512


def run(*, quick: bool) -> list[Result]:
    """Telemetry of all devices at once, telemetry in small frames, and decisions."""
    sheet = Sheet()
    state = large.measured()
    ticks = 5 if quick else 40
    whole = _ticks_per_s(state, ticks, devices=large.DEVICES)
    sheet.add("telemetry: decode and fold", whole, "events/s", at_least=300_000)
    small = _ticks_per_s(state, ticks, devices=1)
    sheet.add("telemetry of one device a node: decode and fold", small, "events/s")
    decided = _decisions_per_s(state, 10_000 if quick else 100_000)
    sheet.add("decisions: decode and fold", decided, "events/s")
    return sheet.results


def _board(state: State) -> Board:
    board = Board(large.node_id(1), feed_backlog=8192, is_checking_invariants=False)
    board.state = state
    return board


def _ticks_per_s(state: State, count: int, *, devices: int) -> float:
    """Events a second over so many ticks, each with a frame of every node; pauses of the collector included."""
    board = _board(state)
    used_s = 0.0
    for seq in range(1, count + 2):
        data = _tick(seq, devices)
        started_s = time.process_time()
        message = decode_from_listener(data)
        assert isinstance(message, TelemetryTick)
        news = board.fold_frames(message.frames)
        if seq > 1:  # The first time memory is new to the process.
            used_s += time.process_time() - started_s
        assert len(news) == large.NODES
        del message, news
    return count * large.NODES * devices / used_s


def _tick(seq: int, devices: int) -> bytes:
    ring = TickRing()
    for frame in large.frames(seq, devices=devices):
        ring.gather(frame)
    ring.close_tick(1)
    ticks = ring.since(0)
    assert ticks is not None
    return ticks[0]


def _decisions_per_s(state: State, count: int) -> float:
    """Decisions that change the members, in the messages that carry them to a follower."""
    board = _board(state)
    entries = large.entries(_decisions(state, count), first_index=state.index + 1)
    messages: list[bytes] = []
    for start in range(0, count, ENTRIES_PER_MESSAGE):
        messages += encode_entries(1, entries[start : start + ENTRIES_PER_MESSAGE])
    started_s = time.process_time()
    for data in messages:
        message = decode_from_listener(data)
        assert isinstance(message, Entries)
        board.fold(message.entries)
    used_s = time.process_time() - started_s
    assert board.state.index == state.index + count
    return count / used_s


def _decisions(state: State, count: int) -> Sequence[Decision]:
    """Nodes are lost and lose devices that they do not have, and one in a hundred comes back with all its own."""
    found: list[Decision] = []
    nodes = list(state.nodes.values())
    while len(found) < count:
        identity = nodes[len(found) // 2 % len(nodes)].identity
        found.append(NodeDisconnected(node_id=identity.node_id, reason="the other side went away"))
        found.append(DeviceLost(node_id=identity.node_id, device_id=DeviceId("none"), reason="a test"))
        if len(found) % 100 == 0:
            found[-1] = NodeJoined(identity=identity)
    return found[:count]
