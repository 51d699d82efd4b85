"""State x what runs here -> instructions. Pure; the loop carries them out."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.instances import Instance, StagePlan
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State


class RunnerKey(msgspec.Struct, frozen=True):
    """Names one stage process."""

    instance_id: InstanceId
    generation: int
    rank: int


RunnerPhase = Literal["started", "loaded", "linked", "ended"]


class LocalView(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of itself."""

    node_id: NodeId
    boot_id: str
    runners: Mapping[RunnerKey, RunnerPhase]


class StartRunner(msgspec.Struct, frozen=True):
    """Start the process of a stage."""

    key: RunnerKey
    instance: Instance
    stage: StagePlan


class LinkRunner(msgspec.Struct, frozen=True):
    """Tell a loaded stage where its neighbours listen."""

    key: RunnerKey
    addresses: tuple[HostPort, ...]


class StopRunner(msgspec.Struct, frozen=True):
    """End a process whose stage is no longer wanted."""

    key: RunnerKey


class ReportLost(msgspec.Struct, frozen=True):
    """The state says that a stage runs here, and none does."""

    key: RunnerKey


Instruction = StartRunner | LinkRunner | StopRunner | ReportLost


def plan(state: State, view: LocalView) -> list[Instruction]:
    """Return what to do next, in order: stop first, so that memory is free again, then start and link."""
    me = state.nodes.get(view.node_id)
    if me is None or me.identity.boot_id != view.boot_id:
        # Until the cluster knows of this boot, its record of our stages is that of an earlier one.
        return []
    wanted: dict[RunnerKey, tuple[Instance, StagePlan]] = {
        RunnerKey(instance_id, instance.generation, stage.rank): (instance, stage)
        for instance_id, instance in sorted(state.instances.items())
        for stage in instance.plan.stages
        if stage.node_id == view.node_id
    }
    stops: list[Instruction] = [StopRunner(key) for key in view.runners if key not in wanted]
    others: list[Instruction] = []
    for key, (instance, stage) in wanted.items():
        reported = instance.stages[stage.rank]
        running = view.runners.get(key)
        if running is None and reported.phase == "pending":
            others.append(StartRunner(key, instance, stage))
        elif running is None and reported.phase != "failed":
            others.append(ReportLost(key))
        elif running == "loaded":
            addresses = tuple(one.address for one in instance.stages if one.phase in {"loaded", "ready"})
            known = tuple(address for address in addresses if address is not None)
            if len(known) == len(instance.stages):
                others.append(LinkRunner(key, known))
    return stops + others
