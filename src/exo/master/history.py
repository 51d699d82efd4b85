"""What the log still tells of one instance: when it was placed, moved and deleted."""

import anyio
import msgspec

from exo.cluster.coordinator import Coordinator
from exo.master.errors import BasisUnreadableError
from exo.master.placement.basis import unpack
from exo.shared.types.commands import Decided
from exo.shared.types.events import InstanceCreated, InstanceDeleted, InstanceMoved, LogEntry
from exo.shared.types.ids import InstanceId
from exo.shared.types.instances import Instance, PlacementRequest

READ_TIME_MAX_S = 8.0
"""A log of millions of decisions is not read to its end for one question."""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The decisions about where an instance is, oldest first."""

    request: PlacementRequest | None = None
    """What the person asked for; None: nothing is known of the instance."""
    decisions: tuple[Decided, ...] = ()
    deleted_at: str | None = None
    notes: tuple[str, ...] = ()
    """What is not known, in words."""


async def read_history(coordinator: Coordinator, instance_id: InstanceId) -> History:
    """Read the log of this node, which leads, and put it together with what the state has of the instance."""
    state = coordinator.state
    present = state.instances.get(instance_id)
    found, notes = _Found(present), list[str]()
    oldest: int | None = None
    last = 0
    with anyio.move_on_after(READ_TIME_MAX_S) as reading:
        if state.index:
            async for item in coordinator.feed(_begin(present)):
                if not isinstance(item, LogEntry):
                    continue
                oldest = item.index if oldest is None else oldest
                last = item.index
                found.see(instance_id, item)
                if last >= state.index:
                    break
    if reading.cancelled_caught or (last < state.index and last):
        notes.append(f"the log was read up to decision {last} of {state.index} only")
    if oldest is not None and oldest > _begin(present) + 1:
        notes.append(
            f"the log begins with decision {oldest}: what was decided before was compacted into a snapshot, "
            "without when and why"
        )
    return found.history(tuple(notes))


def _begin(present: Instance | None) -> int:
    """Return behind which index to read: where it never moved, it was placed soon after its plan was solved."""
    if present is not None and present.moved_reason is None:
        return present.plan.state_index
    return 0


class _Found:
    def __init__(self, present: Instance | None) -> None:
        self._present = present
        self._request = None if present is None else present.request
        self._decisions: list[Decided] = []
        self._deleted_at: str | None = None

    def see(self, instance_id: InstanceId, entry: LogEntry) -> None:
        match entry.event:
            case InstanceCreated(instance=instance) if instance.instance_id == instance_id:
                self._request = instance.request
                self._decisions.append(
                    Decided(
                        kind="placed",
                        index=entry.index,
                        at=entry.at,
                        plan=instance.plan,
                        basis=instance.basis,
                    )
                )
            case InstanceMoved() as moved if moved.instance_id == instance_id:
                self._decisions.append(
                    Decided(
                        kind="moved",
                        index=entry.index,
                        at=entry.at,
                        reason=moved.reason,
                        plan=moved.plan,
                        basis=moved.basis,
                    )
                )
            case InstanceDeleted() if entry.event.instance_id == instance_id:
                self._deleted_at = entry.at
            case _:
                return

    def history(self, notes: tuple[str, ...]) -> History:
        present = self._present
        if present is not None and (not self._decisions or self._decisions[-1].plan != present.plan):
            # The log no longer has it; the state has what it was decided on all the same.
            kind = "placed" if present.moved_reason is None else "moved"
            self._decisions.append(
                Decided(kind=kind, reason=present.moved_reason, plan=present.plan, basis=present.basis)
            )
        request = self._request
        if request is None and self._decisions:
            # Of a deleted one only moves are left in the log.
            request = _asked(self._decisions[-1])
        return History(
            request=request,
            decisions=tuple(self._decisions),
            deleted_at=self._deleted_at if present is None else None,
            notes=notes,
        )


def _asked(decision: Decided) -> PlacementRequest | None:
    try:
        return unpack(decision.basis).request
    except BasisUnreadableError:
        return None
