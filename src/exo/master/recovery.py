"""State x failure -> events: an instance with a broken stage starts again as a whole, while that can help.

Where a device or a node is lost it cannot help: then `recovery_ladder` says where the instance goes on.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from exo.cluster.attendance import NOT_BACK
from exo.cluster.membership import STOPPED
from exo.shared.serving import FAILURES_IN_A_ROW_MAX, are_nodes_connected, may_restart
from exo.shared.types.events import InstanceRestarted
from exo.shared.types.ids import DeviceId, InstanceId
from exo.shared.types.instances import Instance, StagePlan, StageState
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

LossKind = Literal["failed", "gone", "lost", "unseen", "stopped", "removed", "unfit"]
"""What is the matter with a device, or with its node.

`failed`: its node says so. `gone`: its node does not list it any more. `lost`: its node is not connected. `unseen`: its
node has not come back since the master changed. `stopped`: its node was stopped by a person. `removed`: its node is no
member any more. `unfit`: an instance that was moved there cannot be loaded."""

_AWAY: frozenset[LossKind] = frozenset(("lost", "unseen", "stopped"))


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """For how long at a stretch a device has to be out before anything moves because of it, in seconds."""

    failed_s: float = 3.0
    """Its node has seen it fail several times already, and does not trust it again at once."""
    gone_s: float = 20.0
    """A driver that is reloaded, or is slow while its node starts: nodes look for devices every ten seconds."""
    lost_s: float = 1.5
    """Its node's connection broke, or it was silent for so long that it was called disconnected. One that merely
    dials again is back within a fraction of this; a process that starts again takes about as long as this."""
    stopped_s: float = 0.5
    """Its node was stopped: it does not come back by itself. A cluster that is stopped as a whole is not moved."""

    def of(self, kind: LossKind) -> float:
        """Return the patience with a device, in seconds.

        One that a new master has not seen was waited for already. A node that was removed does not come back.
        """
        match kind:
            case "failed":
                return self.failed_s
            case "gone":
                return self.gone_s
            case "lost":
                return self.lost_s
            case "stopped":
                return self.stopped_s
            case "unseen" | "removed" | "unfit":
                return 0.0


class UnusableDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device of an instance that cannot be used."""

    device_id: DeviceId
    kind: LossKind
    cause: str
    """What is the matter with it, for people."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that an instance is placed on cannot be used."""

    instance_id: InstanceId
    generation: int
    devices: tuple[UnusableDevice, ...]

    @property
    def cause(self) -> str:
        """What is the matter, for people."""
        return "; ".join(dict.fromkeys(one.cause for one in self.devices))

    @property
    def is_absence(self) -> bool:
        """Whether all that is the matter is that nodes are away: then they may come back as they were."""
        return all(one.kind in _AWAY for one in self.devices)

    @property
    def unfit(self) -> frozenset[DeviceId]:
        """Devices on which the instance was tried in vain."""
        return frozenset(one.device_id for one in self.devices if one.kind == "unfit")


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
    """Say which of an instance's devices cannot be used; None where all can, or where moving cannot help.

    It cannot where a stage failed for good for a reason of its own, such as a broken file: a person has to look.
    Only an instance that served elsewhere before, and was moved to where it cannot be loaded, is moved once more.
    """
    pairs = tuple(zip(instance.plan.stages, instance.stages, strict=True))
    if instance.moved_reason is None and any(
        stage.is_permanent and plan.node_id in state.nodes for plan, stage in pairs
    ):
        return None
    devices = tuple(
        found
        for plan, stage in pairs
        for device_id in plan.device_ids
        if (found := _unusable(state, instance, plan, stage, device_id)) is not None
    )
    if not devices:
        return None
    return Trouble(instance_id=instance.instance_id, generation=instance.generation, devices=devices)


def unusable_since(
    before: Mapping[DeviceId, float], found: Collection[Trouble], now_s: float
) -> dict[DeviceId, float]:
    """Return since when each device that troubles an instance has done so without a break.

    Args:
        before: What this returned for the state before.
        found: What is the matter now.
        now_s: Present time, monotonic.
    """
    return {
        device.device_id: before.get(device.device_id, now_s)
        for trouble in found
        for device in trouble.devices
    }


def due_s(trouble: Trouble, since_s: Mapping[DeviceId, float], patience: Patience) -> float | None:
    """Return from when on the instance is to be moved; None where none of its devices is known to be out yet."""
    ends_s = [
        since_s[one.device_id] + patience.of(one.kind) for one in trouble.devices if one.device_id in since_s
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


def _unusable(
    state: State, instance: Instance, plan: StagePlan, stage: StageState, device_id: DeviceId
) -> UnusableDevice | None:
    node = state.nodes.get(plan.node_id)
    if node is None:
        cause = f"the node {plan.node_id} was removed from the cluster"
        return UnusableDevice(device_id=device_id, kind="removed", cause=cause)
    if not node.is_connected:
        return UnusableDevice(device_id=device_id, kind=_absence(node), cause=_why_away(node))
    name = node.identity.name
    device = next((one for one in node.identity.devices if one.device_id == device_id), None)
    if device is None:
        alias = device_id.removeprefix(f"{plan.node_id}/")
        return UnusableDevice(device_id=device_id, kind="gone", cause=f"{alias} of {name} is gone")
    live = state.live.get(plan.node_id)
    reading = live.devices.get(device_id) if live is not None else None
    if reading is not None and reading.health == "failed":
        cause = f"{device.local_alias} of {name} has failed: {reading.health_reason or 'unknown reason'}"
        return UnusableDevice(device_id=device_id, kind="failed", cause=cause)
    if instance.moved_reason is not None and stage.phase == "failed" and _is_given_up(instance, stage):
        cause = (
            f"it could not be loaded on {device.local_alias} of {name}: {stage.reason or 'unknown reason'}"
        )
        return UnusableDevice(device_id=device_id, kind="unfit", cause=cause)
    return None


def _is_given_up(instance: Instance, stage: StageState) -> bool:
    """Say whether a stage that failed is not started again where it is."""
    return stage.is_permanent or instance.failures_in_a_row >= FAILURES_IN_A_ROW_MAX


def _absence(node: Node) -> LossKind:
    if node.left_reason == STOPPED:
        return "stopped"
    return "unseen" if node.left_reason == NOT_BACK else "lost"


def _why_away(node: Node) -> str:
    name = node.identity.name
    if node.left_reason == STOPPED:
        return f"{name} was stopped"
    return f"{name} is not connected ({node.left_reason or 'unknown reason'})"
