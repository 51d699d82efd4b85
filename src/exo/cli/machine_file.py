"""`--with FILE`: a machine that is not there yet, from a TOML file, with the line of whatever is wrong in it."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from exo.shared.errors import ConfigurationError
from exo.shared.types.devices import MemoryKind
from exo.shared.types.ids import NodeId
from exo.shared.types.what_if import WISHED_DEVICES_MAX, WishedDevice

GIB = 1024**3
FILE_BYTES_MAX = 1024 * 1024
_MBPS_PER_GBIT = 1000.0

_TYPES = {
    "str": "a text in quotes",
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "array": 'a list such as ["RTX 3090"]',
    "object": "a table",
}

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e19)]
Gibibytes = Annotated[float, msgspec.Meta(gt=0, le=2**20)]
Size = Annotated[int, msgspec.Meta(gt=0, le=2**50)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As in the files of simulated machines, of which what they play over time says nothing here."""

    name: Text
    kind: Annotated[str, msgspec.Meta(pattern="^(gpu|processor)$")] = "gpu"
    vendor: Text | None = None
    memory_kind: MemoryKind | None = None
    memory_gib: Gibibytes | None = None
    memory_total_bytes: Size | None = None
    memory_bandwidth_bytes_per_s: Positive | None = None
    flops_per_s: Positive | None = None
    compute_units: Size | None = None
    uuid: Any = None
    pci_address: Any = None
    compute_capability: Any = None
    clock_max_mhz: Any = None
    driver_version: Any = None
    power: Any = None
    heat: Any = None
    battery: Any = None
    load: Any = None
    load_period_s: Any = None
    has_ecc: Any = None
    call_latency_ms: Any = None
    faults: Any = None


class _Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Text | None = None
    """None: the file's name."""
    gpu: Text | None = None
    gpus: tuple[Text, ...] = ()
    memory_gib: Gibibytes | None = None
    """Of each of these, where their name is sold with several sizes."""
    processor: Text | None = None
    ram_gib: Gibibytes | None = None
    """Where it is given, the processor may take part, too."""
    zone: Annotated[str, msgspec.Meta(max_length=200)] = ""
    link_gbit_per_s: Positive | None = None
    link_latency_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] | None = None
    sources: Any = None
    devices: tuple[_Device, ...] = ()


def read_machine(file: Path) -> dict[str, Any]:
    """Return the body's `machines` entry for a file.

    Raises:
        ConfigurationError: It cannot be read, or something in it cannot be used; the message names the line.
    """
    text = _read(file)
    try:
        machine = msgspec.convert(tomllib.loads(text), _Machine)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"--with {file}: it is no TOML: {error}; write a name and a value in each line, texts in quotes: "
            'gpu = "RTX 4090"'
        ) from error
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise _wrong(file, text, where.rstrip("`").lstrip("."), what) from error
    return _body(file, text, machine)


def in_words(what: str, where: str) -> str:
    """Return what is wrong with a value for people who write TOML; a key that is not known with those that are."""
    what = what.replace(" | null", "")
    for name, words in _TYPES.items():
        what = what.replace(f"`{name}`", words)
    unknown = re.search(r"unknown field (`[^`]+`)", what)
    if unknown is None:
        return what
    shape = _Device if where.startswith("devices[") else _Machine
    known = [field.name for field in msgspec.structs.fields(shape) if field.type is not Any]
    return f"there is no {unknown[1]} here, but {', '.join(known)}"


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"--with {file}: {error.strerror or error}; name a TOML file that describes a machine, such as one "
            'with the line: gpu = "RTX 4090"'
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigurationError(f"--with {file}: it has more than a mebibyte, which no description needs")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"--with {file}, line {line}: it is no text in UTF-8") from error


