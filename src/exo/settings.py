"""What a node is told at start: flags, their environment variables, and the data directory."""

import os
from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, Field

from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort

API_PORT = 52415
CLUSTER_PORT = 52416
DATA_PORT = 52417


class Settings(BaseModel):
    """One node's settings. Port 0 means any free port, announced in the log and on stdout."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    home: Path
    host: str = "127.0.0.1"
    port: int = API_PORT
    cluster_port: int = CLUSTER_PORT
    data_port: int = DATA_PORT
    discovery_port: int = CLUSTER_PORT
    is_discovery_enabled: bool = True
    namespace: str = "default"
    peers: tuple[HostPort, ...] = ()
    peers_file: Path | None = None
    is_mdns_enabled: bool = True
    is_tailscale_enabled: bool = True
    cluster_host: str | None = None
    """Where to listen for other nodes; None: loopback, and all addresses once the cluster has given a certificate."""
    advertise_host: str | None = None
    """The address that nodes of other hosts are told; None: this host's first one."""
    coordinator: str = "embedded"
    """`embedded`, or the address of an etcd."""
    is_worker: bool = True
    is_auto_place_enabled: bool = True
    is_key_required: bool = False
    """Programs on this machine need an API key, too; for machines with several users."""
    models_dirs: tuple[Path, ...] = ()
    """Folders of model directories beside `<home>/models`."""
    telemetry_interval_s: float = 2.0
    verbosity: int = 0
    """-1 quiet, 0 usual, 1 and 2 more."""
    name: str = Field(default="")
    """Shown to people; empty: the host's name."""
    zone: str = ""
    """The room, building or provider that the node stands in; those without one are near each other."""


def default_home() -> Path:
    """Return `EXO_HOME`, else the platform's usual place for a user's data."""
    chosen = os.environ.get("EXO_HOME")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("exo", appauthor=False))


def secret_file() -> Path:
    """Return the file with this user's secret on this host: what lets their own nodes join each other at once."""
    chosen = os.environ.get("EXO_HOST_SECRET_FILE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_config_dir("exo", appauthor=False)) / "host.secret"


def prepare_home(home: Path) -> None:
    """Create the data directory, readable by its owner only.

    Raises:
        ConfigurationError: It cannot be created or written to.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = home / f".write-probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to the data directory {home}: {error.strerror or error}; "
            "choose another one with EXO_HOME or --home"
        ) from error
