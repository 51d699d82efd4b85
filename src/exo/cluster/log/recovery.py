"""What the files of a log mean after a stop of any kind: which entries count, and what has to be tidied up.

Reads only. Carrying the findings out is repeatable: a crash in the middle leads to the same findings again.
"""

from collections.abc import Sequence

import msgspec

from exo.cluster.log import format
from exo.cluster.log.files import DRAFT_SUFFIX, Files
from exo.cluster.log.mark import Mark
from exo.cluster.log.segment import Segment, first_index_of, load, packed_name, raw_name
from exo.shared.errors import LogCorruptError


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What is there, once `removals` are removed and the last segment is cut off behind `last_index`."""

    segments: tuple[Segment, ...]
    start_index: int
    last_index: int
    removals: tuple[str, ...] = ()
    is_to_be_cut: bool = False
    """The last segment holds more than counts."""
    torn: str | None = None
    """What a tail that never counted looks like, for people."""


class _Run(msgspec.Struct, frozen=True):
    """The good frames at the beginning of a segment that continue behind what is known."""

    end: int
    last_index: int
    gap_at: int | None = None
    """The next frame is a good one, and continues elsewhere."""


def examine(files: Files, mark: Mark, *, is_trusting: bool, where: str) -> Findings:
    """Find out what a directory holds.

    Args:
        files: The directory.
        mark: What was noted of it.
        is_trusting: Nothing was noted: what is there counts.
        where: The directory's name, for people.

    Raises:
        LogCorruptError: What was acknowledged is not there, whole; or a newer release wrote it.
        OSError: A file cannot be read.
    """
    return _Examination(files, mark, is_trusting, where).findings()


class _Examination:
    def __init__(self, files: Files, mark: Mark, is_trusting: bool, where: str) -> None:
        self._files = files
        self._mark = mark
        self._is_trusting = is_trusting
        self._where = where
        names = files.names()
        self._names = {name for name in names if first_index_of(name) is not None}
        self._firsts = sorted({first for name in names if (first := first_index_of(name)) is not None})
        self._removals = [
            name
            for name in names
            if name.endswith(DRAFT_SUFFIX) and first_index_of(name.removesuffix(DRAFT_SUFFIX)) is not None
        ]
        self._start = min(self._firsts, default=1) - 1 if is_trusting else mark.start_index
        self._last = self._start
        self._limit = mark.task_index if mark.task == "cut" else None
        self._segments: list[Segment] = []
        self._is_to_be_cut = False
        self._torn: str | None = None

    def findings(self) -> Findings:
        kept = [first for first in self._firsts if first > self._start and self._mark.task != "empty"]
        self._drop([first for first in self._firsts if first not in kept])
        for number, first in enumerate(kept):
            if self._limit is not None and self._last >= self._limit:
                self._drop(kept[number:])
                break
            if not self._take(first, kept[number + 1 :]):
                break
        if self._last < self._mark.synced_index:
            raise self._ended_early()
        return Findings(
            segments=tuple(self._segments),
            start_index=self._start,
            last_index=self._last,
            removals=tuple(self._removals),
            is_to_be_cut=self._is_to_be_cut,
            torn=self._torn,
        )

    def _take(self, first: int, later: Sequence[int]) -> bool:
        """Take a segment in; say whether the next one may count."""
        name = raw_name(first)
        if name not in self._names:
            name = packed_name(first)
        elif packed_name(first) in self._names:
            # The power went between the two steps of compressing it. It is done again.
            self._removals.append(packed_name(first))
        data = load(self._files, name) or b""
        run = _read(data, first, name, self._last, self._limit)
        is_at_limit = self._limit is not None and run.last_index >= self._limit
        is_whole = run.gap_at is None and run.end > format.HEADER_BYTES and format.is_blank(data, run.end)
        has_entries = run.last_index > self._last
        self._last = run.last_index if self._limit is None else min(run.last_index, self._limit)
        if has_entries:
            self._segments.append(_segment(first, name, data, run.end))
        self._is_to_be_cut = has_entries and (is_at_limit or not is_whole)
        if is_whole or is_at_limit:
            return True
        self._require_unacknowledged(name, data, run, is_followed=bool(later))
        size_bytes = len(data.rstrip(b"\0"))  # The zeros behind it were there before.
        self._torn = f"{max(0, size_bytes - run.end)} bytes behind entry {self._last} in {name}"
        self._drop(later if has_entries else [first, *later])
        return False

    def _require_unacknowledged(self, name: str, data: bytes, run: _Run, *, is_followed: bool) -> None:
        """The log breaks off behind these frames: check that nobody was told of what came next."""
        is_in_the_middle = is_followed or format.has_frame_after(data, run.end - 1)
        if not self._is_trusting:
            if self._last >= self._mark.synced_index:
                return
            if not is_in_the_middle:
                raise self._ended_early()
        elif not is_in_the_middle:
            return
        if run.gap_at is not None:
            raise LogCorruptError(
                f"the log in {self._where} has a gap: {name} continues at entry {run.gap_at} where {self._last + 1} "
                "was expected; restore the missing file, or choose another EXO_HOME"
            )
        raise damaged(self._where, name, run.end)

    def _drop(self, firsts: Sequence[int]) -> None:
        names = {*map(raw_name, firsts), *map(packed_name, firsts)} & self._names
        self._removals += sorted(names - {*self._removals})

    def _ended_early(self) -> LogCorruptError:
        return LogCorruptError(
            f"the log in {self._where} is damaged: it ends at entry {self._last}, and entries up to "
            f"{self._mark.synced_index} were acknowledged; restore the directory from a copy, or choose another one "
            "with EXO_HOME"
        )


def damaged(where: str, name: str, offset: int) -> LogCorruptError:
    """Return the error that says where a log is damaged."""
    return LogCorruptError(
        f"the log in {where} is damaged: {name} has a bad frame at byte {offset} with good ones behind it; restore "
        "the directory from a copy, or choose another one with EXO_HOME"
    )


def _read(data: bytes, first: int, name: str, last_index: int, limit: int | None) -> _Run:
    if not format.is_header(data, name):
        return _Run(0, last_index)
    if first != last_index + 1:
        return _Run(0, last_index, gap_at=first)
    end = format.HEADER_BYTES
    for frame in format.scan(data):
        if frame.first_index != last_index + 1:
            return _Run(end, last_index, gap_at=frame.first_index)
        end, last_index = frame.end, frame.last_index
        if limit is not None and last_index >= limit:
            break
    return _Run(end, last_index)


def _segment(first: int, name: str, data: bytes, end: int) -> Segment:
    is_packed = name == packed_name(first)
    return Segment(
        first_index=first,
        is_packed=is_packed,
        size_bytes=end,
        file_bytes=len(data),
        is_appendable=not is_packed and format.version_of(data) == format.VERSION,
    )
