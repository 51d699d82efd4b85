"""The only place that wires the rooms together: one node, from its settings to its end."""

import contextlib
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import getnode, uuid4

import anyio
import anyio.to_thread
import msgspec
from loguru import logger

from exo.api.access_enrolment import EnrolmentDesk
from exo.api.access_telling import ProfileVoice
from exo.api.app import create_app
from exo.api.context import NodeActions, StartInfo
from exo.api.server import ApiServer
from exo.cluster.boots import NUMBERS_PER_BOOT
from exo.cluster.coordinator import Coordinator
from exo.cluster.discovery.factory import make_discoveries
from exo.cluster.node_id import load_node_id
from exo.cluster.options import CoordinatorOptions
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.base import Listener
from exo.cluster.transport.tcp import TcpTransport
from exo.dataplane.client import GenerationClient
from exo.engines.registry import engine_backends, missing_build
from exo.gpu.backend import GPUBackend
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.factory import GPUBackendFactory
from exo.gpu.health_watch import HealthWatch
from exo.gpu.measuring import DeviceMeasurer
from exo.gpu.refusals import refusals
from exo.gpu.registry import REGISTRY_FILE, DeviceRegistry
from exo.gpu.thermal.settings import ThermalSettings
from exo.master.loop import Master
from exo.master.migration import habits_from
from exo.master.solver import Solver, is_constraint_layer_wanted
from exo.node_announcing import DeviceAnnouncer
from exo.node_ending import end_within
from exo.node_store import Opened, note_members, open_node_store, regain_vote
from exo.node_trust import NodeAuthority, NodeTrust
from exo.settings import Settings, prepare_home, secret_file
from exo.shared.errors import ConfigurationError, ExoError, NoMasterError
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import NodeTelemetry, State
from exo.worker.bandwidth.busy import Busy
from exo.worker.bandwidth.meter import BandwidthMeter
from exo.worker.device_watch import DeviceWatch
from exo.worker.heat_watch import HeatWatch
from exo.worker.loop import Worker
from exo.worker.models.store import ModelStore
from exo.worker.pace.store import PACES_FILE, PaceStore
from exo.worker.pace.watch import PaceWatch
from exo.worker.runner.supervisor import StageRunner
from exo.worker.stage_devices import StageDevices
from exo.worker.telemetry import GPUTelemetryCollector, GPUTelemetryConfig

if TYPE_CHECKING:
    from exo.cluster.etcd.coordinator import EtcdCoordinator

NODE_FILE = "node.json"
"""In the data directory while a node runs: where it can be reached."""


class NodeFile(msgspec.Struct, frozen=True, kw_only=True):
    """What other programs of this user may want to know of the running node."""

    node_id: str
    pid: int
    api_address: HostPort
    cluster_address: HostPort
    data_address: HostPort


async def run_node(settings: Settings) -> None:
    """Run a node until SIGINT or SIGTERM; leaves no process behind.

    Raises:
        ConfigurationError: A port is in use, the data directory cannot be written, another node uses it, ...
        LogCorruptError: The log cannot be replayed.
    """
    prepare_home(settings.home)
    try:
        await _run(settings)
    except* ExoError as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[ExoError]) -> ExoError:
    """The error that a person should see of those that came together: the cause, not what follows from it."""
    found = list(_flat(group))
    return max(found, key=lambda error: (not isinstance(error, NoMasterError), error.exit_code))


