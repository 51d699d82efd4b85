"""The thin loop that has instances go on elsewhere when a device or node is lost: has it solved aside, commits."""

import math

import anyio
import msgspec
from loguru import logger

from exo.master.move_desk import MoveDesk
from exo.master.recovery import Patience, Trouble, due_s, troubles, unusable_since
from exo.master.recovery_ladder import (
    Attempt,
    Surroundings,
    attempts,
    decide_move,
    decide_stranding,
    decide_waiting,
    obstacle,
    present_trouble,
    surroundings,
    why_refused,
    without,
)
from exo.master.solver import Placement
from exo.shared.types.events import InstanceMoved, InstanceStranded, InstanceWaits
from exo.shared.types.ids import DeviceId, InstanceId
from exo.shared.types.state import State

RETRY_S = 30.0
"""Where there was nowhere to go: asked again after so long at the latest, since memory may have become free."""
RETRY_FIRST_S = 2.0
"""And after so long the first time, then twice as long each time: processes that have just ended still show in the
last readings."""
PAUSE_S = 1.0
"""Between two tries for one instance, however often the cluster changes."""
PAUSE_MAX_S = 60.0
"""The pause doubles with each move after which the instance did not serve, up to this."""
MOVES_IN_VAIN_MAX = 3
"""So often an instance that cannot be loaded where it was moved is moved once more; then a person has to look."""


class _Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the last try to move an instance."""

    at_s: float
    stuck_on: Surroundings | None = None
    """On which there was nowhere to go; None: it was moved or disturbed."""
    retry_s: float = RETRY_FIRST_S


class _Vain(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance has been through since it last served."""

    moves: int = 0
    avoid: frozenset[DeviceId] = frozenset()
    """Where it could not be loaded."""


class Mover:
    """Moves one instance after the other, while this node leads.

    Args:
        desk: See there.
        patience: How long a device has to be out.
        retry_s: See `RETRY_S`.
    """

    def __init__(self, desk: MoveDesk, *, patience: Patience | None = None, retry_s: float = RETRY_S) -> None:
        self._desk = desk
        self._patience = patience or Patience()
        self._retry_s = retry_s
        self._since_s: dict[DeviceId, float] = {}
        self._tried: dict[InstanceId, _Tried] = {}
        self._vain: dict[InstanceId, _Vain] = {}
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Move instances until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            while True:
                changed = self._changed
                next_s = await self._mend()
                with anyio.move_on_after(next_s - self._desk.clock()):
                    await changed.wait()

    async def _watch(self) -> None:
        """Note since when devices are out, also while a plan is being made; nothing while another node leads."""
        async for state in self._desk.coordinator.changes():
            before = self._since_s
            is_leading = self._desk.is_leading
            self._since_s = unusable_since(before, troubles(state), self._desk.clock()) if is_leading else {}
            for instance_id in list(self._vain):
                instance = state.instances.get(instance_id)
                if instance is None or instance.status == "ready":
                    del self._vain[instance_id]
            if before or self._since_s:
                self._changed.set()
                self._changed = anyio.Event()

    async def _mend(self) -> float:
        """Try to move the first instance for which it is time; return when to look again."""
        state = self._desk.state
        found = troubles(state)
        self._tried = {
            one.instance_id: self._tried[one.instance_id] for one in found if one.instance_id in self._tried
        }
        if not found:
            return math.inf
        around = surroundings(state)
        # The one that has waited longest comes first: one that is tried often never holds the others up.
        start_s, instance_id = min((self._start_s(one, around), one.instance_id) for one in found)
        if start_s > self._desk.clock():
            return start_s
        await self._move(instance_id)
        return self._desk.clock()

    def _start_s(self, trouble: Trouble, around: Surroundings) -> float:
        """Return from when on to try to move an instance; it may be past."""
        start_s = due_s(trouble, self._since_s, self._patience)
        if start_s is None:
            return math.inf  # It was not noted yet: that wakes this loop.
        vain = self._vain.get(trouble.instance_id, _Vain())
        if trouble.unfit and vain.moves >= MOVES_IN_VAIN_MAX:
            return math.inf
        tried = self._tried.get(trouble.instance_id)
        if tried is None:
            return start_s
        pause_s = min(PAUSE_MAX_S, PAUSE_S * 2**vain.moves)
        return max(start_s, tried.at_s + (tried.retry_s if tried.stuck_on == around else pause_s))

    def _is_due(self, trouble: Trouble) -> bool:
        """Say whether the devices have not come back meanwhile."""
        start_s = due_s(trouble, self._since_s, self._patience)
        return start_s is not None and start_s <= self._desk.clock()

    async def _move(self, instance_id: InstanceId) -> None:
        before = self._tried.get(instance_id)
        stuck_on: Surroundings | None = None
        with self._desk.enduring(instance_id, "is not moved now", level="WARNING"):
            stuck_on = await self._solve_and_commit(instance_id)
        is_stuck_still = before is not None and before.stuck_on is not None and before.stuck_on == stuck_on
        retry_s = min(self._retry_s, 2 * before.retry_s) if before and is_stuck_still else RETRY_FIRST_S
        self._tried[instance_id] = _Tried(at_s=self._desk.clock(), stuck_on=stuck_on, retry_s=retry_s)

    async def _solve_and_commit(self, instance_id: InstanceId) -> Surroundings | None:
        """Move an instance, or say that it cannot go on; return on what there was nowhere to go."""
        solved_on = self._desk.state
        trouble = present_trouble(solved_on, instance_id)
        if trouble is None:
            return None
        vain = self._vain.get(instance_id, _Vain())
        avoid = vain.avoid | trouble.unfit
        answer, refused = await self._solve(solved_on, instance_id, avoid)
        # Decided and committed under one lock, so that two plans never take the same memory.
        async with self._desk.newest() as state:
            trouble = None if state is None else present_trouble(state, instance_id)
            if state is None or trouble is None or not self._is_due(trouble):
                return None
            event: InstanceMoved | InstanceStranded | InstanceWaits | None
            if answer is not None:
                attempt, found = answer
                event = decide_move(state, trouble, attempt, found.plan, refused, basis=found.basis)
            elif surroundings(state) == surroundings(solved_on):
                decide_stuck = decide_waiting if trouble.is_absence else decide_stranding
                event = decide_stuck(state, trouble, refused)
            else:
                return None
            if event is not None:
                await self._desk.commit(event, state.instances[instance_id])
                logger.warning("{}: {}", instance_id, event.reason)
            if isinstance(event, InstanceMoved):
                self._vain[instance_id] = _Vain(moves=vain.moves + 1, avoid=avoid)
            return surroundings(self._desk.state) if answer is None else None

    async def _solve(
        self, state: State, instance_id: InstanceId, avoid: frozenset[DeviceId]
    ) -> tuple[tuple[Attempt, Placement] | None, list[str]]:
        """Return the highest rung that can be had with its plan, and why those above could not."""
        instance, freed = state.instances[instance_id], without(state, instance_id)
        why_none = obstacle(freed, instance)
        if why_none is not None:
            return None, [why_none]
        refused: list[str] = []
        for attempt in attempts(freed, instance, avoid):
            answer = await self._desk.solver.place(freed, attempt.request)
            if isinstance(answer, Placement):
                kept = await self._desk.keep(freed, instance, attempt.request, answer)
                return (attempt, msgspec.structs.replace(answer, plan=kept.plan)), refused
            refused.append(why_refused(attempt, answer))
        return None, refused
