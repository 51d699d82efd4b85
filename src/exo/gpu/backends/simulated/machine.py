"""What a file says of a simulated machine: its devices, what they carry when, and what befalls them."""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from exo.gpu.plausibility import NUMERIC_FIELDS
from exo.shared.errors import ConfigurationError
from exo.shared.types.devices import MemoryKind

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Size = Annotated[int, msgspec.Meta(gt=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Heat(_Part, frozen=True, kw_only=True):
    """One lump of heat: `capacity dT/dt = power - conductance (T - ambient)`."""

    capacity_joules_per_c: Positive
    conductance_watts_per_c: Positive
    ambient_c: float = 25.0
    start_c: float | None = None
    """None: as warm as it gets when idle."""
    throttle_c: Positive


class Power(_Part, frozen=True, kw_only=True):
    """Watts, from idle to fully busy."""

    idle_watts: NotNegative
    limit_watts: Positive


class Battery(_Part, frozen=True, kw_only=True):
    """What the device runs from when it is not plugged in."""

    capacity_watt_hours: Positive
    start_percent: Percent = 100.0
    is_plugged_in: bool = False


class LoadStep(_Part, frozen=True, kw_only=True):
    """What the device carries from a time on, until the next step."""

    at_s: NotNegative
    utilization_percent: Percent
    memory_used_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


class _Fault(_Part, frozen=True, kw_only=True, tag_field="kind"):
    at_s: NotNegative
    until_s: float | None = None
    """None: for good."""

    def is_on(self, at_s: float) -> bool:
        """Say whether it lasts at a time."""
        return self.at_s <= at_s and (self.until_s is None or at_s < self.until_s)


class Lost(_Fault, frozen=True, kw_only=True, tag="lost"):
    """The device is listed and no longer answers. What it held is gone."""


class Vanished(_Fault, frozen=True, kw_only=True, tag="vanished"):
    """The device is not even listed. What it held is gone."""


class Hang(_Fault, frozen=True, kw_only=True, tag="hang"):
    """Calls do not return."""


class OutOfMemory(_Fault, frozen=True, kw_only=True, tag="out_of_memory"):
    """Nothing can be allocated."""


class WrongAnswers(_Fault, frozen=True, kw_only=True, tag="wrong_answers"):
    """Products are wrong in their first element."""


class Nonsense(_Fault, frozen=True, kw_only=True, tag="nonsense"):
    """The device reports these values, by names of `DeviceReading`."""

    values: dict[str, float]


class Xid(_Fault, frozen=True, kw_only=True, tag="xid"):
    """The driver reports a fault."""

    code: int
    message: Text
    is_fatal: bool = False


class Ecc(_Fault, frozen=True, kw_only=True, tag="ecc"):
    """Memory errors are counted."""

    corrected_count: Annotated[int, msgspec.Meta(ge=0)] = 0
    uncorrected_count: Annotated[int, msgspec.Meta(ge=0)] = 0


Fault = Lost | Vanished | Hang | OutOfMemory | WrongAnswers | Nonsense | Xid | Ecc


class SimulatedDevice(_Part, frozen=True, kw_only=True):
    """One device. What the file does not say is unknown, as with a real one."""

    name: Text
    vendor: Text
    memory_kind: MemoryKind
    memory_total_bytes: Size
    uuid: Text | None = None
    pci_address: Text | None = None
    compute_units: Size | None = None
    compute_capability: Text | None = None
    clock_max_mhz: Positive | None = None
    memory_bandwidth_bytes_per_s: Positive | None = None
    flops_per_s: Positive | None = None
    driver_version: Text | None = None
    power: Power | None = None
    heat: Heat | None = None
    battery: Battery | None = None
    load: tuple[LoadStep, ...] = ()
    load_period_s: Positive | None = None
    """The steps begin again after so long; None: the last one stays."""
    has_ecc: bool = False
    call_latency_ms: NotNegative = 0.0
    """How long each call of the driver takes."""
    faults: tuple[Fault, ...] = ()


class SimulatedMachine(_Part, frozen=True, kw_only=True):
    """A machine and where its figures are from."""

    name: Text
    sources: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    devices: tuple[SimulatedDevice, ...]


def load_machine(file: Path) -> SimulatedMachine:
    """Read a machine from a TOML or JSON file.

    Raises:
        ConfigurationError: It cannot be read, or a field of it cannot be used; the message names both.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the simulated machine {file}: {error.strerror or error}; "
            "set EXO_GPU_BACKEND=simulated:FILE to a TOML or JSON file that describes one"
        ) from error
    try:
        if file.suffix == ".json":
            machine = msgspec.json.decode(content, type=SimulatedMachine)
        else:
            machine = msgspec.convert(tomllib.loads(content.decode("utf-8")), SimulatedMachine)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise _unusable(file, where.rstrip("`").lstrip(".") or "the file", what) from error
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _unusable(file, "the file", str(error)) from error
    for index, device in enumerate(machine.devices):
        _check(file, f"devices[{index}]", device)
    return machine


def _check(file: Path, where: str, device: SimulatedDevice) -> None:
    if device.heat is not None and device.power is None:
        raise _unusable(file, f"{where}.power", "is missing: what is heated needs watts")
    if device.heat is not None and device.heat.throttle_c <= device.heat.ambient_c:
        raise _unusable(file, f"{where}.heat.throttle_c", "is not above ambient_c")
    if device.battery is not None and device.power is None:
        raise _unusable(file, f"{where}.power", "is missing: a battery needs watts")
    if device.power is not None and device.power.limit_watts < device.power.idle_watts:
        raise _unusable(file, f"{where}.power.limit_watts", "is below idle_watts")
    times = [step.at_s for step in device.load]
    if times != sorted(set(times)):
        raise _unusable(file, f"{where}.load", "has steps whose at_s do not rise")
    if device.load_period_s is not None and times and times[-1] >= device.load_period_s:
        raise _unusable(file, f"{where}.load_period_s", f"ends before the last step at {times[-1]:g} s")
    for number, step in enumerate(device.load):
        if step.memory_used_bytes > device.memory_total_bytes:
            raise _unusable(file, f"{where}.load[{number}].memory_used_bytes", "is more than the device has")
    for number, fault in enumerate(device.faults):
        if fault.until_s is not None and fault.until_s <= fault.at_s:
            raise _unusable(file, f"{where}.faults[{number}].until_s", "is not after at_s")
        if isinstance(fault, Nonsense):
            unknown = sorted(set(fault.values) - NUMERIC_FIELDS)
            if unknown:
                raise _unusable(
                    file,
                    f"{where}.faults[{number}].values.{unknown[0]}",
                    "is no number that a device reports",
                )


def _unusable(file: Path, field: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the simulated machine {file} cannot be used: {field}: {why}; mend it, or unset EXO_GPU_BACKEND"
    )
