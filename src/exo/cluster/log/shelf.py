"""The segments of a log: which there are, and reading them beside the one who writes."""

import threading
from collections.abc import Iterator

from exo.cluster.log import format
from exo.cluster.log.errors import LogReplacedError
from exo.cluster.log.files import Files
from exo.cluster.log.recovery import damaged
from exo.cluster.log.segment import Segment, cut, load, packed_name, raw_name, write_packed
from exo.shared.errors import LogCorruptError
from exo.shared.types.events import LogEntry


class Shelf:
    """Segments in order. One thread changes them; `read` may run in others.

    Args:
        files: The directory.
        where: Its name, for people.
    """

    def __init__(self, files: Files, where: str) -> None:
        self._files = files
        self._where = where
        self._guard = threading.Lock()
        """Held while the list changes, and while a file is read or removed."""
        self._segments: list[Segment] = []
        self._cut_count = 0
        """How often entries were cut off: what a reader has seen of the list may count no longer."""

    @property
    def last(self) -> Segment | None:
        return self._segments[-1] if self._segments else None

    def add(self, segment: Segment) -> None:
        with self._guard:
            self._segments.append(segment)

    def grow(self, segment: Segment, size_bytes: int) -> None:
        """Entries up to here may be read."""
        with self._guard:
            segment.size_bytes = size_bytes

    def cut_after(self, index: int) -> None:
        """Forget the entries behind `index`. Not at once on disk: see `segment.cut`.

        Raises:
            OSError: Removing or writing failed.
        """
        with self._guard:
            self._cut_count += 1
            while self._segments and self._segments[-1].first_index > index:
                self._remove(self._segments.pop())
            if self._segments:
                last = self._segments[-1]
                self._segments[-1] = cut(self._files, last, self._load(last), index)

    def clear(self) -> None:
        """Forget all.

        Raises:
            OSError: Removing failed.
        """
        with self._guard:
            self._cut_count += 1
            while self._segments:
                self._remove(self._segments.pop())

    def start_behind(self, index: int) -> int | None:
        """Return where the log would begin if whole segments up to `index` went, but the last; None: as now."""
        firsts = [part.first_index for part in self._segments[1:] if part.first_index <= index + 1]
        return firsts[-1] - 1 if firsts else None

    def drop_until(self, index: int) -> None:
        """Forget the segments that begin at or before `index`.

        Raises:
            OSError: Removing failed.
        """
        with self._guard:
            while self._segments and self._segments[0].first_index <= index:
                self._remove(self._segments.pop(0))

    def pack_one(self) -> bool:
        """Compress a segment that is not the last; say whether there are more.

        Raises:
            OSError: Writing failed; all is as before.
        """
        raw = [part for part in self._segments[:-1] if not part.is_packed]
        if not raw:
            return False
        part = raw[0]
        write_packed(self._files, part.first_index, self._load(part)[: part.size_bytes])
        with self._guard:
            part.is_packed, part.is_appendable = True, False
            self._files.remove(raw_name(part.first_index))
        return len(raw) > 1

    def read(self, after_index: int) -> Iterator[LogEntry]:
        """Return the entries behind `after_index` that are there now.

        Raises:
            LogCorruptError: They are damaged, or a newer release wrote them.
            LogReplacedError: They were forgotten meanwhile.
            OSError: A file cannot be read.
        """
        with self._guard:
            parts = list(self._segments)
            return self._entries(parts, [part.size_bytes for part in parts], self._cut_count, after_index)

    def _entries(
        self, parts: list[Segment], sizes_bytes: list[int], cut_count: int, after_index: int
    ) -> Iterator[LogEntry]:
        for number, part in enumerate(parts):
            if number + 1 < len(parts) and parts[number + 1].first_index <= after_index + 1:
                continue
            with self._guard:
                if cut_count != self._cut_count or part not in self._segments:
                    raise LogReplacedError("the entries that were being read are no longer kept; begin again")
                name = part.name
                data = self._load(part)
            data = data[: sizes_bytes[number]]
            offset = format.HEADER_BYTES
            for frame in format.scan(data):
                offset = frame.end
                if frame.last_index <= after_index:
                    continue
                for entry in format.decode_frame(data, frame, name):
                    if entry.index > after_index:
                        yield entry
            if offset != len(data) or offset != sizes_bytes[number]:
                raise damaged(self._where, name, offset)

    def _load(self, part: Segment) -> bytes:
        data = load(self._files, part.name)
        if data is None:
            raise LogCorruptError(
                f"the log in {self._where} is damaged: {part.name} cannot be read; restore the directory from a copy, "
                "or choose another one with EXO_HOME"
            )
        return data

    def _remove(self, part: Segment) -> None:
        self._files.remove(packed_name(part.first_index))
        self._files.remove(raw_name(part.first_index))
