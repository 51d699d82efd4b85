"""Peers that a file names: read again when it changes."""

import json
import tomllib
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import msgspec
from loguru import logger

from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.discovery.static import FIRST_PAUSE_S, LONGEST_PAUSE_S
from exo.cluster.facts import Sighting
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort

POLL_S = 3.0
FILE_BYTES_MAX = 1024 * 1024
PEERS_MAX = 4096

_SHAPES = 'a list of "HOST:PORT" or of {address, name}, as JSON or as `peers` in TOML'


class NamedPeer(msgspec.Struct, frozen=True):
    """An address to try."""

    address: HostPort
    name: str | None = None
    """For people who read the file."""


def parse_peers(text: str, *, default_port: int, is_toml: bool) -> tuple[NamedPeer, ...]:
    """Read peers. Pure.

    Args:
        default_port: Cluster port of an address without one.
        is_toml: TOML, with the list under `peers`; else JSON, where the list may stand alone, too.

    Raises:
        ValueError: The text is not what was expected; the message names the line or the field.
    """
    found: Any
    try:
        found = tomllib.loads(text) if is_toml else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error)) from error  # TOML's errors name the line themselves.
    if isinstance(found, dict):
        fields = cast("dict[str, Any]", found)
        unknown = sorted(fields.keys() - {"peers"})
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no field here; expected {_SHAPES}")
        found = fields.get("peers")
    if not isinstance(found, list):
        raise ValueError(f"no list of peers; expected {_SHAPES}")
    items = cast("list[Any]", found)
    if len(items) > PEERS_MAX:
        raise ValueError(
            f"{len(items)} peers, {len(items) - PEERS_MAX} more than are tried; name a few, the rest follows"
        )
    return tuple(
        dict.fromkeys(_peer(f"peers[{number}]", item, default_port) for number, item in enumerate(items))
    )


def _peer(field: str, item: Any, default_port: int) -> NamedPeer:
    name: Any = None
    address: Any = item
    if isinstance(item, dict):
        fields = cast("dict[str, Any]", item)
        unknown = sorted(fields.keys() - {"address", "name"})
        if unknown:
            raise ValueError(f"{field}.{unknown[0]} is no field of a peer; a peer has address and name")
        name, address = fields.get("name"), fields.get("address")
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{field}.name is not text")
        field += ".address"
    if not isinstance(address, str):
        raise ValueError(f'{field} is missing or not text; expected "HOST:PORT"')
    try:
        return NamedPeer(HostPort.parse(address, default_port), name)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def read_peers(path: Path, *, default_port: int) -> tuple[NamedPeer, ...]:
    """Read a file of peers; a name that ends in `.toml` means TOML, any other JSON.

    Raises:
        ConfigurationError: It cannot be read, or is not what was expected; the message names the line or the field.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"longer than {FILE_BYTES_MAX} bytes")
        text = data.decode("utf-8-sig")
        return parse_peers(text, default_port=default_port, is_toml=path.suffix.lower() == ".toml")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the peers file {path}: {error.strerror or error}; mend it, or start without --peers-file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the peers file {path} is not UTF-8 text; save it as such") from error
    except ValueError as error:
        raise ConfigurationError(f"the peers file {path} cannot be used: {error}") from error


class PeersFileDiscovery(Discovery):
    """Reports the peers of a file again and again, as those that are named at start.

    When the file changes they are reported at once. A file that cannot be used is told once, and the last one that
    could be used stays.

    Args:
        path: The file.
        default_port: Cluster port of an address without one.
        poll_s: How often to see whether the file has changed.
        pause_s: First and longest time between two reports.
    """

    def __init__(
        self,
        path: Path,
        *,
        default_port: int,
        poll_s: float = POLL_S,
        pause_s: tuple[float, float] = (FIRST_PAUSE_S, LONGEST_PAUSE_S),
    ) -> None:
        self._path = path
        self._default_port = default_port
        self._poll_s = poll_s
        self._pause_s = pause_s
        self._peers: tuple[NamedPeer, ...] = ()
        self._stamp: tuple[int, int, int] | None = None
        self._problem = ""
        self._is_read = False

    async def run(self, facts: FactsSource, report: Report) -> None:
        first_s, longest_s = self._pause_s
        pause_s = first_s
        next_report_s = next_poll_s = anyio.current_time()
        while True:
            now_s = anyio.current_time()
            if now_s >= next_poll_s:
                next_poll_s = now_s + self._poll_s
                if await self._reread():
                    pause_s, next_report_s = first_s, now_s
            if now_s >= next_report_s:
                for peer in self._peers:
                    report(Sighting(address=peer.address, via="static"))
                next_report_s = now_s + pause_s
                pause_s = min(2 * pause_s, longest_s)
            await anyio.sleep_until(min(next_report_s, next_poll_s))

    async def _reread(self) -> bool:
        """Read the file if it has changed; return whether the peers have."""
        # The file may be on a disk far away, and that may hang.
        stamp, found = await anyio.to_thread.run_sync(self._look, abandon_on_cancel=True)
        if isinstance(found, str):
            if found != self._problem:
                logger.warning(
                    "{}; {}",
                    found,
                    "the peers that it named before stay" if self._is_read else "no peer is tried",
                )
            self._problem, self._stamp = found, stamp
            return False
        self._stamp = stamp
        if found is None:
            return False
        has_changed = found != self._peers
        if has_changed or self._problem:
            logger.info("peers named in {}: {}", self._path, len(found))
        self._problem, self._peers, self._is_read = "", found, True
        return has_changed

    def _look(self) -> tuple[tuple[int, int, int] | None, tuple[NamedPeer, ...] | str | None]:
        """Return the file's stamp, and its peers, what is wrong with it, or None when it has not changed."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            stamp = None
        if stamp is not None and stamp == self._stamp:
            return stamp, None
        try:
            return stamp, read_peers(self._path, default_port=self._default_port)
        except ConfigurationError as error:
            return stamp, error.message
