"""The audit log: who had what done, from where, with which result. Lines of JSON, each with the hash of the one before.

The hashes make a line that was changed or taken out of the middle stand out. They do not help against somebody who may
write the files and makes the whole chain anew, nor against the last lines being cut off: for that, copies have to be
kept elsewhere (`exo audit --follow --json`).
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from loguru import logger

from exo.cluster.log.files import sync_descriptor, sync_directory

FILE_NAME = "audit.log"
FILE_BYTES_MAX = 8 * 1024 * 1024
FILES_MAX = 8
TEXT_CHARACTERS_MAX = 256

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    seq: int
    """Counts from 1, over all files."""
    at: str
    """ISO 8601, UTC."""
    who: str
    address: str
    what: str
    """The command, or what was refused before it became one."""
    details: dict[str, Any] = {}
    result: str
    """`done`, `refused`, or `unknown` where the answer was lost."""
    index: int | None = None
    """Of the decision that it led to."""
    code: str | None = None
    """Why it was refused."""
    previous: str
    """SHA-256 of the line before, in hexadecimal; empty in the first of all."""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What came of checking the chain."""

    line_count: int
    first_seq: int | None
    """More than 1 where older files were dropped."""
    last_seq: int | None
    problems: tuple[str, ...]


class AuditLog:
    """Appends to `<folder>/audit.log`; when it is full it becomes `audit.log.1`, and so on, and the oldest is dropped.

    Args:
        folder: Where the files are; made when the first line is written, for its owner only.
        now: The time, ISO 8601 in UTC.
        file_bytes_max: Where a file ends.
        files_max: How many are kept.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], str],
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
        files_max: int = FILES_MAX,
    ) -> None:
        self.folder = folder
        self._now = now
        self._file_bytes_max = file_bytes_max
        self._files_max = files_max
        self._lock = anyio.Lock()
        self._last: tuple[int, str] | None = None
        self._lost_count = 0
        """Lines that could not be written since the last one that could."""

    async def record(
        self,
        *,
        who: str,
        address: str,
        what: str,
        result: str,
        details: Mapping[str, Any] | None = None,
        index: int | None = None,
        code: str | None = None,
    ) -> None:
        """Append a line; it is on disk when this returns.

        A disk that fails is told in the log, once until it works again, and is no error here: what is recorded has
        happened already.
        """
        # Somebody who leaves early does not leave the line out.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                at = self._now()

                def append() -> None:
                    seq, previous = self._last if self._last is not None else self._open()
                    line = AuditLine(
                        seq=seq + 1,
                        at=at,
                        who=shorten(who),
                        address=shorten(address),
                        what=what,
                        details={key: shorten(value) for key, value in (details or {}).items()},
                        result=result,
                        index=index,
                        code=code,
                        previous=previous,
                    )
                    data = msgspec.json.encode(line)
                    self._append(data)
                    self._last = (line.seq, _hash(data))

                try:
                    await anyio.to_thread.run_sync(append)
                except OSError as error:
                    self._last = None
                    self._lost_count += 1
                    if self._lost_count == 1:
                        logger.error(
                            "cannot write the audit log in {}: {}; make room there, or give this user the right to "
                            "write",
                            self.folder,
                            error.strerror or error,
                        )
                else:
                    if self._lost_count:
                        logger.warning(
                            "the audit log lacks {} lines that could not be written", self._lost_count
                        )
                    self._lost_count = 0

    async def entries(self, *, limit: int, after: int | None = None) -> list[AuditLine]:
        """Return the newest lines, oldest first: the last `limit`, or the first `limit` behind a number."""
        return await anyio.to_thread.run_sync(lambda: read_lines(self.folder, limit=limit, after=after))

    async def verify(self) -> Verification:
        """Check the whole chain, without a line being written meanwhile."""
        async with self._lock:
            return await anyio.to_thread.run_sync(lambda: verify(self.folder))

    def _open(self) -> tuple[int, str]:
        """Return number and hash of the last line, after ending one that a crash cut off."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / FILE_NAME
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._write(path, b"\n")
        seq, previous, cut_off = 0, "", 0
        for raw in _newest_first(self.folder):
            previous = previous or _hash(raw)
            line = _decode(raw)
            if line is not None:
                seq = line.seq
                break
            cut_off += 1
        return seq + cut_off, previous

    def _append(self, data: bytes) -> None:
        path = self.folder / FILE_NAME
        if path.exists() and path.stat().st_size + len(data) + 1 > self._file_bytes_max:
            self._rotate()
        self._write(path, data + b"\n")

    def _rotate(self) -> None:
        numbers = sorted((_number(path) for path in _files(self.folder)), reverse=True)
        for number in numbers:
            path = self.folder / (f"{FILE_NAME}.{number}" if number else FILE_NAME)
            if number + 1 >= self._files_max:
                path.unlink()
            else:
                path.replace(self.folder / f"{FILE_NAME}.{number + 1}")
        sync_directory(self.folder)

    def _write(self, path: Path, data: bytes) -> None:
        is_new = not path.exists()
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            sync_descriptor(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_directory(self.folder)


def read_lines(folder: Path, *, limit: int, after: int | None = None) -> list[AuditLine]:
    """Return lines, oldest first: the last `limit`, or the first `limit` behind the line with a number."""
    if after is None:
        lines = (line for raw in _newest_first(folder) if (line := _decode(raw)) is not None)
        return list(islice(lines, limit))[::-1]
    behind = (
        line
        for path in _files(folder)
        for raw in _lines(path)
        if (line := _decode(raw)) is not None and line.seq > after
    )
    return list(islice(behind, limit))


def verify(folder: Path) -> Verification:
    """Check that every line follows the one before it."""
    problems: list[str] = []
    count = 0
    first: int | None = None
    seq: int | None = None
    previous: str | None = None
    cut_off = 0
    for path in _files(folder):
        for raw in _lines(path):
            count += 1
            line = _decode(raw)
            if line is None:
                # One that a crash cut off is part of the chain all the same: the next has its hash.
                cut_off += 1
                previous = _hash(raw)
                continue
            where = f"line {line.seq} ({line.at})"
            if previous is not None and line.previous != previous:
                problems.append(
                    f"{where} does not follow the line before it: something was changed or taken out"
                )
            elif seq is not None and line.seq != seq + cut_off + 1:
                problems.append(f"{where} follows number {seq}: {line.seq - seq - 1} lines are missing")
            elif previous is None and line.seq == 1 and line.previous:
                problems.append(f"{where} is the first, and says that another was before it")
            first = line.seq if first is None else first
            seq, previous, cut_off = line.seq, _hash(raw), 0
    return Verification(line_count=count, first_seq=first, last_seq=seq, problems=tuple(problems))


def shorten(value: Any) -> Any:
    """Return a text from outside on one line and not too long; anything else as it is."""
    if not isinstance(value, str):
        return value
    shown = "".join(character if character.isprintable() else " " for character in value)
    return shown if len(shown) <= TEXT_CHARACTERS_MAX else shown[: TEXT_CHARACTERS_MAX - 1] + "…"


def _decode(raw: bytes) -> AuditLine | None:
    try:
        return msgspec.json.decode(raw, type=AuditLine)
    except msgspec.MsgspecError:
        return None


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _number(path: Path) -> int:
    """Return how old a file is: 0 the present one."""
    suffix = path.name.removeprefix(FILE_NAME).removeprefix(".")
    return int(suffix) if suffix.isdecimal() else 0


def _files(folder: Path) -> list[Path]:
    """Return the files, oldest first."""
    found = [path for path in folder.glob(f"{FILE_NAME}*") if path.name == FILE_NAME or _number(path)]
    return sorted(found, key=_number, reverse=True)


def _newest_first(folder: Path) -> Iterator[bytes]:
    for path in reversed(_files(folder)):
        yield from reversed(_lines(path))


def _lines(path: Path) -> list[bytes]:
    return [raw for raw in path.read_bytes().split(b"\n") if raw]
