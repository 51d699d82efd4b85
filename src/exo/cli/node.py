"""Starts a node from what was typed."""

import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
from loguru import logger

from exo.cli.nvidia import cuda_advice, wants_cuda
from exo.logs import configure_logs
from exo.settings import CLUSTER_PORT, Settings, default_home
from exo.shared.errors import ConfigurationError
from exo.shared.garbage import settle_garbage_collector
from exo.shared.types.nodes import HostPort

ZONE_CHARACTERS_MAX = 64


def start(
    *,
    home: Path | None,
    host: str,
    port: int,
    cluster_port: int,
    data_port: int,
    discovery_port: int,
    is_discovery_enabled: bool,
    namespace: str,
    peers: Sequence[str],
    peers_file: Path | None,
    is_mdns_enabled: bool,
    is_tailscale_enabled: bool,
    cluster_host: str | None,
    advertise_host: str | None,
    coordinator: str,
    is_worker: bool,
    is_auto_place_enabled: bool,
    is_key_required: bool,
    models_dirs: Sequence[Path],
    telemetry_interval_s: float,
    verbosity: int,
    name: str,
    zone: str,
) -> None:
    """Run a node until it is told to end.

    Raises:
        ConfigurationError: A setting cannot be used.
        ExoError: The node cannot run.
    """
    settings = Settings(
        home=(home or default_home()).expanduser().absolute(),
        host=host,
        port=port,
        cluster_port=cluster_port,
        data_port=data_port,
        discovery_port=discovery_port,
        is_discovery_enabled=is_discovery_enabled,
        namespace=namespace,
        peers=parse_peers(peers),
        peers_file=peers_file.expanduser().absolute() if peers_file is not None else None,
        is_mdns_enabled=is_mdns_enabled,
        is_tailscale_enabled=is_tailscale_enabled,
        cluster_host=cluster_host,
        advertise_host=advertise_host,
        coordinator=coordinator,
        is_worker=is_worker,
        is_auto_place_enabled=is_auto_place_enabled,
        is_key_required=is_key_required,
        models_dirs=check_models_dirs(models_dirs),
        telemetry_interval_s=telemetry_interval_s,
        verbosity=verbosity,
        name=name,
        zone=parse_zone(zone),
    )
    configure_logs(verbosity)
    if wants_cuda(os.environ):
        advice = cuda_advice() or "exo places no layers on GPUs yet: they run on the processor"
        logger.warning("EXO_USE_CUDA is set, but {}", advice)
    from exo.node import run_node

    settle_garbage_collector()
    anyio.run(run_node, settings, backend_options={"use_uvloop": sys.platform != "win32"})


def parse_zone(text: str) -> str:
    """Return the name of a zone without the spaces around it.

    Raises:
        ConfigurationError: It is too long, or has characters that no terminal shows.
    """
    name = text.strip()
    if len(name) > ZONE_CHARACTERS_MAX or not name.isprintable():
        raise ConfigurationError(
            f"{text[:80]!r} is no name for a zone; give up to {ZONE_CHARACTERS_MAX} letters, such as --zone garage"
        )
    return name


def parse_peers(values: Sequence[str]) -> tuple[HostPort, ...]:
    """Read peers, each HOST:PORT or HOST, one by one or separated by commas; keeps their order, drops repetitions.

    Raises:
        ConfigurationError: One is no address.
    """
    found: dict[HostPort, None] = {}
    for value in values:
        for text in filter(None, (part.strip() for part in value.split(","))):
            try:
                peer = HostPort.parse(text, CLUSTER_PORT)
                if ":" in peer.host:
                    ipaddress.IPv6Address(peer.host)
            except ValueError as error:
                raise ConfigurationError(
                    f"--peer: {text!r} is not an address; expected HOST:PORT, such as 127.0.0.1:{CLUSTER_PORT}"
                ) from error
            found[peer] = None
    return tuple(found)


def check_models_dirs(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Return the folders as absolute paths.

    Raises:
        ConfigurationError: One is not there.
    """
    found = tuple(folder.expanduser().absolute() for folder in folders)
    for folder in found:
        if not folder.is_dir():
            raise ConfigurationError(
                f"the models folder {folder} is not a directory; create it, or leave --models-dir out"
            )
    return found
