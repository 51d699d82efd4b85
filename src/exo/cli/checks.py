"""What `exo doctor` looks at, one function each. They change nothing on the machine."""

import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exo.cli import nvidia
from exo.cli.output import size
from exo.settings import API_PORT, CLUSTER_PORT, DATA_PORT, default_home

if TYPE_CHECKING:
    from exo.gpu.inventory import Inventory

_MLX_TIMEOUT_S = 60.0
_MULTICAST_TIMEOUT_S = 2.0

_MLX_PROBE = """
import importlib.metadata, json, time
import mlx.core as mx
a = mx.random.normal((512, 512))
mx.eval(a @ a)
started = time.perf_counter()
for _ in range(4):
    mx.eval(a @ a)
seconds = time.perf_counter() - started
gflops = 4 * 2 * 512**3 / seconds / 1e9
device = "gpu" if mx.default_device() == mx.Device(mx.gpu, 0) else "cpu"
print(json.dumps({"version": importlib.metadata.version("mlx"), "device": device, "gflops": gflops}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    status: Literal["ok", "note", "broken"]
    text: str
    next_step: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return it for JSON."""
        return asdict(self)


def home_folder(home: Path | None) -> Path:
    """Return the data directory that a node would use."""
    return (home or default_home()).expanduser().absolute()


def check_python() -> list[Finding]:
    """The interpreter."""
    text = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    return [Finding("python", "ok", text)]


def check_machine() -> list[Finding]:
    """Operating system, cores and memory."""
    import psutil

    memory = psutil.virtual_memory()
    text = (
        f"{platform.system()} {platform.release()} on {platform.machine()}, {os.cpu_count()} cores, "
        f"{size(memory.available)} of {size(memory.total)} memory free"
    )
    return [Finding("machine", "ok", text)]


def check_devices() -> list[Finding]:
    """What the GPU layer finds, and what it misses."""
    import anyio
    from loguru import logger

    from exo.gpu.discovery import GPUDiscoveryService
    from exo.gpu.factory import GPUBackendFactory
    from exo.gpu.inventory import Inventory
    from exo.shared.types.ids import NodeId

    async def look() -> Inventory:
        async with GPUDiscoveryService(GPUBackendFactory.for_this_platform(NodeId("doctor"))) as discovery:
            return discovery.inventory

    logger.disable("exo")  # What it would warn of is found below.
    try:
        return describe_devices(anyio.run(look))
    finally:
        logger.enable("exo")


def describe_devices(inventory: "Inventory") -> list[Finding]:
    """Return what was found in words, with what installs each missing piece."""
    from exo.gpu.refusals import refusals

    found = [
        Finding("device", "ok", f"{one.local_alias}: {one.name}, {size(one.memory_total_bytes)}")
        for one in inventory.devices
    ]
    # Another name of a device that is used is no news here; drivers are told of below, with those of which nothing
    # speaks for a device.
    found += [
        Finding(
            "device",
            "broken" if one.kind == "wrong" else "note",
            f"{one.local_alias}: {one.name} is not used: {one.reason}",
            one.next_step,
        )
        for one in refusals(inventory)
        if one.kind != "duplicate" and one.local_alias is not None
    ]
    found += [
        Finding("device", "note", f"{used.backend.name} works in part: {gap.message}", gap.install_command)
        for used in {one.backend.name: one for one in inventory.used}.values()
        for gap in used.backend.gaps
    ]
    found += [
        Finding("device", "note", f"no {one.name}: {one.reason}", one.install_command)
        for one in inventory.missing
    ]
    return found


