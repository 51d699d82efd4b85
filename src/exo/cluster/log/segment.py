"""One segment on disk: its name, its bytes, and cutting and compressing it.

A segment is named after its first entry. The one that is written to is raw, and filled with zeros ahead of the entries,
so that a commit overwrites blocks that are there and the file system has nothing else to write down. A finished one is
compressed: it exists raw, or compressed, or for a moment (until the raw one is removed) as both.
"""

import re

import msgspec

from exo.cluster.log import format
from exo.cluster.log.files import Files, write_whole
from exo.cluster.log.packed import pack, unpack

RAW_SUFFIX = ".log"
PACKED_SUFFIX = ".log.zst"
_NAME = re.compile(r"(\d{20})(\.log|\.log\.zst)")
_PACKED_KIND = b"EXOLOGZ1"
_PACKED_VERSION = 1


class Segment(msgspec.Struct):
    """What the log knows of a segment while it runs."""

    first_index: int
    is_packed: bool
    size_bytes: int
    """Where the next frame goes; uncompressed."""
    file_bytes: int
    """How far a raw file reaches: zeros from `size_bytes` on."""
    is_appendable: bool

    @staticmethod
    def new(first_index: int) -> "Segment":
        """A segment that holds nothing yet but its header."""
        return Segment(first_index, False, format.HEADER_BYTES, format.HEADER_BYTES, True)

    @property
    def name(self) -> str:
        return packed_name(self.first_index) if self.is_packed else raw_name(self.first_index)


def raw_name(first_index: int) -> str:
    return f"{first_index:020}{RAW_SUFFIX}"


def packed_name(first_index: int) -> str:
    return f"{first_index:020}{PACKED_SUFFIX}"


def first_index_of(name: str) -> int | None:
    """Return the first entry of the segment with this name; None: it names no segment."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def load(files: Files, name: str) -> bytes | None:
    """Return a segment's bytes as they were before it was compressed; None: a compressed one is damaged.

    Raises:
        LogCorruptError: A newer release compressed it.
        OSError: It cannot be read.
    """
    data = files.read(name)
    return unpack(_PACKED_KIND, _PACKED_VERSION, data, name) if name.endswith(PACKED_SUFFIX) else data


def write_packed(files: Files, first_index: int, data: bytes) -> None:
    """Put the compressed form of a segment beside the raw one, durably. The raw one may go then.

    Raises:
        OSError: Writing failed.
    """
    write_whole(files, packed_name(first_index), pack(_PACKED_KIND, _PACKED_VERSION, data))
    files.sync_names()


def cut(files: Files, segment: Segment, data: bytes, index: int) -> Segment:
    """Cut off what lies behind entry `index`; `data` is what the segment holds, and `index` is in it.

    A crash leaves the segment as it was, or cut. Names that change are durable after `sync_names`.

    Raises:
        OSError: Writing failed.
    """
    keep = format.cut(data[: segment.size_bytes], index, segment.name)
    name = raw_name(segment.first_index)
    if data.startswith(keep) and not segment.is_packed:
        files.truncate(name, len(keep))
    else:
        # The cut goes through a frame, which is all or nothing: a new file with a smaller one at its end.
        write_whole(files, name, keep)
        if segment.is_packed:
            files.sync_names()  # One of the two has to be there, whatever comes.
            files.remove(packed_name(segment.first_index))
    return Segment(
        first_index=segment.first_index,
        is_packed=False,
        size_bytes=len(keep),
        file_bytes=len(keep),
        is_appendable=format.version_of(keep) == format.VERSION,
    )
