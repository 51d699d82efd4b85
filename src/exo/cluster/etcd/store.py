"""The log, the snapshot and the right to lead, as they lie in etcd. Each method is one request or a few.

What a master writes is compared with two keys: `master` is still the one that it created, and, for entries, `head`
has not changed since it last wrote it. So of two that hold themselves to be the master only one can commit.
"""

from collections.abc import Sequence

import msgspec

from exo.cluster.etcd.client import EtcdClient
from exo.cluster.etcd.errors import DeposedError, EtcdCompactedError
from exo.cluster.etcd.messages import (
    Compare,
    Delete,
    KeyValue,
    Put,
    Range,
    Txn,
    TxnAnswer,
    changed_at,
    created_at,
    operation,
)
from exo.cluster.etcd.records import (
    SNAPSHOT_PART_BYTES,
    Head,
    Keys,
    MasterRecord,
    SnapshotManifest,
    decode_batch,
    decode_record,
    decode_state,
    encode_batch,
    encode_record,
    encode_state,
)
from exo.shared.errors import LogCorruptError
from exo.shared.types.events import LogEntry
from exo.shared.types.state import State

BATCHES_PER_READ = 128
PARTS_PER_READ = 4
LOAD_ATTEMPTS_MAX = 5


class MasterSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The master's key as it was found."""

    record: MasterRecord
    create_revision: int
    lease_id: int


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """What lay behind an index at one revision of etcd."""

    etcd_cluster_id: int
    revision: int
    entries: tuple[LogEntry, ...]
    is_complete: bool
    """Otherwise there are more entries, and the rest is not filled in."""
    head: Head
    head_revision: int
    """When `head` last changed; 0: there is none yet."""
    master: MasterSeen | None
    snapshot: SnapshotManifest | None


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """The right to lead in one term, with what proves it to etcd."""

    term: int
    lease_id: int
    create_revision: int
    """Of the master's key."""
    head_revision: int