def check_nvidia() -> list[Finding]:
    """NVIDIA's driver, and whether MLX can use it."""
    advice = nvidia.advise()
    is_wanted = nvidia.wants_cuda()
    if advice.is_cuda:
        if nvidia.has_mlx_cuda():
            return [Finding("nvidia", "ok", f"{advice.reason}; MLX is installed with CUDA")]
        status = "broken" if is_wanted else "note"
        return [
            Finding("nvidia", status, f"{advice.reason}, but MLX is installed without CUDA", advice.command)
        ]
    if advice.has_gpu:
        step = f"update NVIDIA's driver to {nvidia.CUDA_13_DRIVER} or newer, then: {nvidia.CUDA_COMMAND}"
        return [Finding("nvidia", "broken" if is_wanted else "note", advice.reason, step)]
    if is_wanted:
        step = "install NVIDIA's driver, or unset EXO_USE_CUDA"
        return [Finding("nvidia", "broken", f"EXO_USE_CUDA is set, but {advice.reason}", step)]
    return [Finding("nvidia", "ok", f"not used: {advice.reason}")]


def check_engines() -> list[Finding]:
    """Which engines can run here."""
    from exo.engines.registry import engine_problems

    problems = engine_problems()
    works = any(problem is None for problem in problems.values())
    return [
        Finding("engine", "ok", f"{name} is installed")
        if problem is None
        else Finding("engine", "note" if works else "broken", f"{name} cannot be used", problem)
        for name, problem in sorted(problems.items())
    ]


def check_mlx() -> list[Finding]:
    """Whether MLX computes, and on what. In a process like a stage's: a broken build may crash."""
    from exo.engines.registry import engine_problems
    from exo.worker.runner.environment import stage_environment

    if engine_problems().get("mlx") is not None:
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MLX_PROBE],
            capture_output=True,
            text=True,
            timeout=_MLX_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=stage_environment(
                os.environ, engine="mlx", device="gpu" if nvidia.has_mlx_cuda() else "cpu:0"
            ),
        )
    except subprocess.TimeoutExpired:
        return [Finding("mlx", "broken", f"MLX did not compute a product within {_MLX_TIMEOUT_S:g} s")]
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [
            Finding("mlx", "broken", f"MLX cannot compute: {lines[-1]}", "uv sync --reinstall-package mlx")
        ]
    return [Finding("mlx", "ok", describe_mlx(json.loads(done.stdout)))]


def describe_mlx(found: dict[str, Any]) -> str:
    """Return what the probe measured in words."""
    on_gpu = "Metal" if sys.platform == "darwin" else "CUDA"
    backend = on_gpu if found["device"] == "gpu" else "CPU"
    return f"MLX {found['version']} computes on its {backend} backend, {found['gflops']:.1f} GFLOP/s in f32"


def check_openblas() -> list[Finding]:
    """On Linux without CUDA, MLX brings a slow matrix product of its own; OpenBLAS replaces it where it is there."""
    if sys.platform != "linux" or nvidia.has_mlx_cuda():
        return []
    from exo.worker.runner.environment import find_openblas

    library = find_openblas()
    if library is not None:
        return [Finding("openblas", "ok", f"{library} speeds up MLX on the processor")]
    step = "apt install libopenblas0-pthread (Debian, Ubuntu), or your system's package of OpenBLAS"
    return [
        Finding("openblas", "note", "OpenBLAS is not installed: f32 products on the CPU are far slower", step)
    ]


def check_home(home: Path) -> list[Finding]:
    """Whether the data directory can be written."""
    nearest = home
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    step = "choose another one with --home or EXO_HOME"
    if not nearest.is_dir():
        return [Finding("data directory", "broken", f"{home}: {nearest} is not a directory", step)]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [Finding("data directory", "broken", f"{home} cannot be written", step)]
    free = size(shutil.disk_usage(nearest).free)
    state = "can be written" if nearest == home else "will be made at the first start"
    return [Finding("data directory", "ok", f"{home} {state}, {free} free on its disk")]


