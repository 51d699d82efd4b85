"""etcd's API v3 as its JSON gateway speaks it: bytes in base64, and whole numbers as text in what it answers."""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

# --- what is asked -----------------------------------------------------------------------------------------------


class Range(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Keys from `key` to before `range_end`, or just `key`; `limit` 0 means all."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    """As of then; 0 means now."""


class Put(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    key: bytes
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    key: bytes
    range_end: bytes = b""


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the three."""

    request_range: Range | None = None
    request_put: Put | None = None
    request_delete_range: Delete | None = None


def operation(request: Range | Put | Delete) -> Operation:
    match request:
        case Range():
            return Operation(request_range=request)
        case Put():
            return Operation(request_put=request)
        case Delete():
            return Operation(request_delete_range=request)


class Compare(msgspec.Struct, frozen=True, kw_only=True):
    """A key was created, or last changed, at just this revision; 0: there is no such key."""

    key: bytes
    target: Literal["CREATE", "MOD"]
    create_revision: int | UnsetType = UNSET
    mod_revision: int | UnsetType = UNSET
    result: Literal["EQUAL"] = "EQUAL"


def created_at(key: bytes, revision: int) -> Compare:
    return Compare(key=key, target="CREATE", create_revision=revision)


def changed_at(key: bytes, revision: int) -> Compare:
    return Compare(key=key, target="MOD", mod_revision=revision)


class Txn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All of `success` at once if everything compares, else all of `failure`."""

    compare: Sequence[Compare] = ()
    success: Sequence[Operation] = ()
    failure: Sequence[Operation] = ()


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    TTL: int


class LeaseId(msgspec.Struct, frozen=True, kw_only=True):
    ID: int


class Authenticate(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    password: str


class CreateWatch(msgspec.Struct, frozen=True, kw_only=True):
    key: bytes
    range_end: bytes
    start_revision: int


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    create_request: CreateWatch


# --- what is answered --------------------------------------------------------------------------------------------


class Header(msgspec.Struct, frozen=True, kw_only=True):
    cluster_id: int = 0
    revision: int = 0
    """Of etcd's whole history; grows with every change of any key."""


class KeyValue(msgspec.Struct, frozen=True, kw_only=True):
    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class RangeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False

    @property
    def first(self) -> KeyValue | None:
        return self.kvs[0] if self.kvs else None


class OperationAnswer(msgspec.Struct, frozen=True, kw_only=True):
    response_range: RangeAnswer | None = None


class TxnAnswer(msgspec.Struct, frozen=True, kw_only=True):
    header: Header
    succeeded: bool = False
    responses: tuple[OperationAnswer, ...] = ()

    def range_answer(self, position: int) -> RangeAnswer:
        """Return the answer to the range that was asked for at a place of the branch that was taken."""
        answer = self.responses[position].response_range
        return RangeAnswer() if answer is None else answer


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`TTL` 0: there is no such lease any more."""

    ID: int = 0
    TTL: int = 0


class KeepAliveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    result: LeaseAnswer


class Token(msgspec.Struct, frozen=True, kw_only=True):
    token: str


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of which only the arrival counts."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    kv: KeyValue
    type: Literal["PUT", "DELETE"] = "PUT"


class WatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    header: Header
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: tuple[Change, ...] = ()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """`code` is gRPC's."""

    error: str = ""
    message: str = ""
    code: int = 0


class StreamFailure(msgspec.Struct, frozen=True, kw_only=True):
    """What ends a stream; of newer releases it has no `error`."""

    grpc_code: int = 0
    code: int = 0
    message: str = ""


class WatchLine(msgspec.Struct, frozen=True, kw_only=True):
    result: WatchAnswer | None = None
    error: StreamFailure | None = None