class EtcdStore:
    """One namespace of exo in etcd."""

    def __init__(self, client: EtcdClient, keys: Keys) -> None:
        self.client = client
        self.keys = keys

    # --- reading -------------------------------------------------------------------------------------------------

    async def read_after(self, index: int) -> Tail:
        """Read the entries behind an index, and who leads: the newest there is. Raises EtcdError, LogCorruptError."""
        keys = self.keys
        ranges = (
            Range(key=keys.log(index + 1), range_end=keys.watch_end, limit=BATCHES_PER_READ),
            Range(key=keys.head),
            Range(key=keys.snapshot),
        )
        answer = await self.client.txn(Txn(success=[operation(one) for one in ranges]))
        tail, head, manifest = (answer.range_answer(position) for position in range(3))
        entries: list[LogEntry] = []
        master: MasterSeen | None = None
        for found in tail.kvs:
            if found.key == keys.master:
                master = master_seen(found)
            else:
                entries += decode_batch(found.value)
        return Tail(
            etcd_cluster_id=answer.header.cluster_id,
            revision=answer.header.revision,
            entries=tuple(entry for entry in entries if entry.index > index),
            is_complete=not tail.more,
            head=Head() if head.first is None else decode_record(head.first.value, Head),
            head_revision=0 if head.first is None else head.first.mod_revision,
            master=master,
            snapshot=(
                None if manifest.first is None else decode_record(manifest.first.value, SnapshotManifest)
            ),
        )

    async def load_snapshot(self) -> State:
        """Return the state of the newest snapshot; a state of index 0 where there is none.

        Raises:
            EtcdError: See errors.py.
            LogCorruptError: It is damaged, or of a newer release.
        """
        for _ in range(LOAD_ATTEMPTS_MAX):
            try:
                return await self._load_snapshot()
            except EtcdCompactedError:
                continue  # Another snapshot has replaced it while it was read.
        raise EtcdCompactedError(
            "snapshots in etcd are replaced faster than they can be read; compact it less often"
        )

    async def _load_snapshot(self) -> State:
        answer = await self.client.txn(Txn(success=[operation(Range(key=self.keys.snapshot))]))
        found = answer.range_answer(0).first
        if found is None:
            return State()
        manifest = decode_record(found.value, SnapshotManifest)
        data = bytearray()
        for part in range(0, manifest.part_count, PARTS_PER_READ):
            pieces = await self.client.txn(
                Txn(
                    success=[
                        operation(
                            Range(
                                key=self.keys.snapshot_part(manifest.index, part),
                                range_end=self.keys.snapshot_parts_end(manifest.index),
                                limit=PARTS_PER_READ,
                                revision=answer.header.revision,
                            )
                        )
                    ]
                )
            )
            for piece in pieces.range_answer(0).kvs:
                data += piece.value
        if len(data) != manifest.size_bytes:
            raise LogCorruptError(
                f"the snapshot in etcd has {len(data)} bytes instead of {manifest.size_bytes}; "
                "restore etcd from a backup, or choose another prefix"
            )
        return decode_state(bytes(data))

    # --- leading -------------------------------------------------------------------------------------------------

    async def campaign(self, record: MasterRecord, lease_id: int, tail: Tail) -> Hold | None:
        """Become master of the term in `record` if there is none and nothing was committed since `tail` was read.

        Returns:
            The right to lead, or None: somebody else was first.

        Raises:
            EtcdError: If it is an EtcdUnreachableError, this node may have become master: only its lease's end, or
                asking again with the same lease, tells.
        """
        keys = self.keys
        head = Head(index=tail.head.index, term=record.term)
        answer = await self.client.txn(
            Txn(
                compare=[created_at(keys.master, 0), changed_at(keys.head, tail.head_revision)],
                success=[
                    operation(Put(key=keys.master, value=encode_record(record), lease=lease_id)),
                    operation(Put(key=keys.head, value=encode_record(head))),
                ],
                failure=[operation(Range(key=keys.master)), operation(Range(key=keys.head))],
            )
        )
        if answer.succeeded:
            revision = answer.header.revision
        else:
            # This node's own, if the answer to an earlier attempt was lost on the way.
            master, head_found = answer.range_answer(0).first, answer.range_answer(1).first
            if master is None or master.lease != lease_id or head_found is None:
                return None
            revision = head_found.mod_revision
        return Hold(term=record.term, lease_id=lease_id, create_revision=revision, head_revision=revision)

    async def commit(self, hold: Hold, entries: tuple[LogEntry, ...]) -> Hold:
        """Write entries behind the newest, all or none. May be repeated as it is while the outcome is unknown.

        Raises:
            DeposedError: This node leads no longer. Nothing was written.
            EtcdError: If it is an EtcdUnreachableError, they may be committed, or become so later.
        """
        keys, value, last = self.keys, encode_batch(entries), entries[-1].index
        answer = await self.client.txn(
            Txn(
                compare=[self._is_master(hold), changed_at(keys.head, hold.head_revision)],
                success=[
                    operation(Put(key=keys.log(last), value=value)),
                    operation(Put(key=keys.head, value=encode_record(Head(index=last, term=hold.term)))),
                ],
                failure=[operation(Range(key=keys.log(last)))],
            )
        )
        if answer.succeeded:
            return msgspec.structs.replace(hold, head_revision=answer.header.revision)
        found = answer.range_answer(0).first
        if found is None or found.value != value:
            raise DeposedError(
                f"etcd says that this node no longer leads in term {hold.term}; follow the new master"
            )
        # An earlier attempt had succeeded: entries have ids of their own, so no one else wrote the same.
        return msgspec.structs.replace(hold, head_revision=found.mod_revision)

    async def save_snapshot(self, hold: Hold, state: State, *, keep_after_index: int) -> SnapshotManifest:
        """Write a snapshot, then make it the newest and forget older ones and the entries up to an index.

        Raises:
            DeposedError: This node leads no longer.
            EtcdError: The snapshot before stays the newest, or this one has become it.
        """
        keys, data = self.keys, encode_state(state)
        parts = [
            data[start : start + SNAPSHOT_PART_BYTES] for start in range(0, len(data), SNAPSHOT_PART_BYTES)
        ]
        for number, part in enumerate(parts):
            await self._write(hold, [Put(key=keys.snapshot_part(state.index, number), value=part)])
        manifest = SnapshotManifest(index=state.index, part_count=len(parts), size_bytes=len(data))
        await self._write(
            hold,
            [
                Put(key=keys.snapshot, value=encode_record(manifest)),
                Delete(key=keys.snapshot_parts(0), range_end=keys.snapshot_parts(state.index)),
                Delete(key=keys.log(0), range_end=keys.log(keep_after_index + 1)),
            ],
        )
        return manifest

    async def _write(self, hold: Hold, requests: Sequence[Put | Delete]) -> TxnAnswer:
        answer = await self.client.txn(
            Txn(compare=[self._is_master(hold)], success=[operation(request) for request in requests])
        )
        if not answer.succeeded:
            raise DeposedError(
                f"etcd says that this node no longer leads in term {hold.term}; follow the new master"
            )
        return answer

    def _is_master(self, hold: Hold) -> Compare:
        return created_at(self.keys.master, hold.create_revision)


def master_seen(found: KeyValue) -> MasterSeen:
    """Raises LogCorruptError: it is damaged, or of a newer release."""
    return MasterSeen(
        record=decode_record(found.value, MasterRecord),
        create_revision=found.create_revision,
        lease_id=found.lease,
    )
