"""Kills a writing process again and again, at once and without warning, and checks what it leaves behind.

Runs as a process of its own with little in it: `python log_killer.py DIRECTORY ROUNDS SEED` forks a writer for each
round, which is quicker than to start an interpreter. The writer says on a pipe what it is about to do and what is done.
Prints what was done and how often; ends with an error when something is missing or wrong.
"""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from loguru import logger

from exo.cluster.log.store import NodeStore, open_store
from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import HardState, Write
from exo.shared.types.events import LogEntry
from support.entries import entry, snapshot
from support.log_oracle import LogOracle

SEGMENT_BYTES = 3000
MARGIN_ENTRIES = 5
Say = Callable[..., None]


def group(first: int, count: int, term: int) -> list[LogEntry]:
    return [entry(index, term=term) for index in range(first, first + count)]


def write_for_ever(directory: Path, say: Say, random: Random, term: int) -> None:
    """What the forked process does."""
    store = open_store(directory, segment_bytes=SEGMENT_BYTES)
    known = store.snapshots.load()
    floor = 0 if known is None else known.index
    number = 0
    while True:
        number += 1
        term += 1
        last = store.log.last_index
        match random.choice(("append", "append", "append", "replace", "vote", "snapshot", "install", "tidy")):
            case "append":
                count = random.randint(1, 8)
                say("append", last + 1, count, term)
                store.apply_writes([Write(number=number, entries=tuple(group(last + 1, count, term)))])
            case "replace":
                index, count = random.randint(max(floor, last - 20), last), random.randint(0, 8)
                say("truncate", index)
                store.log.truncate_after(index)
                say("done")
                if count == 0:
                    continue
                say("append", index + 1, count, term)
                store.apply_writes([Write(number=number, entries=tuple(group(index + 1, count, term)))])
            case "vote":
                say("vote", term)
                store.apply_writes([Write(number=number, hard_state=HardState(term=term))])
            case "snapshot" if last > floor:
                floor = random.randint(floor + 1, last)
                entry_term = next(iter(store.log.read(floor - 1))).term
                say("snapshot", floor, entry_term)
                store.save_local_snapshot(snapshot(floor, term=entry_term), margin_entries=MARGIN_ENTRIES)
            case "install" if random.random() < 0.2:
                floor = random.randint(max(1, last - 10), last + 30)
                say("install", floor, term)
                store.apply_writes([Write(number=number, snapshot=snapshot(floor, term=term))])
            case "tidy":
                say("tidy")
                store.tidy()
            case _:
                continue
        say("done")


class Follower:
    """Knows from what the writers said what has to be there."""

    def __init__(self) -> None:
        self.oracle = LogOracle()
        self.vote, self.next_vote = 0, 0
        self.snapshot: Snapshot | None = None
        self.next_snapshot: Snapshot | None = None
        self.term = 0
        self.counts: Counter[str] = Counter()

    def hear(self, what: str, *numbers: int) -> None:
        now = self.oracle.now
        match what, numbers:
            case "append", (first, count, term):
                # Appended, then synced: what is half done is not acknowledged.
                self.oracle.begin(now.appended(group(first, count, term)))
                self.term = term
            case "truncate", (index,):
                self.oracle.begin(now.truncated(index))
            case "vote", (term,):
                self.next_vote = self.term = term
            case "snapshot", (index, term):
                self.next_snapshot = snapshot(index, term=term)
                self.oracle.begin(now.compacted(index - MARGIN_ENTRIES))
            case "install", (index, term):
                self.next_snapshot = snapshot(index, term=term)
                self.oracle.begin(now.restarted(index))
                self.term = term
            case "done", ():
                if self.oracle.is_busy:
                    self.oracle.done()
                    self.oracle.now = self.oracle.now.synced()
                self.vote, self.snapshot = self.next_vote, self.next_snapshot
                return
            case _:
                pass
        self.counts[what] += 1

    def check(self, store: NodeStore) -> None:
        """After the kill, and the next opening."""
        self.oracle.recovered(store.log)
        vote, taken = store.votes.load().term, store.snapshots.load()
        assert vote in (self.vote, self.next_vote), f"voted in {vote}, not {self.vote} or {self.next_vote}"
        assert taken in (self.snapshot, self.next_snapshot), (
            f"{taken}, not {self.snapshot} or {self.next_snapshot}"
        )
        self.vote = self.next_vote = vote
        self.snapshot = self.next_snapshot = taken


def one_round(directory: Path, random: Random, follower: Follower) -> None:
    reading, writing = os.pipe()
    seed = random.random()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            write_for_ever(
                directory,
                lambda *words: os.write(writing, (" ".join(map(str, words)) + "\n").encode()),
                Random(seed),
                follower.term,
            )
        except BaseException as error:
            os.write(2, f"the writer failed: {error!r}\n".encode())
        os._exit(1)
    os.close(writing)
    wanted = random.randint(0, 40)
    data = b""
    while data.count(b"\n") < wanted:
        part = os.read(reading, 1 << 16)
        assert part, "the writer ended by itself"
        data += part
    os.kill(child, signal.SIGKILL)
    while part := os.read(reading, 1 << 16):
        data += part
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer ended by itself"
    for line in data.decode().split("\n")[:-1]:
        what, *numbers = line.split()
        follower.hear(what, *map(int, numbers))
    store = open_store(directory, segment_bytes=SEGMENT_BYTES)
    follower.check(store)
    store.close()


def main(directory: Path, rounds: int, seed: int) -> None:
    logger.remove()
    random = Random(seed)
    follower = Follower()
    for _ in range(rounds):
        one_round(directory, random, follower)
    print(json.dumps({"kills": rounds, "last_index": follower.oracle.now.last_index, **follower.counts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
