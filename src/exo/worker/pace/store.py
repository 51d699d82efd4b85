"""The file in which a node keeps its paces, so that a restart need not learn them again."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from loguru import logger

from exo.shared.types.ids import DeviceId
from exo.worker.pace.record import PaceRecord

PACES_FILE = "paces.json"
"""In the data directory."""
_FORMAT = 1


class PaceSubject(msgspec.Struct, frozen=True):
    """What a record is of."""

    device_id: DeviceId
    engine: str
    dtype: str


class StoredPace(msgspec.Struct, frozen=True, kw_only=True):
    """A record, and the hardware and release that it was made on."""

    subject: PaceSubject
    hardware: tuple[str, ...]
    exo_version: str
    record: PaceRecord


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    paces: tuple[StoredPace, ...] = ()


class PaceStore:
    """The file. Only ever a help: without it everything is measured anew.

    Args:
        file: Where it is.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._has_failed = False

    def read(self) -> dict[PaceSubject, StoredPace]:
        """Return what was kept; nothing where the file is missing, damaged or of another release's format."""
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=_File)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            logger.warning("{} cannot be read and is made anew: {}", self._file, error)
            return {}
        return {one.subject: one for one in found.paces} if found.format == _FORMAT else {}

    def write(self, paces: Mapping[PaceSubject, StoredPace]) -> None:
        """Replace what the file says. Where it cannot be written, that is logged once."""
        content = msgspec.json.encode(_File(format=_FORMAT, paces=tuple(paces.values())))
        temporary = self._file.with_name(f"{self._file.name}.new")
        try:
            temporary.write_bytes(content)
            temporary.replace(self._file)
        except OSError as error:
            if not self._has_failed:
                logger.warning(
                    "cannot write {}, so that the next start measures again: {}", self._file, error.strerror
                )
            self._has_failed = True
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
