"""Random lives of a segment log beside a naive twin, with kills and losses of power at any operation on the disk."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from exo.cluster.log.segments import SegmentLog
from support.entries import entry
from support.log_oracle import LogOracle, Twin
from support.power_loss import PowerLossFiles, PowerLost

HERE = Path("somewhere")


class Crash(msgspec.Struct, frozen=True):
    """It happens at the operation `at` on the disk, and again while the log is opened."""

    at: int
    again_at: int | None
    is_kill: bool
    seed: int


CRASHES = st.builds(
    Crash,
    at=st.integers(0, 2) | st.integers(0, 12),
    again_at=st.none() | st.integers(0, 9),
    is_kill=st.booleans(),
    seed=st.integers(0, 10**6),
)
PERHAPS = st.none() | CRASHES


class LogLife(RuleBasedStateMachine):
    """One log, opened again and again on one disk."""

    def __init__(self) -> None:
        super().__init__()
        self.files = PowerLossFiles()
        self.oracle = LogOracle()
        self.term = 0
        self.segment_bytes = 0
        self.log: SegmentLog

    @initialize(
        segment_bytes=st.sampled_from([300, 1500, 10**6]), sizes=st.lists(st.integers(1, 4), max_size=9)
    )
    def open(self, segment_bytes: int, sizes: list[int]) -> None:
        self.segment_bytes = segment_bytes
        self.log = self.opened()
        for size in sizes:
            self.append(size, is_synced=True, crash=None)

    def opened(self) -> SegmentLog:
        return SegmentLog(HERE, files=self.files, segment_bytes=self.segment_bytes)

    def carry_out(self, result: Twin, crash: Crash | None, step: Callable[[], object]) -> bool:
        """Say whether the step came to its end."""
        self.oracle.begin(result)
        self.files.steps_left = None if crash is None else crash.at
        try:
            step()
        except PowerLost:
            assert crash is not None
            self.recover(crash)
            return False
        self.files.steps_left = None
        self.oracle.done()
        return True

    def recover(self, crash: Crash) -> None:
        """Open it again. What happens meanwhile changes nothing that was acknowledged."""
        for again_at in (crash.again_at, None):
            if crash.is_kill:
                self.files.stop_process()
            else:
                self.files.lose_power(random=Random(crash.seed))
            self.files.steps_left = again_at
            try:
                self.log = self.opened()
                break
            except PowerLost:
                continue
        self.files.steps_left = None
        self.oracle.recovered(self.log)

    @rule(size=st.integers(1, 6), is_synced=st.booleans(), crash=PERHAPS)
    def append(self, size: int, is_synced: bool, crash: Crash | None) -> None:
        self.term += 1
        first = self.oracle.now.last_index + 1
        group = [entry(index, term=self.term) for index in range(first, first + size)]
        is_done = self.carry_out(
            self.oracle.now.appended(group), None if is_synced else crash, lambda: self.log.append(group)
        )
        if is_done and is_synced:
            self.sync(crash)

    @rule(crash=PERHAPS)
    def sync(self, crash: Crash | None) -> None:
        self.carry_out(self.oracle.now.synced(), crash, self.log.sync)

    @rule(back=st.integers(0, 4) | st.integers(0, 40), crash=PERHAPS)
    def truncate(self, back: int, crash: Crash | None) -> None:
        index = max(self.log.first_index - 1, self.oracle.now.last_index - back)
        self.carry_out(self.oracle.now.truncated(index), crash, lambda: self.log.truncate_after(index))

    @rule(back=st.integers(-2, 60), crash=PERHAPS)
    def compact(self, back: int, crash: Crash | None) -> None:
        index = self.oracle.now.last_index - back
        self.carry_out(self.oracle.now.compacted(index), crash, lambda: self.log.compact(index))

    @rule(is_rare=st.integers(0, 4), forward=st.integers(-10, 10), crash=PERHAPS)
    def restart(self, is_rare: int, forward: int, crash: Crash | None) -> None:
        if is_rare:
            return
        index = max(0, self.oracle.now.last_index + forward)
        self.carry_out(self.oracle.now.restarted(index), crash, lambda: self.log.restart_at(index))

    @rule(count=st.integers(1, 6), crash=PERHAPS)
    def tidy(self, count: int, crash: Crash | None) -> None:
        for number in range(count, 0, -1):
            if not self.carry_out(self.oracle.now, crash if number == 1 else None, self.log.tidy):
                return

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = self.opened()
        self.oracle.recovered(self.log)

    @rule(crash=CRASHES)
    def crash(self, crash: Crash) -> None:
        self.recover(crash)

    @invariant()
    def nothing_is_lost_and_nothing_is_back(self) -> None:
        if hasattr(self, "log"):
            self.oracle.check(self.log)


LogLife.TestCase.settings = settings(max_examples=250, stateful_step_count=30, deadline=None)
TestLogLife = LogLife.TestCase
