"""What is told of devices that are there and are not used: each with its reason and the next step. Pure."""

from collections.abc import Mapping

from exo.gpu.inventory import Inventory, MissingBackend, RefusedDevice
from exo.shared.types.devices import Backend, DeviceRefusal, RefusalKind

TOLD_MAX = 64
"""Devices of one node: more would fill its telemetry."""
WRONG_STEP = (
    "undo overclocking, update its driver, restart the machine; if it still computes wrongly, it is broken"
)
_STEPS: Mapping[RefusalKind, str] = {
    "wrong": WRONG_STEP,
    "unchecked": "wait a moment; if it stays so, restart the machine",
    "hanging": "wait a moment; if it stays so, restart the machine",
    "duplicate": "nothing needs to be done: it is used under the other name",
    "unavailable": "exo doctor on that machine says more",
}
_KINDS: Mapping[Backend, str] = {
    "cuda": "NVIDIA GPUs",
    "rocm": "AMD GPUs",
    "intel": "Intel GPUs",
    "metal": "Apple GPU",
    "directml": "GPUs with DirectX 12",
    "tflite": "mobile GPU",
    "simulated": "simulated GPUs",
    "cpu": "processor",
}


def refusals(inventory: Inventory) -> tuple[DeviceRefusal, ...]:
    """Return what a look found and does not use. Drivers for devices that nothing speaks for are left out.

    Those that somebody has to do something about come first: the rest is cut off where there are very many.
    """
    found = [_of_device(one) for one in inventory.refused]
    found += [_of_backend(one) for one in inventory.missing if not one.is_absent]
    found.sort(
        key=lambda one: (one.kind == "duplicate", one.local_alias is not None and one.kind == "unchecked")
    )
    return tuple(found[:TOLD_MAX])


def _of_device(one: RefusedDevice) -> DeviceRefusal:
    # What a driver that hangs is told with ends with the step already.
    is_step_told = one.kind == "hanging" and "restart the machine" in one.reason
    return DeviceRefusal(
        backend=one.device.backend,
        kind=one.kind,
        name=one.device.name,
        local_alias=one.device.local_alias,
        reason=one.reason,
        next_step="" if is_step_told else _STEPS[one.kind],
    )


def _of_backend(one: MissingBackend) -> DeviceRefusal:
    kind: RefusalKind = "hanging" if one.is_late else "unavailable"
    step = f"install what is missing: {one.install_command}" if one.install_command else _STEPS[kind]
    return DeviceRefusal(
        backend=one.name, kind=kind, name=_KINDS[one.name], reason=one.reason, next_step=step
    )