def _flat(group: BaseExceptionGroup[ExoError]) -> Iterator[ExoError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flat(error)
        else:
            yield error


async def _run(settings: Settings) -> None:
    started_s = time.monotonic()
    api_socket = _bind(settings.host, settings.port)
    try:
        node_id = load_node_id(settings.home)
        opened = open_node_store(settings.home, node_id)
        try:
            await _run_with(settings, api_socket, node_id, opened, started_s)
        finally:
            (settings.home / NODE_FILE).unlink(missing_ok=True)
            opened.store.close()
    finally:
        api_socket.close()
    logger.info("stopped")


async def _run_with(
    settings: Settings, api_socket: socket.socket, node_id: NodeId, opened: Opened, started_s: float
) -> None:
    boot_id = uuid4().hex
    secret = load_host_secret(secret_file())
    thermal = ThermalSettings.from_environment(os.environ, settings.telemetry_interval_s)
    discovery = GPUDiscoveryService(
        GPUBackendFactory.for_this_platform(node_id),
        registry=DeviceRegistry(settings.home / REGISTRY_FILE, version("exo")),
    )
    model_store = ModelStore((settings.home / "models", *settings.models_dirs))
    models = await anyio.to_thread.run_sync(model_store.scan)

    transport = TcpTransport(secret)
    trust = NodeTrust(
        settings.home,
        node_id,
        transport,
        cluster_host=settings.cluster_host,
        advertise_host=settings.advertise_host,
    )
    for member_id, address in opened.last_seen.others(node_id).items():
        trust.introduced.introduce(address, member_id)
    generation_client = GenerationClient(
        secret=secret,
        node_id=node_id,
        listen_host=trust.listen_host(),
        listen_port=settings.data_port,
        advertised_host=trust.advertised_host(),
    )
    generation_client.set_identity(trust.data_identity())
    async with (
        discovery,
        generation_client,
        await transport.listen(HostPort(trust.listen_host(), settings.cluster_port)) as listener,
        anyio.create_task_group() as tasks,
    ):
        devices = discovery.inventory.devices
        backends = engine_backends() if settings.is_worker else {}
        announcer = DeviceAnnouncer(backends, missing_build)
        announcer.started(devices)
        api_address = HostPort(settings.host, api_socket.getsockname()[1])
        identity = NodeIdentity(
            node_id=node_id,
            boot_id=boot_id,
            name=settings.name or socket.gethostname(),
            host_id=_host_id(),
            platform=f"{platform.system().lower()}-{platform.machine().lower()}",
            exo_version=version("exo"),
            cluster_address=trust.advertised(listener.address),
            data_address=generation_client.address,
            api_address=api_address,
            is_worker=settings.is_worker,
            devices=devices,
            models=models,
            engines=tuple(backends),
            engine_backends=backends,
            zone=settings.zone,
        )
        coordinator = _make_coordinator(settings, secret, identity, opened, transport, listener, trust)
        authority = NodeAuthority(trust.store, coordinator, trust.share_with(coordinator))
        solver = Solver(has_constraint_layer=is_constraint_layer_wanted(os.environ))
        master = Master(
            coordinator,
            solver,
            lambda: uuid4().hex[:12],
            authority=authority,
            migration=habits_from(os.environ),
        )
        await tasks.start(coordinator.run)
        tasks.start_soon(master.run)
        tasks.start_soon(_warm_up_when_leading, coordinator, solver)
        tasks.start_soon(note_members, settings.home, coordinator)
        health = HealthWatch(
            is_busy=lambda device_id: _is_placed_on(coordinator.state, device_id),
            on_change=lambda change: collector.collect_soon(),
        )
        heat = HeatWatch(thermal, clock=time.monotonic)
        busy = Busy()
        meter = BandwidthMeter(
            node_id=node_id,
            state=lambda: coordinator.state,
            open_stream=generation_client.open_probe,
            publish=coordinator.publish,
            busy=busy,
        )
        generation_client.probe_desk.obstacle = meter.obstacle

        def on_devices(found: Sequence[tuple[GPUBackend, GPUDevice]]) -> None:
            health.set_devices(found)
            meter.set_devices(found)
            announcer.now_there([device for _, device in found])

        watch = DeviceWatch(source=discovery, coordinator=coordinator, boot_id=boot_id, on_devices=on_devices)
        voice = ProfileVoice(coordinator.publish)
        collector = GPUTelemetryCollector(
            node_id=node_id,
            devices=lambda: discovery.inventory.used,
            health=health,
            publish=voice.publish,
            config=GPUTelemetryConfig.from_environment(settings.telemetry_interval_s),
            clock=time.monotonic,
            now=_utc_now,
            on_lost=watch.look_soon,
            heat=heat,
            refused=lambda: refusals(discovery.inventory),
        )
        tasks.start_soon(health.run)
        tasks.start_soon(watch.run)
        tasks.start_soon(collector.start_monitoring)
        tasks.start_soon(meter.run)
        tasks.start_soon(DeviceMeasurer(source=discovery, is_busy=lambda: busy.is_busy).run)
        worker: Worker | None = None
        if settings.is_worker:

            def reading_of(device_id: DeviceId) -> DeviceGPUState | None:
                return _live(coordinator, node_id).devices.get(device_id)

            paces = PaceWatch(
                devices=lambda: discovery.inventory.devices,
                reading=reading_of,
                publish=coordinator.publish,
                store=PaceStore(settings.home / PACES_FILE),
                exo_version=version("exo"),
                clock=time.monotonic,
            )
            paces.tell_known()
            worker = Worker(
                coordinator=coordinator,
                boot_id=boot_id,
                store=model_store,
                models=models,
                make_runner=StageRunner,
                secret=secret,
                data_host="127.0.0.1",
                verbosity=settings.verbosity,
                devices=StageDevices(
                    devices=lambda: discovery.inventory.devices,
                    states=lambda: _live(coordinator, node_id).devices,
                    observe_failure=health.observe_failure,
                ),
                heat=heat,
                paces=paces,
                note_busy=busy.note,
            )
            tasks.start_soon(worker.run)
        trust.attach(generation_client, worker)
        tasks.start_soon(trust.run, coordinator, listener, settings.namespace, identity.name)
        app = create_app(
            coordinator=coordinator,
            generation_client=generation_client,
            settings=settings,
            started=StartInfo(node_id=node_id, exo_version=version("exo"), started_at=_utc_now()),
            actions=NodeActions(
                join_wanted=trust.join_wanted,
                note_busy=partial(busy.note, "clients of this node"),
                tell_key_usage=voice.tell_key_usage,
                refused_data_connections=lambda: generation_client.refused_connection_count,
            ),
        )
        transport.set_enrol(EnrolmentDesk(app.state.context))
        file = NodeFile(
            node_id=node_id,
            pid=os.getpid(),
            api_address=api_address,
            cluster_address=listener.address,
            data_address=generation_client.address,
        )

        def announce() -> None:
            _write_node_file(settings.home, file)
            logger.success(
                "exo is ready after {:.1f} s: http://{} (node {}, cluster {}, data {})",
                time.monotonic() - started_s,
                api_address,
                identity.name,
                listener.address,
                generation_client.address,
            )

        server = ApiServer(app, app.state.context)
        tasks.start_soon(_stop_on_signal, server)
        await server.serve(api_socket, announce)
        await coordinator.leave()
        tasks.cancel_scope.cancel()


def _make_coordinator(
    settings: Settings,
    secret: bytes,
    identity: NodeIdentity,
    opened: Opened,
    transport: TcpTransport,
    listener: Listener,
    trust: NodeTrust,
) -> "EmbeddedCoordinator | EtcdCoordinator":
    is_checking_invariants = os.environ.get("EXO_CHECK_INVARIANTS") == "1"
    numbers_behind = opened.boot * NUMBERS_PER_BOOT
    if settings.coordinator != "embedded":
        from exo.cluster.etcd.coordinator import open_etcd_coordinator

        return open_etcd_coordinator(
            settings.coordinator,
            identity=identity,
            namespace=settings.namespace,
            transport=transport,
            listener=listener,
            numbers_behind=numbers_behind,
            is_checking_invariants=is_checking_invariants,
        )
    discoveries = make_discoveries(
        is_multicast_enabled=settings.is_discovery_enabled,
        is_mdns_enabled=settings.is_mdns_enabled and settings.is_discovery_enabled,
        is_tailscale_enabled=settings.is_tailscale_enabled and settings.is_discovery_enabled,
        peers=settings.peers,
        peers_file=settings.peers_file,
        keys=lambda: trust.beacon_keys(secret),
        discovery_port=settings.discovery_port,
        cluster_port=settings.cluster_port,
    )
    return EmbeddedCoordinator(
        identity=identity,
        namespace=settings.namespace,
        store=opened.store,
        transport=transport,
        listener=listener,
        discoveries=[*discoveries, trust.introduced],
        options=CoordinatorOptions(numbers_behind=numbers_behind),
        is_checking_invariants=is_checking_invariants,
        is_voteless=opened.is_voteless,
        vote_regained=partial(regain_vote, settings.home),
    )


async def _warm_up_when_leading(coordinator: Coordinator, solver: Solver) -> None:
    """Have the solver ready before the first model is placed; a node that never leads needs none."""
    async for _ in coordinator.changes():
        if coordinator.leadership.is_self:
            await solver.warm_up()
            return


async def _stop_on_signal(server: ApiServer) -> None:
    """End the node the first time; without waiting for anyone the second time."""
    is_first = True
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for received in signals:
            logger.info("stopping ({})", signal.Signals(received).name)
            if is_first:
                is_first = False
                end_within()
            server.stop()


def _bind(host: str, port: int) -> socket.socket:
    """Take the API's port before anything else is decided, so that a clash is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "stop what uses the port, or choose another with --port (0 takes any free one)"
        ) from error
    return bound


def _live(coordinator: Coordinator, node_id: NodeId) -> NodeTelemetry:
    return coordinator.state.live.get(node_id, NodeTelemetry())


def _is_placed_on(state: State, device_id: DeviceId) -> bool:
    """Say whether stages of an instance use the device: then it is not disturbed without need."""
    instances = state.instances.values()
    return any(device_id in stage.device_ids for one in instances for stage in one.plan.stages)


def _host_id() -> str:
    """The same for all nodes of one machine. A MAC address would do, but containers share and change theirs."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            text = Path(path).read_text(encoding="ascii").strip()
            if text:
                return text
    return f"{socket.gethostname()}-{getnode():x}"


def _write_node_file(home: Path, file: NodeFile) -> None:
    """Write where this node answers, for the commands of its user.

    Raises:
        ConfigurationError: The data directory takes no files.
    """
    temporary = home / f"{NODE_FILE}.new"
    try:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(file)))
        temporary.replace(home / NODE_FILE)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {home / NODE_FILE}: {error.strerror or error}; "
            "make room there, or give this user the right to write"
        ) from error


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
