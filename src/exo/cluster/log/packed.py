"""Compressed files with a checksum: sealed segments and snapshots. Pure: bytes in, bytes out.

kind (8), version (u16), length of the content (u64), CRC32C of the preceding 18 bytes and what follows (u32),
zstd frame
"""

import struct

import zstandard

from exo.cluster.log.checksum import crc32c
from exo.shared.errors import LogNewerError

_LEVEL = 1
"""Of 16 MiB of entries level 1 makes 3.7 MB in 28 ms, level 3 4.2 MB in 69 ms."""
_CHECKED = struct.Struct(">8sHQ")
_HEADER_BYTES = _CHECKED.size + 4


def pack(kind: bytes, version: int, data: bytes) -> bytes:
    """Compress; `kind` is eight bytes that tell one such file from another."""
    checked = _CHECKED.pack(kind, version, len(data))
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return b"".join((checked, struct.pack(">I", crc32c(packed, crc32c(checked))), packed))


def unpack(kind: bytes, version: int, data: bytes, name: str) -> bytes | None:
    """Return the content; None: it is damaged.

    Raises:
        LogNewerError: It is whole, and of a version that this release cannot read.
    """
    if len(data) < _HEADER_BYTES:
        return None
    found_kind, found_version, size_bytes = _CHECKED.unpack_from(data)
    (checksum,) = struct.unpack_from(">I", data, _CHECKED.size)
    packed = data[_HEADER_BYTES:]
    if found_kind != kind or crc32c(packed, crc32c(data[: _CHECKED.size])) != checksum:
        return None
    if found_version > version:
        raise LogNewerError(
            f"the file {name} was written by a newer release of exo (format {found_version}, known up to {version}); "
            "start that release, or choose another data directory with EXO_HOME"
        )
    try:
        # The size is compared first: it says how much memory decompressing takes.
        if zstandard.get_frame_parameters(packed).content_size != size_bytes:
            return None
        return zstandard.ZstdDecompressor().decompress(packed)
    except (zstandard.ZstdError, MemoryError):
        return None
