"""State x failure -> events: an instance with a broken stage starts again as a whole, while that can help.

Where a device failed or is gone it cannot help: then `recovery_ladder` says where the instance goes on.
"""

from collections.abc import Mapping

import msgspec

from exo.shared.serving import are_nodes_connected, may_restart
from exo.shared.types.events import InstanceRestarted
from exo.shared.types.ids import DeviceId, InstanceId
from exo.shared.types.instances import Instance, StagePlan
from exo.shared.types.state import State


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """For how long at a stretch a device has to be out before anything moves because of it, in seconds."""

    failed_s: float = 3.0
    """Its node has seen it fail several times already, and does not trust it again at once."""
    gone_s: float = 20.0
    """A driver that is reloaded, or is slow while its node starts: nodes look for devices every ten seconds."""


class UnusableDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device of an instance that failed or is gone."""

    device_id: DeviceId
    is_gone: bool
    cause: str
    """What is the matter with it, for people."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that an instance is placed on cannot be used, though their nodes are there."""

    instance_id: InstanceId
    generation: int
    devices: tuple[UnusableDevice, ...]

    @property
    def cause(self) -> str:
        """What is the matter, for people."""
        return "; ".join(one.cause for one in self.devices)


def restarts(state: State) -> list[InstanceRestarted]:
    """Return a restart for every instance whose group of stages is broken and may be whole again.

    A pipeline's processes are thrown away together: a stage that failed, or one that its node lost by starting
    anew, breaks the group. Nothing is restarted while one of its nodes is away, or one of its devices cannot be
    used, since that could not work.
    """
    return [
        InstanceRestarted(instance_id=instance_id, generation=instance.generation + 1, reason=reason)
        for instance_id, instance in sorted(state.instances.items())
        if (reason := _why_restart(state, instance)) is not None
    ]


def troubles(state: State) -> list[Trouble]:
    """Return what is the matter with the instances that ought to go on elsewhere."""
    found = (trouble_of(state, instance) for _, instance in sorted(state.instances.items()))
    return [one for one in found if one is not None]


def trouble_of(state: State, instance: Instance) -> Trouble | None:
    """Say which of an instance's devices failed or are gone; None where none is, or where moving cannot help.

    It cannot while one of its nodes is away (nobody knows how the devices there are), nor where a stage failed for
    good for a reason of its own.
    """
    if not _is_mendable(state, instance):
        return None
    devices = tuple(
        found
        for stage in instance.plan.stages
        for device_id in stage.device_ids
        if (found := _unusable(state, stage, device_id)) is not None
    )
    if not devices:
        return None
    return Trouble(instance_id=instance.instance_id, generation=instance.generation, devices=devices)


def unusable_since(before: Mapping[DeviceId, float], state: State, now_s: float) -> dict[DeviceId, float]:
    """Return since when each device that troubles an instance has done so without a break.

    Args:
        before: What this returned for the state before.
        state: The state now.
        now_s: Present time, monotonic.
    """
    return {
        device.device_id: before.get(device.device_id, now_s)
        for trouble in troubles(state)
        for device in trouble.devices
    }


def due_s(trouble: Trouble, since_s: Mapping[DeviceId, float], patience: Patience) -> float | None:
    """Return from when on the instance is to be moved; None where none of its devices is known to be out yet."""
    ends_s = [
        since_s[one.device_id] + (patience.gone_s if one.is_gone else patience.failed_s)
        for one in trouble.devices
        if one.device_id in since_s
    ]
    return min(ends_s, default=None)


def _why_restart(state: State, instance: Instance) -> str | None:
    is_stranded = instance.stranded_reason is not None
    reason = "its devices can be used again" if is_stranded else _why_broken(instance)
    may = _is_mendable(state, instance) if is_stranded else may_restart(state, instance)
    return reason if reason is not None and may and trouble_of(state, instance) is None else None


def _is_mendable(state: State, instance: Instance) -> bool:
    return not any(stage.is_permanent for stage in instance.stages) and are_nodes_connected(state, instance)


def _why_broken(instance: Instance) -> str | None:
    phases = [stage.phase for stage in instance.stages]
    if "failed" in phases:
        return instance.reason or "a stage failed"
    is_linked = "ready" in phases
    if is_linked and any(phase in {"pending", "starting", "loading"} for phase in phases):
        return "a stage of the group was lost when its node started anew"
    return None


def _unusable(state: State, stage: StagePlan, device_id: DeviceId) -> UnusableDevice | None:
    identity = state.nodes[stage.node_id].identity
    device = next((one for one in identity.devices if one.device_id == device_id), None)
    if device is None:
        name = device_id.removeprefix(f"{stage.node_id}/")
        return UnusableDevice(device_id=device_id, is_gone=True, cause=f"{name} of {identity.name} is gone")
    live = state.live.get(stage.node_id)
    reading = live.devices.get(device_id) if live is not None else None
    if reading is None or reading.health != "failed":
        return None
    cause = f"{device.local_alias} of {identity.name} has failed: {reading.health_reason or 'unknown reason'}"
    return UnusableDevice(device_id=device_id, is_gone=False, cause=cause)