def _body(file: Path, text: str, machine: _Machine) -> dict[str, Any]:
    devices: list[tuple[str, WishedDevice]] = []
    if machine.gpu is not None:
        devices.append(("gpu", _named(machine, machine.gpu)))
    devices += [("gpus", _named(machine, name)) for name in machine.gpus]
    for place, one in enumerate(machine.devices):
        devices.append((f"devices[{place}].name", _described(one)))
    if machine.ram_gib is not None:
        name = machine.processor or "processor"
        memory_bytes = int(machine.ram_gib * GIB)
        devices.append(
            ("processor", WishedDevice(name=name, kind="processor", memory_total_bytes=memory_bytes))
        )
    elif machine.processor is not None:
        raise _wrong(file, text, "processor", "a processor needs ram_gib, the memory of the machine")
    if not devices:
        raise ConfigurationError(f'--with {file}: it names no device; give at least: gpu = "RTX 4090"')
    if len(devices) > WISHED_DEVICES_MAX:
        raise ConfigurationError(
            f"--with {file}: it names {len(devices)} devices, and one machine has at most {WISHED_DEVICES_MAX}; "
            "describe the others in files of their own"
        )
    for where, device in devices:
        _check(file, text, where, device)
    body: dict[str, Any] = {
        "name": machine.name or file.stem,
        "devices": [
            {key: value for key, value in msgspec.structs.asdict(one).items() if value is not None}
            for _, one in devices
        ],
    }
    if machine.zone:
        body["zone"] = machine.zone
    if machine.link_gbit_per_s is not None:
        body["link_mbps"] = machine.link_gbit_per_s * _MBPS_PER_GBIT
    if machine.link_latency_ms is not None:
        body["link_latency_ms"] = machine.link_latency_ms
    return body


def _named(machine: _Machine, name: str) -> WishedDevice:
    size = None if machine.memory_gib is None else int(machine.memory_gib * GIB)
    return WishedDevice(name=name, memory_total_bytes=size)


def _described(one: _Device) -> WishedDevice:
    size = one.memory_total_bytes
    if size is None and one.memory_gib is not None:
        size = int(one.memory_gib * GIB)
    return WishedDevice(
        name=one.name,
        kind="processor" if one.kind == "processor" else "gpu",
        vendor=one.vendor,
        memory_kind=one.memory_kind,
        memory_total_bytes=size,
        memory_bandwidth_bytes_per_s=one.memory_bandwidth_bytes_per_s,
        flops_per_s=one.flops_per_s,
        compute_units=one.compute_units,
    )


def _check(file: Path, text: str, where: str, device: WishedDevice) -> None:
    """Ask the catalogue here already: the node that answers does not know the file's lines."""
    from exo.master.placement.machines import device_of
    from exo.shared.types.commands import Refusal

    found = device_of(device, NodeId("wished"), 0)
    if isinstance(found, Refusal):
        message = found.message.removesuffix(".")
        if "say how much memory" in message:
            message += " (memory_gib = N)"
        raise _wrong(file, text, where, message)


def _wrong(file: Path, text: str, where: str, why: str) -> ConfigurationError:
    line = line_of(text, where, why)
    place = f"--with {file}" if line is None else f"--with {file}, line {line}"
    named = f"{where}: " if where and "catalogue" not in why else ""
    return ConfigurationError(f"{place}: {named}{in_words(why, where)}")


def line_of(text: str, where: str, why: str = "") -> int | None:
    """Return the line of a field such as `devices[1].memory_gib`, counted from 1; None where it is not to be found."""
    unknown = re.search(r"unknown field `([^`]+)`", why)
    steps = re.findall(r"[^.\[\]]+|\[\d+\]", where)
    if unknown is not None:
        steps.append(unknown[1])
    table = re.match(r"devices\[(\d+)\]", where)
    lines = text.splitlines()
    start = 0
    if table is not None:
        heads = [number for number, line in enumerate(lines) if re.match(r"\s*\[\[\s*devices\s*\]\]", line)]
        if int(table[1]) >= len(heads):
            return _line_with(lines, "devices", 0)
        start = heads[int(table[1])]
    for name in reversed([one for one in steps if not one.startswith("[")]):
        found = _line_with(lines, name, start)
        if found is not None:
            return found
    return start + 1 if table is not None else None


def _line_with(lines: list[str], name: str, start: int) -> int | None:
    pattern = re.compile(rf"""\s*["']?{re.escape(name)}["']?\s*[=.]|\s*\[+\s*{re.escape(name)}\s*\]""")
    return next((place + 1 for place in range(start, len(lines)) if pattern.match(lines[place])), None)
