"""The durable log: segment files of checksummed frames, one frame per group commit."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from loguru import logger

from exo.cluster.log import format
from exo.cluster.log.base import EventLog
from exo.cluster.log.files import DiskFiles, Files, WritableFile
from exo.cluster.log.lock import DirectoryLock
from exo.cluster.log.mark import OLD_MARK_NAME, OLD_RESET_NAME, Mark, MarkFile
from exo.cluster.log.order import require_cuttable, require_order
from exo.cluster.log.recovery import examine
from exo.cluster.log.segment import Segment
from exo.cluster.log.shelf import Shelf
from exo.shared.types.events import LogEntry

SEGMENT_BYTES = 16 * 1024 * 1024
FILL_BYTES = 64 * 1024
"""How far ahead a segment is filled with zeros."""


class SegmentLog(EventLog):
    """Decisions on disk. A torn tail that was never synced is cut off at opening; any other damage is refused.

    One thread writes; `read` may run beside it in others.

    Args:
        directory: Where the segments lie; created where missing, locked against other processes.
        files: Stands in for the file system in tests; such a log takes no lock.
        segment_bytes: A new segment is begun when the last one is longer.

    Raises:
        ConfigurationError: Another process uses the directory.
        LogCorruptError: What was acknowledged is not there, whole: a frame is damaged, a segment is missing, the log
            ends early; or a newer release wrote it.
        OSError: The directory cannot be read or written.
    """

    def __init__(
        self, directory: Path, *, files: Files | None = None, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._where = str(directory)
        self._files: Files = DiskFiles(directory) if files is None else files
        self._lock = DirectoryLock(directory) if files is None else None
        self._segment_bytes = segment_bytes
        self._shelf = Shelf(self._files, self._where)
        self._file: WritableFile | None = None
        self._last_index = 0
        self._is_synced = True
        self._has_unsynced_name = False
        self._failure: OSError | None = None
        self._is_closed = False
        self._mark: MarkFile | None = None
        try:
            self._mark = MarkFile(self._files, self._where)
            self._recover(self._mark)
        except BaseException:
            self.close()
            raise

    @property
    def first_index(self) -> int:
        return self._marked.mark.start_index + 1

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
            file, last = self._segment_for_append(entries[0].index)
            end = last.size_bytes + len(data)
            file.write_at(last.size_bytes, data)
            if end > last.file_bytes:
                last.file_bytes = end
                if len(data) < FILL_BYTES:
                    self._fill(file, last)
        except OSError as error:
            self._failure = error
            raise
        self._shelf.grow(last, end)
        self._last_index = entries[-1].index
        self._is_synced = False

    def sync(self) -> None:
        self._require_usable()
        mark = self._marked.mark
        try:
            if self._file is not None and not self._is_synced:
                self._file.sync()
            if self._has_unsynced_name:
                self._files.sync_names()
                self._has_unsynced_name = False
            # Behind the entries, never beside them: a mark that survives without them would claim a loss.
            if mark.synced_index != self._last_index or mark.task != "none" or self._marked.is_new:
                self._marked.write(Mark(self._last_index, mark.start_index))
        except OSError as error:
            # After a failed sync nobody knows what the disk has; trying again would report success untruly.
            self._failure = error
            raise
        self._is_synced = True

    def truncate_after(self, index: int) -> None:
        """See EventLog. A crash leaves all of the entries behind `index` that were synced, or none of them."""
        self._require_usable()
        mark = self._marked.mark
        require_cuttable(mark.start_index, index)
        if index >= self._last_index:
            return
        try:
            # Noted before it is done: what is half done is finished at the next opening. An earlier step of which
            # that is noted already, and which goes as far back, stays noted: nothing was acknowledged since.
            if mark.task == "none" or (mark.task == "cut" and mark.task_index > index):
                self._marked.write(Mark(min(mark.synced_index, index), mark.start_index, "cut", index))
            self._close_file()
            self._has_unsynced_name = True
            self._shelf.cut_after(index)
        except OSError as error:
            self._failure = error
            raise
        self._last_index = index

    def compact(self, until_index: int) -> None:
        """See EventLog. Forgets whole segments, never the one that is written to."""
        self._require_usable()
        start_index = self._shelf.start_behind(until_index)
        if start_index is None:
            return
        try:
            # Noted before it is done: of segments whose removal a crash undoes, none is missed.
            self._marked.write(msgspec.structs.replace(self._marked.mark, start_index=start_index))
            self._has_unsynced_name = True
            self._shelf.drop_until(start_index)
        except OSError as error:
            self._failure = error
            raise

    def restart_at(self, index: int) -> None:
        self._require_usable()
        try:
            self._marked.write(Mark(index, index, "empty"))
            self._close_file()
            self._has_unsynced_name = True
            self._shelf.clear()
        except OSError as error:
            self._failure = error
            raise
        self._last_index = index

    def tidy(self) -> bool:
        """Compress one finished segment, if there is one; say whether there are more.

        Takes some 50 ms for a whole segment. A failure (no room for the compressed copy) leaves the log as it was.

        Raises:
            OSError: Writing the compressed copy failed.
        """
        self._require_usable()
        return self._shelf.pack_one()

    def read(self, after_index: int = 0) -> Iterator[LogEntry]:
        """See EventLog. Yields what was appended before the call; may run in another thread than the writer."""
        return self._shelf.read(after_index)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._close_file()
            if self._mark is not None:
                self._mark.close()
            if self._lock is not None:
                self._lock.release()

    @property
    def _marked(self) -> MarkFile:
        assert self._mark is not None
        return self._mark

    def _require_usable(self) -> None:
        if self._is_closed:
            raise OSError("the log is closed")
        if self._failure is not None:
            raise OSError(self._failure.errno, f"the log failed before: {self._failure}") from self._failure

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _segment_for_append(self, first_index: int) -> tuple[WritableFile, Segment]:
        last = self._shelf.last
        if last is None or not last.is_appendable or last.size_bytes >= self._segment_bytes:
            if self._file is not None:
                # What follows in another file must not survive without this.
                self._file.sync()
                self._close_file()
            last = Segment.new(first_index)
            self._file = self._files.create(last.name)
            self._has_unsynced_name = True
            self._file.write_at(0, format.encode_header())
            self._shelf.add(last)
        elif self._file is None:
            self._file = self._files.open(last.name)
        return self._file, last

    def _fill(self, file: WritableFile, last: Segment) -> None:
        """Fill the file with zeros ahead, as far as there is room: it is only to save time."""
        try:
            file.write_at(last.file_bytes, bytes(-last.file_bytes % FILL_BYTES))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        else:
            last.file_bytes += -last.file_bytes % FILL_BYTES

    def _recover(self, marked: MarkFile) -> None:
        found = examine(self._files, marked.mark, is_trusting=marked.is_trusting, where=self._where)
        if marked.is_trusting and found.segments:
            logger.warning(
                "{} holds no mark of how far it was acknowledged: trusting what is there", self._where
            )
        if found.torn is not None:
            logger.warning("cutting off the torn tail of {}: {}", self._where, found.torn)
        if found.removals:
            self._files.sync_names()  # What makes them dispensable has to stay.
        for name in found.removals:
            self._files.remove(name)
        for part in found.segments:
            self._shelf.add(part)
        if found.is_to_be_cut:
            self._shelf.cut_after(found.last_index)
        self._last_index = found.last_index
        marked.mark = msgspec.structs.replace(marked.mark, start_index=found.start_index)
        # What was found is acted on, so it has to stay, synced or not before.
        last = self._shelf.last
        if last is not None and not last.is_packed:
            self._file = self._files.open(last.name)
        self._is_synced = False
        self._has_unsynced_name = True
        self.sync()
        for name in (OLD_MARK_NAME, OLD_RESET_NAME):
            self._files.remove(name)
