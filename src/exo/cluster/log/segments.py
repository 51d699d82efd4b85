"""The durable log: segment files of checksummed frames, one frame per group commit."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from loguru import logger

from exo.cluster.log import format
from exo.cluster.log.base import EventLog
from exo.cluster.log.files import DiskFiles, Files, WritableFile
from exo.cluster.log.lock import DirectoryLock
from exo.cluster.log.mark import HighWaterMark
from exo.cluster.log.order import require_order
from exo.shared.errors import LogCorruptError
from exo.shared.types.events import LogEntry

SEGMENT_BYTES = 16 * 1024 * 1024
_SUFFIX = ".log"
_RESET_MARK = "reset"


class _Segment(msgspec.Struct):
    name: str
    first_index: int
    size_bytes: int


class SegmentLog(EventLog):
    """Decisions on disk. A torn tail that was never synced is cut off at opening; any other damage is refused.

    Args:
        directory: Where the segments lie; created where missing, locked against other processes.
        files: Stands in for the file system in tests; such a log takes no lock.
        segment_bytes: A new segment is begun when the last one is longer.

    Raises:
        ConfigurationError: Another process uses the directory.
        LogCorruptError: A frame is damaged and undamaged ones follow, a segment is missing, the log ends before
            what was synced, or a newer release wrote it.
        OSError: The directory cannot be read or written.
    """

    def __init__(
        self, directory: Path, *, files: Files | None = None, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._where = str(directory)
        self._lock = DirectoryLock(directory) if files is None else None
        self._segment_bytes = segment_bytes
        self._guard = threading.Lock()
        """Held while `_segments` changes: `read` may run beside a writer in another thread."""
        self._segments: list[_Segment] = []
        self._file: WritableFile | None = None
        self._mark: HighWaterMark | None = None
        self._last_index = 0
        self._has_unsynced_name = False
        self._failure: OSError | None = None
        self._is_closed = False
        try:
            self._files: Files = DiskFiles(directory) if files is None else files
            self._recover()
        except BaseException:
            self.close()
            raise

    @property
    def last_index(self) -> int:
        return self._last_index

    def append(self, entries: Sequence[LogEntry]) -> None:
        """See EventLog. All of `entries` are one frame: after a crash all of them are there, or none."""
        require_order(self._last_index, entries)
        if not entries:
            return
        self._require_usable()
        data = format.encode_frame(entries)
        try:
            file = self._file_for_append(entries[0].index)
            file.write(data)
        except OSError as error:
            self._failure = error
            raise
        with self._guard:
            self._segments[-1].size_bytes += len(data)
        self._last_index = entries[-1].index

    def sync(self) -> None:
        self._require_usable()
        if self._file is None:
            return
        try:
            self._file.sync()
            if self._has_unsynced_name:
                self._files.sync_names()
                self._has_unsynced_name = False
            # Behind the entries, never beside them: a mark that survives without them would claim a loss.
            if self._mark is not None and self._mark.index != self._last_index:
                self._mark.write(self._last_index)
        except OSError as error:
            # After a failed sync nobody knows what the disk has; trying again would report success untruly.
            self._failure = error
            raise

    def read(self, after_index: int = 0) -> Iterator[LogEntry]:
        """See EventLog. Yields what was appended before the call; may run in another thread than the writer."""
        with self._guard:
            segments = [msgspec.structs.replace(segment) for segment in self._segments]
        for number, segment in enumerate(segments):
            if number + 1 < len(segments) and segments[number + 1].first_index <= after_index + 1:
                continue
            data = self._files.read(segment.name)[: segment.size_bytes]
            offset = format.HEADER_BYTES
            for frame in format.scan(data):
                offset = frame.end
                if frame.first_index + frame.entry_count <= after_index + 1:
                    continue
                for entry in format.decode_frame(data, frame, segment.name):
                    if entry.index > after_index:
                        yield entry
            if offset != segment.size_bytes:
                raise self._damaged(segment.name, offset)

    def reset(self) -> None:
        self._require_usable()
        try:
            self._close_file()
            # Removing several files is not atomic; a mark that is durable first makes it so. Without it a crash
            # in between would leave a shorter log that looks whole.
            self._files.create(_RESET_MARK).close()
            self._files.sync_names()
            self._finish_reset()
        except OSError as error:
            self._failure = error
            raise
        with self._guard:
            self._segments = []
        self._last_index = 0

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._close_file()
            if self._mark is not None:
                self._mark.close()
            if self._lock is not None:
                self._lock.release()

    def _require_usable(self) -> None:
        if self._is_closed:
            raise OSError("the log is closed")
        if self._failure is not None:
            raise OSError(self._failure.errno, f"the log failed before: {self._failure}") from self._failure

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _file_for_append(self, first_index: int) -> WritableFile:
        last = self._segments[-1] if self._segments else None
        if last is None or last.size_bytes >= self._segment_bytes:
            if self._file is not None:
                self._file.sync()
                self._close_file()
            name = f"{first_index:020}{_SUFFIX}"
            self._file = self._files.create(name)
            self._has_unsynced_name = True
            self._file.write(format.encode_header())
            with self._guard:
                self._segments.append(_Segment(name, first_index, format.HEADER_BYTES))
        elif self._file is None:
            self._file = self._files.open_at_end(last.name)
        return self._file

    def _finish_reset(self) -> None:
        for name in self._files.names():
            if name.endswith(_SUFFIX):
                self._files.remove(name)
        self._files.sync_names()
        if self._mark is not None:
            self._mark.write(0)
        self._files.remove(_RESET_MARK)
        self._files.sync_names()

    def _recover(self) -> None:
        names = self._files.names()
        self._mark = HighWaterMark(self._files, self._where)
        if self._mark.is_new:
            self._files.sync_names()
        if _RESET_MARK in names:
            self._finish_reset()
            return
        names = sorted(name for name in names if name.endswith(_SUFFIX))
        if self._mark.is_new and names:
            logger.warning(
                "{} holds no mark of how far it was acknowledged: trusting what is there", self._where
            )
        for position, name in enumerate(names):
            self._recover_segment(name, is_last=position == len(names) - 1)
        self._require_marked()
        if self._segments:
            # What was found is acted on, so it has to stay, synced or not before.
            self._file = self._files.open_at_end(self._segments[-1].name)
            self._has_unsynced_name = True
            self.sync()

    def _recover_segment(self, name: str, *, is_last: bool) -> None:
        data = self._files.read(name)
        end = 0
        if format.is_header(data, name):
            end = format.HEADER_BYTES
            for frame in format.scan(data):
                self._require_next(frame, name)
                self._last_index = frame.first_index + frame.entry_count - 1
                end = frame.end
        if end < len(data) and (not is_last or format.has_frame_after(data, end - 1)):
            raise self._damaged(name, end)
        if end < len(data) or end <= format.HEADER_BYTES:
            self._require_marked()
        if end <= format.HEADER_BYTES:
            if not is_last:
                raise self._damaged(name, end)
            logger.warning("cutting off the torn tail of {}: {} holds no whole entry", self._where, name)
            self._files.remove(name)
            self._files.sync_names()
            return
        if end < len(data):
            logger.warning(
                "cutting off the torn tail of {}: {} bytes behind entry {} in {}",
                self._where,
                len(data) - end,
                self._last_index,
                name,
            )
            self._files.truncate(name, end)
        self._segments.append(_Segment(name, int(name.removesuffix(_SUFFIX)), end))

    def _require_next(self, frame: format.Frame, name: str) -> None:
        if frame.first_index != self._last_index + 1:
            raise LogCorruptError(
                f"the log in {self._where} has a gap: {name} continues at entry {frame.first_index} where "
                f"{self._last_index + 1} was expected; restore the missing file, or choose another EXO_HOME"
            )

    def _require_marked(self) -> None:
        """Called before a tail is cut off, and at the end."""
        assert self._mark is not None
        if self._last_index < self._mark.index:
            raise LogCorruptError(
                f"the log in {self._where} is damaged: it ends at entry {self._last_index}, and entries up to "
                f"{self._mark.index} were acknowledged; restore the directory from a copy, or choose another one "
                "with EXO_HOME"
            )

    def _damaged(self, name: str, offset: int) -> LogCorruptError:
        return LogCorruptError(
            f"the log in {self._where} is damaged: {name} has a bad frame at byte {offset} with good ones behind "
            "it; restore the directory from a copy, or choose another one with EXO_HOME"
        )
