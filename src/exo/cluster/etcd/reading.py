"""Keeps a node level with etcd: loads what is there, watches what comes, and asks now and then whether that is all."""

from contextlib import aclosing

import anyio
from loguru import logger

from exo.cluster.etcd.errors import EtcdCompactedError, EtcdError, EtcdHistoryError, LogGapError
from exo.cluster.etcd.member import Member
from exo.cluster.etcd.messages import WatchAnswer
from exo.cluster.etcd.records import decode_batch
from exo.cluster.etcd.store import EtcdStore, Tail, master_seen
from exo.shared.errors import LogCorruptError

TROUBLE = "reading from etcd"


class Reader:
    """Folds what etcd has into the member, each entry once, whichever way it came."""

    def __init__(self, member: Member, store: EtcdStore) -> None:
        self.snapshot_index = 0
        """Of the newest snapshot, as far as this node knows."""
        self._member = member
        self._store = store
        self._lock = anyio.Lock()
        self._etcd_cluster_id: int | None = None
        self._revision = 0
        self._contact_s = 0.0
        self._heard = 0
        """Counts what the watch said."""
        self._watching: anyio.CancelScope | None = None

    async def catch_up(self) -> Tail:
        """Fold everything that is committed by now. Returns what was read last.

        Raises:
            EtcdHistoryError: etcd has less than this node has seen. What is here stays as it is.
            LogCorruptError: What is there cannot be read.
            EtcdError: See errors.py.
        """
        async with self._lock:
            while True:
                # The watch may fold more while this is on its way: what is read is held against what was known before.
                asked_s, index = self._member.clock(), self._member.state.index
                tail = await self._store.read_after(index)
                self._check_history(tail, index)
                self.snapshot_index = tail.snapshot.index if tail.snapshot is not None else 0
                if self._needs_snapshot(tail, index):
                    await self._load_snapshot()
                    continue
                self._member.fold(tail.entries)
                if tail.is_complete:
                    self._contact_s = asked_s
                    self._member.master_seen(tail.master, tail.revision)
                    self._member.in_touch()
                    self._member.troubled(TROUBLE, None)
                    return tail

    def _check_history(self, tail: Tail, index: int) -> None:
        is_other = self._etcd_cluster_id not in (None, tail.etcd_cluster_id) or tail.revision < self._revision
        if index and (is_other or tail.head.index < index):
            # For good: once the new history is longer, nothing would tell it from the old one.
            self._etcd_cluster_id = -1
            raise EtcdHistoryError(
                f"etcd has decisions up to {tail.head.index} where this node knows {index}: its data was replaced or "
                "deleted; restore it, or start the nodes again to go on with what it has now"
            )
        self._etcd_cluster_id = tail.etcd_cluster_id
        self._revision = tail.revision

    def _needs_snapshot(self, tail: Tail, index: int) -> bool:
        if self.snapshot_index <= index:
            if tail.is_complete and tail.head.index > index + len(tail.entries):
                raise LogCorruptError(
                    f"the log in etcd has no entries from {index + 1} on, and should reach to {tail.head.index}; "
                    "restore etcd from a backup, or choose another prefix"
                )
            return False
        return index == 0 or not tail.entries or tail.entries[0].index > index + 1

    async def _load_snapshot(self) -> None:
        state = await self._store.load_snapshot()
        logger.info("going on from the snapshot at {} in etcd", state.index)
        if state.index > self._member.state.index:
            self._member.go_on_from(state)

    async def watch(self) -> None:
        """Fold what etcd tells until cancelled.

        Raises:
            LogCorruptError: What is there cannot be read.
        """
        pause_s = self._member.options.retry_s
        while True:
            heard = self._heard
            try:
                await self._watch_once()
                continue
            except (EtcdCompactedError, LogGapError) as error:
                logger.info("reading from etcd anew: {}", error.message)
                if self._heard > heard:
                    continue
            except EtcdError as error:
                self._member.troubled(TROUBLE, error.message)
            pause_s = self._member.options.retry_s if self._heard > heard else pause_s
            await anyio.sleep(pause_s)
            pause_s = min(self._member.options.retry_max_s, 2 * pause_s)

    async def _watch_once(self) -> None:
        tail = await self.catch_up()
        keys = self._store.keys
        answers = self._store.client.watch(keys.watch_start, keys.watch_end, tail.revision + 1)
        with anyio.CancelScope() as self._watching:
            async with aclosing(answers):
                async for answer in answers:
                    self._heard += 1
                    self._take(answer)

    def _take(self, answer: WatchAnswer) -> None:
        keys = self._store.keys
        for change in answer.events:
            if change.kv.key == keys.master:
                master = master_seen(change.kv) if change.type == "PUT" else None
                self._member.master_seen(master, change.kv.mod_revision)
            elif change.type == "PUT":
                self._member.fold(decode_batch(change.kv.value))

    async def pulse(self) -> None:
        """See that etcd is there and that the watch has not gone deaf, until cancelled.

        Raises:
            LogCorruptError: What is there cannot be read.
        """
        options = self._member.options
        pause_s = options.pulse_s
        while True:
            heard = self._heard
            await anyio.sleep(pause_s)
            before = (self._member.state.index, self._member.master)
            try:
                await self.catch_up()
                pause_s = options.pulse_s
                if self._heard == heard and before != (self._member.state.index, self._member.master):
                    logger.info("the watch at etcd is silent though there is news: watching anew")
                    if self._watching is not None:
                        self._watching.cancel()
            except EtcdError as error:
                self._member.troubled(TROUBLE, error.message)
                pause_s = min(options.pulse_s, options.retry_max_s)
                is_lost = self._member.clock() - self._contact_s > options.touch_max_s
                if is_lost or isinstance(error, EtcdHistoryError):
                    self._member.out_of_touch()