def check_models(home: Path) -> list[Finding]:
    """Which models are there, and what is wrong with those that cannot be used."""
    from loguru import logger

    from exo.worker.models.store import ModelStore

    extra = [Path(text) for text in os.environ.get("EXO_MODELS_DIRS", "").split(os.pathsep) if text]
    store = ModelStore((home / "models", *extra))
    logger.disable("exo")  # What it would warn of is found below.
    try:
        cards = store.scan()
    finally:
        logger.enable("exo")
    good = [card for card in cards if card.hindrance is None]
    findings = [
        Finding("model", "ok", f"{card.model_id}: {size(card.total_bytes)}, {store.directory(card.model_id)}")
        for card in good
    ]
    problems = {
        card.model_id: card.hindrance for card in cards if card.hindrance is not None
    } | store.unreadable
    step = "mend or remove its directory"
    findings += [Finding("model", "note", f"{key}: {why}", step) for key, why in sorted(problems.items())]
    if not good:
        findings.append(
            Finding("model", "note", "there is no model", f"put model directories into {home / 'models'}")
        )
    return findings


def check_ports() -> list[Finding]:
    """Whether the usual ports are free, or a node of exo has them."""
    variables = (("EXO_PORT", API_PORT), ("EXO_CLUSTER_PORT", CLUSTER_PORT), ("EXO_DATA_PORT", DATA_PORT))
    ports = [(name, int(os.environ.get(name) or usual)) for name, usual in variables]
    taken = {name: port for name, port in ports if port != 0 and not _is_free(port)}
    if not taken:
        return [Finding("ports", "ok", f"{_listed(port for _, port in ports)} are free")]
    listed = _listed(taken.values())
    if "EXO_PORT" in taken and _is_exo(taken["EXO_PORT"]):
        return [
            Finding("ports", "ok", f"{listed} taken by a running node: http://127.0.0.1:{taken['EXO_PORT']}")
        ]
    flags = " ".join(f"--{name.removeprefix('EXO_').lower().replace('_', '-')} 0" for name in taken)
    return [Finding("ports", "note", f"{listed} taken by another program", f"end it, or: exo {flags}")]


def check_multicast() -> list[Finding]:
    """Whether datagrams to a multicast group arrive on this machine: that is how nodes find each other."""
    from exo.cluster.discovery.groups import GROUP_V4

    step = "name the other nodes: exo --peer HOST:PORT"
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("", 0))
            membership = struct.pack("4s4s", socket.inet_aton(GROUP_V4), socket.inet_aton("127.0.0.1"))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            receiver.settimeout(_MULTICAST_TIMEOUT_S)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            word = os.urandom(16)
            sender.sendto(word, (GROUP_V4, receiver.getsockname()[1]))
            heard = receiver.recv(64)
    except TimeoutError:
        return [Finding("multicast", "note", "no datagram came back: nodes do not find each other", step)]
    except OSError as error:
        return [Finding("multicast", "note", f"not possible here: {error.strerror or error}", step)]
    if heard != word:
        return [Finding("multicast", "note", "another datagram came than was sent", step)]
    return [Finding("multicast", "ok", "works on this machine: its nodes find each other")]


def check_dashboard() -> list[Finding]:
    """Whether the dashboard is built, and could be."""
    import exo.api

    folder = Path(str(exo.api.__file__)).parent / "dashboard"
    if (folder / "index.html").is_file():
        return [Finding("dashboard", "ok", "is built")]
    step = "cd dashboard && npm ci && npm run build"
    if shutil.which("npm") is None:
        step = f"install Node.js 20 or newer, then: {step}"
    return [Finding("dashboard", "note", "is not built; everything else works without it", step)]


def _listed(ports: Any) -> str:
    return ", ".join(str(port) for port in ports)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _is_exo(port: int) -> bool:
    from exo.cli.client import NodeClient
    from exo.shared.errors import ExoError

    try:
        with NodeClient(f"http://127.0.0.1:{port}") as client:
            return "exo_version" in client.get("/healthz", timeout_s=3)
    except ExoError:
        return False
