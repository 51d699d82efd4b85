"""Keys that may use some devices only: what they may chat with, place and delete. Pure."""

from typing import NoReturn

from msgspec.structs import replace

from exo.api.access_callers import Caller
from exo.api.access_gate import AccessRefused
from exo.shared.types.commands import Preview
from exo.shared.types.ids import DeviceId, InstanceId
from exo.shared.types.instances import Instance, PlacementRequest
from exo.shared.types.state import State

CODE = "device_not_allowed"


def may_use(caller: Caller, instance: Instance) -> bool:
    """Say whether all devices of an instance are the caller's to use."""
    allowed = caller.limits.device_ids
    return not allowed or instance.plan.is_within(allowed)


def require_instance(caller: Caller, instance: Instance) -> None:
    """Raise unless the caller may use the instance.

    Raises:
        AccessRefused: It runs on other devices, too.
    """
    if not may_use(caller, instance):
        used = {device_id for stage in instance.plan.stages for device_id in stage.device_ids}
        others = ", ".join(sorted(used.difference(caller.limits.device_ids)))
        _refuse(caller, f"{instance.model.model_id} ({instance.instance_id}) runs on {others}")


def narrowed(caller: Caller, state: State, request: PlacementRequest) -> PlacementRequest:
    """Return a request for devices that the caller may use: those it names, or all of them where it names none.

    Raises:
        AccessRefused: It names devices that the caller may not use, or nodes that have none of the caller's.
    """
    allowed = caller.limits.device_ids
    if not allowed:
        return request
    others = [one for one in request.device_ids if one not in allowed]
    if others:
        _refuse(caller, f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} asked for")
    without = [
        node_id
        for node_id in request.node_ids
        if not any(device_id.startswith(f"{node_id}/") for device_id in allowed)
    ]
    if without:
        _refuse(caller, f"no device of {', '.join(without)} is among these")
    if request.device_ids:
        return request
    # A device that is gone is no device that placement knows; without any it would look at all.
    known = {device.device_id for node in state.nodes.values() for device in node.identity.devices}
    there: tuple[DeviceId, ...] = tuple(one for one in allowed if one in known)
    if not there:
        _refuse(caller, f"{'this one is' if len(allowed) == 1 else 'these are'} not there now")
    return replace(request, device_ids=there)


def with_own_remedy(caller: Caller, preview: Preview, state: State) -> Preview:
    """Return a preview whose remedy is the caller's to take: no devices that it may not use, no instance on others."""
    remedy = preview.remedy
    if not caller.limits.device_ids or remedy is None:
        return preview
    is_within = remedy.request.device_ids and set(remedy.request.device_ids) <= set(caller.limits.device_ids)
    instances = (state.instances.get(InstanceId(one)) for one in remedy.instead)
    is_own = all(one is None or may_use(caller, one) for one in instances)
    return preview if is_within and is_own else replace(preview, remedy=None)


def _refuse(caller: Caller, found: str) -> NoReturn:
    raise AccessRefused(
        403,
        CODE,
        f"the key {caller.name} may use {', '.join(caller.limits.device_ids)} only, and {found}; use another key, "
        "or make one: exo key create --device DEVICE",
        who=caller,
    )
