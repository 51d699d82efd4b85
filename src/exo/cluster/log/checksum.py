"""CRC32C with types: the library has none."""

import google_crc32c


def crc32c(data: bytes, start: int = 0) -> int:
    """Return the CRC32C of `data`, continuing from the checksum of what precedes it."""
    return int(google_crc32c.extend(start, data))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
