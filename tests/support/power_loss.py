"""A file system that loses power, or room: what was not synced is gone, or half there, names as well as content.

It is harsher than real ones: of what was not synced any sector and any change of a name may be there, whatever came
first. Room is used up by overwriting, too, as on a disk that copies on write.
"""

import errno
from collections.abc import Callable, Iterator
from random import Random

from exo.cluster.log.files import Files, WritableFile

SECTOR_BYTES = 512


class PowerLost(Exception):
    """The power goes in the middle of an operation."""


class _Inode:
    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = b""
        self.unsynced: list[tuple[int, bytes]] = []

    def make_durable(self) -> None:
        self.durable = bytes(self.data)
        self.unsynced.clear()

    def put(self, offset: int, data: bytes) -> None:
        if not data:
            return
        self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
        self.data[offset : offset + len(data)] = data


class _OpenFile:
    def __init__(self, disk: "PowerLossFiles", name: str, inode: _Inode) -> None:
        self._disk = disk
        self._name = name
        self._inode = inode

    def write_at(self, offset: int, data: bytes) -> None:
        room = self._disk.room_bytes
        done = data if room is None else data[:room]
        if room is not None:
            self._disk.room_bytes = room - len(done)
        self._inode.put(offset, done)
        self._inode.unsynced.append((offset, done))
        self._disk.step()  # Before the operation reports back: it may have happened in part.
        if len(done) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def sync(self) -> None:
        self._disk.step()
        if self._disk.is_sync_failing or self._name in self._disk.names_that_fail_to_sync:
            raise OSError(errno.EIO, "Input/output error")
        self._disk.sync_count += 1
        self._inode.make_durable()

    def close(self) -> None:
        return


class PowerLossFiles:
    """`Files` in memory that remember what a real disk would still have after the power went."""

    def __init__(self) -> None:
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._unsynced_names: list[Callable[[dict[str, _Inode]], object]] = []
        self.room_bytes: int | None = None
        """How much may still be written; None: no end of room."""
        self.is_sync_failing = False
        self.names_that_fail_to_sync: set[str] = set()
        self.sync_count = 0
        self.name_sync_count = 0
        self.steps_left: int | None = None
        """How many operations that change something still begin before the power goes; None: it stays."""

    def step(self) -> None:
        """Something is about to change on the disk."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise PowerLost

    def names(self) -> list[str]:
        return sorted(self._names)

    def read(self, name: str) -> bytes:
        return bytes(self._inode(name).data)

    def create(self, name: str) -> WritableFile:
        if name in self._names:
            raise FileExistsError(name)
        inode = _Inode()
        self._change_names(lambda names: names.__setitem__(name, inode))
        return _OpenFile(self, name, inode)

    def open(self, name: str) -> WritableFile:
        return _OpenFile(self, name, self._inode(name))

    def open_in_place(self, name: str, size_bytes: int) -> WritableFile:
        if name not in self._names:
            self.create(name)
        inode = self._inode(name)
        if len(inode.data) < size_bytes:
            inode.data.extend(bytes(size_bytes - len(inode.data)))
            self.step()
            inode.make_durable()
        return _OpenFile(self, name, inode)

    def truncate(self, name: str, size_bytes: int) -> None:
        inode = self._inode(name)
        del inode.data[size_bytes:]
        self.step()  # Cut, and perhaps only until the power goes.
        inode.make_durable()

    def rename(self, old_name: str, new_name: str) -> None:
        inode = self._inode(old_name)

        def change(names: dict[str, _Inode]) -> None:
            names.pop(old_name, None)
            names[new_name] = inode

        self._change_names(change)

    def remove(self, name: str) -> None:
        if name in self._names:
            self._change_names(lambda names: names.pop(name, None))

    def sync_names(self) -> None:
        self.step()
        if self.is_sync_failing:
            raise OSError(errno.EIO, "Input/output error")
        self.name_sync_count += 1
        self._durable_names = dict(self._names)
        self._unsynced_names.clear()

    def overwrite(self, name: str, data: bytes) -> None:
        """Change a file behind its owner's back: bit rot, a half-written tail."""
        inode = self._names.setdefault(name, _Inode())
        inode.data = bytearray(data)
        inode.make_durable()

    def lose_power(
        self, *, kept_bytes: int = 0, are_names_kept: bool = False, random: Random | None = None
    ) -> None:
        """Go back to what was synced, and take the operations of whoever was writing as over.

        Args:
            kept_bytes: Of what was written since, the first so many bytes of each file survive.
            are_names_kept: Names that were not synced survive.
            random: Decides instead of these two, for each sector and each change of a name.
        """
        names = dict(self._durable_names)
        for change in self._unsynced_names:
            if are_names_kept if random is None else random.random() < 0.5:
                change(names)
        self._names = names
        self._durable_names = dict(names)
        self._unsynced_names.clear()
        for inode in {id(inode): inode for inode in names.values()}.values():
            inode.data = bytearray(inode.durable)
            survivors = _first(inode.unsynced, kept_bytes) if random is None else _any(inode.unsynced, random)
            for offset, data in survivors:
                inode.put(offset, data)
            inode.make_durable()
        self._begin_anew()

    def stop_process(self) -> None:
        """As when the process is killed: what was written is there, synced or not."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.room_bytes = None
        self.is_sync_failing = False
        self.names_that_fail_to_sync.clear()
        self.steps_left = None

    def _inode(self, name: str) -> _Inode:
        if name not in self._names:
            raise FileNotFoundError(name)
        return self._names[name]

    def _change_names(self, change: Callable[[dict[str, _Inode]], object]) -> None:
        change(self._names)
        self._unsynced_names.append(change)
        self.step()  # Before the operation reports back.


def _first(writes: list[tuple[int, bytes]], count: int) -> Iterator[tuple[int, bytes]]:
    for offset, data in writes:
        yield offset, data[:count]
        count -= min(count, len(data))


def _any(writes: list[tuple[int, bytes]], random: Random) -> Iterator[tuple[int, bytes]]:
    share = random.choice((0.0, 0.5, 0.9, 1.0))
    for offset, data in writes:
        start = 0
        while start < len(data):
            end = min(len(data), start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
            if random.random() < share:
                yield offset + start, data[start:end]
            start = end


def cut_content(files: Files, name: str, count: int) -> None:
    """Take that many bytes from the end of what was written to a file; the zeros behind it do not count."""
    files.truncate(name, len(files.read(name).rstrip(b"\0")) - count)
