"""What telemetry of 1,000 nodes of 8 devices costs the others, when every node tells all of it every 2 s.

Nothing waits for anything here, so the processor's time is what counts: other programs do not change it.
"""

import time

from benchmarks.cluster import large
from benchmarks.cluster.measuring import Sheet
from benchmarks.results import Result
from exo.cluster.board import Board
from exo.cluster.telemetry import TickRing
from exo.cluster.wire import Publish, TelemetryTick, decode_from_dialer, decode_from_listener, encode
from exo.shared.types.events import TelemetryFrame

INTERVAL_S = 2.0
TICK_S = 0.025
TICKS = round(INTERVAL_S / TICK_S)
"""The master sends what came meanwhile so many times while all nodes tell once."""


def run(*, quick: bool) -> list[Result]:
    """Shares of a core, of the master and of each of the others."""
    sheet = Sheet()
    rounds = 2 if quick else 10
    master = _Costs()
    follower = _Costs()
    for seq in range(1, rounds + 2):
        frames = list(large.frames(seq))
        master_s = follower_s = 0.0
        for number in range(TICKS):
            told = [encode(Publish(frame=frame)) for frame in frames[number::TICKS]]
            tick, used_s = master.gather(told)
            master_s += used_s
            follower_s += follower.fold(tick, len(told))
        if seq > 1:  # The first time memory is new to the process.
            master.used_s += master_s
            follower.used_s += follower_s
    name = f"telemetry of {large.NODES:,} x {large.DEVICES} devices every {INTERVAL_S:g} s"
    for who, costs in (("a follower", follower), ("the master", master)):
        share = costs.used_s / (rounds * INTERVAL_S) * 100
        sheet.add(f"{name}: {who}", share, "% of a core", at_most=10)
    return sheet.results


class _Costs:
    """A node's part in the lane, with what it used so far."""

    def __init__(self) -> None:
        self.used_s = 0.0
        self._board = Board(large.node_id(0), feed_backlog=8192, is_checking_invariants=False)
        self._board.state = large.measured()
        self._ring = TickRing()

    def gather(self, told: list[bytes]) -> tuple[bytes, float]:
        """As master take what nodes tell; return the message to all, and the seconds it took."""
        started_s = time.process_time()
        frames: list[TelemetryFrame] = []
        for data in told:
            message = decode_from_dialer(data)
            assert isinstance(message, Publish)
            # Each comes on a connection of its own, and so by itself.
            frames += self._board.fold_frames((message.frame,))
            self._ring.gather(message.frame)
        self._ring.close_tick(1)
        ticks = self._ring.since(self._ring.tick - 1)
        used_s = time.process_time() - started_s
        assert ticks is not None and len(frames) == len(told)
        return ticks[0], used_s

    def fold(self, tick: bytes, expected: int) -> float:
        """As follower take the message; return the seconds it took."""
        started_s = time.process_time()
        message = decode_from_listener(tick)
        assert isinstance(message, TelemetryTick)
        news = self._board.fold_frames(message.frames)
        used_s = time.process_time() - started_s
        assert len(news) == expected
        return used_s
