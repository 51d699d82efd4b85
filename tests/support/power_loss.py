"""A file system that loses power, or room: what was not synced is gone, or half there."""

import errno


class _Inode:
    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = b""
        self.overwritten: list[tuple[int, bytes]] = []
        """Of a file that is written in place: what was not synced."""


class _OpenFile:
    def __init__(self, disk: "PowerLossFiles", inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode

    def write(self, data: bytes) -> None:
        room = self._disk.room_bytes
        if room is not None and room < len(data):
            self._inode.data += data[:room]
            self._disk.room_bytes = 0
            raise OSError(errno.ENOSPC, "No space left on device")
        if room is not None:
            self._disk.room_bytes = room - len(data)
        self._inode.data += data

    def sync(self) -> None:
        if self._disk.is_sync_failing:
            raise OSError(errno.EIO, "Input/output error")
        self._disk.sync_count += 1
        self._inode.durable = bytes(self._inode.data)

    def close(self) -> None:
        return


class FixedFile(_OpenFile):
    """A file that is written in place; only its own syncs may be made to fail."""

    is_sync_failing = False

    def write_at(self, offset: int, data: bytes) -> None:
        self._inode.overwritten.append((offset, data))
        self._inode.data[offset : offset + len(data)] = data

    def sync(self) -> None:
        if self._disk.is_sync_failing or self.is_sync_failing:
            raise OSError(errno.EIO, "Input/output error")
        self._inode.durable = bytes(self._inode.data)
        self._inode.overwritten.clear()


class PowerLossFiles:
    """`Files` in memory that remember what a real disk would still have after the power went."""

    def __init__(self) -> None:
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self.room_bytes: int | None = None
        """How much may still be written; None: no end of room."""
        self.is_sync_failing = False
        self.sync_count = 0

    def names(self) -> list[str]:
        return sorted(self._names)

    def read(self, name: str) -> bytes:
        return bytes(self._names[name].data)

    def create(self, name: str) -> _OpenFile:
        if name in self._names:
            raise FileExistsError(name)
        self._names[name] = _Inode()
        return _OpenFile(self, self._names[name])

    def open_at_end(self, name: str) -> _OpenFile:
        return _OpenFile(self, self._names[name])

    def open_in_place(self, name: str, size_bytes: int) -> FixedFile:
        inode = self._names.setdefault(name, _Inode())
        inode.data.extend(bytes(max(0, size_bytes - len(inode.data))))
        inode.durable = bytes(inode.data)
        return FixedFile(self, inode)

    def truncate(self, name: str, size_bytes: int) -> None:
        del self._names[name].data[size_bytes:]
        self._names[name].durable = bytes(self._names[name].data)

    def remove(self, name: str) -> None:
        self._names.pop(name, None)

    def sync_names(self) -> None:
        self._durable_names = dict(self._names)

    def overwrite(self, name: str, data: bytes) -> None:
        """Change a file behind its owner's back: bit rot, a half-written tail."""
        inode = self._names[name]
        inode.data = bytearray(data)
        inode.durable = data

    def lose_power(self, *, kept_bytes: int = 0, are_names_kept: bool = False) -> None:
        """Go back to what was synced. Of what was written since, the first `kept_bytes` of each file survive."""
        self._names = dict(self._names if are_names_kept else self._durable_names)
        for inode in self._names.values():
            if inode.overwritten:
                inode.data = bytearray(inode.durable)
                for offset, data in inode.overwritten:
                    inode.data[offset : offset + len(data[:kept_bytes])] = data[:kept_bytes]
                inode.durable = bytes(inode.data)
                inode.overwritten.clear()
                continue
            survivors = inode.data[len(inode.durable) :][:kept_bytes]
            inode.data = bytearray(inode.durable) + survivors
            inode.durable = bytes(inode.data)
        self._durable_names = dict(self._names)
        self.room_bytes = None
        self.is_sync_failing = False
