"""What the keys are called and what their values say.

Under `/<prefix>/<namespace>/`::

    head                       index of the newest entry and newest term: changed by every commit and election
    log/<index>                the entries of one commit; the index, of 20 digits, is that of the last of them
    master                     who leads; held by that node's lease, and gone with it
    snapshot                   which snapshot is the newest whole one
    snapshot/<index>/<part>    its pieces

A watch of everything from `log/` to `master` sees decisions and masters in their one order, and no snapshots.
"""

from typing import TypeVar
from urllib.parse import quote

import msgspec

from exo.shared.errors import LogCorruptError
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State

BATCH_BYTES_MAX = 1024 * 1024
"""Of the entries of one commit. etcd takes requests of 1.5 MiB unless it is told otherwise."""
SNAPSHOT_PART_BYTES = 512 * 1024
FORMAT_VERSION = 1

T = TypeVar("T")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of bytes that are something else: text that is no UTF-8 and endless nesting come as they are."""


class Keys:
    """The names, all in bytes."""

    def __init__(self, prefix: str, namespace: str) -> None:
        self._base = f"/{prefix}/{quote(namespace, safe='')}/"
        self.head = self._key("head")
        self.master = self._key("master")
        self.snapshot = self._key("snapshot")
        self.watch_start = self._key("log/")
        self.watch_end = self.master + b"\0"

    def _key(self, name: str) -> bytes:
        return (self._base + name).encode()

    def log(self, index: int) -> bytes:
        return self._key(f"log/{index:020d}")

    def snapshot_parts(self, index: int) -> bytes:
        """Return what the pieces of one snapshot, and of no later one, are below."""
        return self._key(f"snapshot/{index:020d}/")

    def snapshot_part(self, index: int, part: int) -> bytes:
        return self.snapshot_parts(index) + f"{part:08d}".encode()

    def snapshot_parts_end(self, index: int) -> bytes:
        return self._key(f"snapshot/{index:020d}0")  # `0` comes right behind `/`.


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the log."""

    index: int = 0
    term: int = 0
    """Of the newest election, even if that master never committed anything."""


class MasterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads, and where the others find it."""

    node_id: NodeId
    boot_id: str
    term: int
    address: HostPort
    name: str
    version: int = FORMAT_VERSION


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Entries that were committed in one transaction."""

    entries: tuple[LogEntry, ...]
    version: int = FORMAT_VERSION


class SnapshotManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A whole state, in so many pieces."""

    index: int
    part_count: int
    size_bytes: int
    version: int = FORMAT_VERSION


def encode_record(record: Head | MasterRecord | SnapshotManifest) -> bytes:
    """As JSON, so that `etcdctl get` can be read."""
    return msgspec.json.encode(record)


def decode_record(data: bytes, record_type: type[T]) -> T:
    """Raises LogCorruptError: it is damaged, or of a newer release."""
    try:
        return msgspec.json.decode(data, type=record_type)
    except UNREADABLE as error:
        raise _unreadable(f"a {record_type.__name__}", error) from error


def encode_batch(entries: tuple[LogEntry, ...]) -> bytes:
    return msgspec.msgpack.encode(Batch(entries=entries))


_batch = msgspec.msgpack.Decoder(Batch)
_state = msgspec.msgpack.Decoder(State)


def decode_batch(data: bytes) -> tuple[LogEntry, ...]:
    """Raises LogCorruptError: it is damaged, or of a newer release."""
    try:
        batch = _batch.decode(data)
    except UNREADABLE as error:
        raise _unreadable("entries", error) from error
    if batch.version > FORMAT_VERSION or not batch.entries:
        raise _unreadable("entries", f"format {batch.version}")
    return batch.entries


def encode_state(state: State) -> bytes:
    """Only what is decided: telemetry is not etcd's."""
    return msgspec.msgpack.encode(state.decided())


def decode_state(data: bytes) -> State:
    """Raises LogCorruptError: it is damaged, or of a newer release."""
    try:
        return _state.decode(data)
    except UNREADABLE as error:
        raise _unreadable("a snapshot", error) from error


def _unreadable(what: str, reason: object) -> LogCorruptError:
    return LogCorruptError(
        f"{what} in etcd cannot be read ({reason}): a newer release wrote it, or something that is not exo; "
        "install the newer release here, or choose another prefix"
    )
