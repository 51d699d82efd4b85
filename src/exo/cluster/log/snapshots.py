"""The newest snapshot as a file: compressed, checksummed, replaced in one step.

Files are numbered as they are written, not by index: a node that changes to another history may go back. `N.staged`
becomes `N.snapshot` once the log has been restarted for it. A file without content stands for "no snapshot".
"""

import re

import msgspec

from exo.cluster.log.base import SnapshotStore
from exo.cluster.log.files import DRAFT_SUFFIX, Files, write_whole
from exo.cluster.log.packed import pack, unpack
from exo.cluster.raft.messages import Snapshot
from exo.shared.errors import LogCorruptError, LogNewerError

_NAME = re.compile(r"(\d{20})\.(snapshot|staged)")
_KIND = b"EXOSNAP\n"
_VERSION = 1


class FileSnapshotStore(SnapshotStore):
    """Keeps the newest snapshot in a directory, and the one before until the newer one is safe.

    Args:
        files: The directory; other files in it are left alone.
        where: Its name, for people.

    Raises:
        OSError: The directory cannot be read or written.
    """

    def __init__(self, files: Files, where: str) -> None:
        self._files = files
        self._where = where
        drafts = [name for name in files.names() if _NAME.fullmatch(name.removesuffix(DRAFT_SUFFIX))]
        for name in drafts:
            if name.endswith(DRAFT_SUFFIX):
                files.remove(name)
        self._number = max((_number(name) for name in self._names()), default=0)
        files.sync_names()  # What was found is acted on: it has to stay.
        self._remove_older()

    def load(self) -> Snapshot | None:
        return self._read(self._newest(".snapshot"))

    def save(self, snapshot: Snapshot) -> None:
        self._write(snapshot, "snapshot")
        self._remove_older()

    def stage(self, snapshot: Snapshot | None) -> None:
        self._write(snapshot, "staged")

    @property
    def is_staged(self) -> bool:
        return self._newest(".staged") is not None

    def load_staged(self) -> Snapshot | None:
        return self._read(self._newest(".staged"))

    def adopt(self) -> None:
        name = self._newest(".staged")
        if name is not None:
            self._files.rename(name, name.replace(".staged", ".snapshot"))
            self._files.sync_names()
            self._remove_older()

    def _write(self, snapshot: Snapshot | None, suffix: str) -> None:
        data = b"" if snapshot is None else msgspec.msgpack.encode(snapshot)
        self._number += 1
        write_whole(self._files, f"{self._number:020}.{suffix}", pack(_KIND, _VERSION, data))
        self._files.sync_names()

    def _read(self, name: str | None) -> Snapshot | None:
        if name is None:
            return None
        data = unpack(_KIND, _VERSION, self._files.read(name), name)
        if data is None:
            raise LogCorruptError(
                f"the snapshot {name} in {self._where} is damaged; restore the directory from a copy, or choose "
                "another one with EXO_HOME"
            )
        try:
            return msgspec.msgpack.decode(data, type=Snapshot) if data else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise LogNewerError(
                f"the snapshot {name} in {self._where} was written by a newer release of exo ({error}); start that "
                "release, or choose another data directory with EXO_HOME"
            ) from error

    def _names(self) -> list[str]:
        return sorted(name for name in self._files.names() if _NAME.fullmatch(name))

    def _newest(self, suffix: str) -> str | None:
        return next((name for name in reversed(self._names()) if name.endswith(suffix)), None)

    def _remove_older(self) -> None:
        """Of what is before the newest snapshot nothing counts, and nothing may come back."""
        newest = self._newest(".snapshot")
        older = [name for name in self._names() if newest is not None and _number(name) < _number(newest)]
        for name in older:
            self._files.remove(name)
        if older:
            self._files.sync_names()


def _number(name: str) -> int:
    return int(name[:20])
