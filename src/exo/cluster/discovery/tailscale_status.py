"""Asking the Tailscale that runs on this host who is in its network: by its socket, its port, or its command.

The places are those of Tailscale's own programs (its packages `paths` and `safesocket`); the answer is that of
`GET /localapi/v0/status`, which `tailscale status --json` prints as well (its package `ipnstate`).
"""

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from exo.cluster.discovery.errors import StatusError

SOCKETS = {
    "linux": (
        "/var/run/tailscale/tailscaled.sock",
        "/var/packages/Tailscale/var/tailscaled.sock",
        "/var/packages/Tailscale/etc/tailscaled.sock",
        "/perm/tailscaled/tailscaled.sock",
    ),
    "darwin": ("/var/run/tailscaled.socket",),
}
MAC_APP_FOLDER = Path("/Library/Tailscale")
WINDOWS_COMMAND = Path(r"C:\Program Files\Tailscale\tailscale.exe")
TIMEOUT_S = 5.0
STATUS_BYTES_MAX = 32 * 1024 * 1024


class TailscalePeer(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Another machine of the network."""

    host_name: str = ""
    os: str = msgspec.field(name="OS", default="")
    tailscale_ips: list[str] | None = msgspec.field(name="TailscaleIPs", default=None)
    online: bool = False


class TailscaleStatus(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What Tailscale knows."""

    backend_state: str = ""
    """`Running` while it is connected."""
    peer: dict[str, TailscalePeer] | None = None


ReadStatus = Callable[[], Awaitable[bytes | None]]
"""Returns Tailscale's status as JSON, or None where it does not run; raises StatusError."""

_decoder = msgspec.json.Decoder(TailscaleStatus)


def decode_status(data: bytes) -> TailscaleStatus:
    """Raises StatusError: it is not what Tailscale answers."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise StatusError(f"its answer cannot be read: {error}") from error


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How to ask: by exactly one of a Unix socket, a port of this host, and a command."""

    socket: str = ""
    port: int = 0
    password: str = ""
    """For the port."""
    command: str = ""


def find_way(platform: str = sys.platform) -> Way | None:
    """Return the way that there is on this platform; None: Tailscale is not here.

    Raises:
        StatusError: It is here, but not for this user.
    """
    for path in SOCKETS.get(platform, ()):
        if Path(path).exists():
            return Way(socket=path)
    if platform == "darwin":
        return find_app(MAC_APP_FOLDER)
    if platform == "win32":
        command = shutil.which("tailscale") or (str(WINDOWS_COMMAND) if WINDOWS_COMMAND.exists() else "")
        return Way(command=command) if command else None
    return None


def find_app(folder: Path) -> Way | None:
    """Return the way to the application of macOS, whose folder tells its port, and to administrators its password.

    Raises:
        StatusError: The password cannot be read.
    """
    try:
        port = int(str((folder / "ipnport").readlink()))
    except (OSError, ValueError):
        return None
    try:
        password = (folder / f"sameuserproof-{port}").read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise StatusError(f"only administrators of this machine may read its status ({error})") from error
    return Way(port=port, password=password)


async def read_status(
    find: Callable[[], Way | None] = find_way, *, timeout_s: float = TIMEOUT_S
) -> bytes | None:
    """Return Tailscale's status as JSON, or None where it does not run.

    Raises:
        StatusError: It is there, but does not answer, or not to this user.
    """
    way = find()
    if way is None:
        return None
    if way.command:
        return await _run(way.command, timeout_s)
    get = await anyio.to_thread.run_sync(_load_http)
    return await get(way, timeout_s)


def _load_http() -> Callable[[Way, float], Awaitable[bytes | None]]:
    from exo.cluster.discovery.tailscale_http import get_status

    return get_status


async def _run(command: str, timeout_s: float) -> bytes | None:
    try:
        process = await asyncio.create_subprocess_exec(
            command,
            "status",
            "--json",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise StatusError(f"{command} cannot be started: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            data, _ = await process.communicate()
    except TimeoutError as error:
        raise StatusError(f"it gave no answer within {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
    return data or None  # Where Tailscale is stopped the command fails, and says so in its answer.
