"""The thin loop of the master: takes commands, has them solved aside, re-checks, commits; mends what broke."""

import time
from collections.abc import Callable

import anyio
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.master.admission import Admission
from exo.master.authority import Authority
from exo.master.decide import PLAN_OUTDATED, decide, existing_instance
from exo.master.migration import Habits
from exo.master.migration_loop import Migrator
from exo.master.move_desk import MoveDesk
from exo.master.questions import answer_question
from exo.master.recovery import restarts
from exo.master.recovery_loop import Mover
from exo.master.solver import Placement, Solver
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import (
    Command,
    CommitPlan,
    Deleted,
    DeleteInstance,
    ExplainInstance,
    Placed,
    PlaceInstance,
    PlanPlacement,
    PreviewPlacements,
    Refusal,
    Reply,
)
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.state import State

_SOLVES_MAX = 4
_RESTART_DELAY_S = 0.5
_RESTART_DELAY_MAX_S = 8.0
_FORMER_MASTER_S = 3.5
"""So long a new master waits for the one before it, until that is called disconnected or is back. Meanwhile its stages
are thought to be gone with it: the group is not started again in vain."""


class Master:
    """Runs on every node; does something only where the coordinator says that this node leads.

    Args:
        coordinator: Where decisions are committed.
        solver: Places models.
        new_id: Ids of instances.
        authority: Signs the certificates of nodes; None where all nodes are of one host.
        now_s: The time in Unix seconds: tokens and keys run out.
        migration: When healthy instances go on elsewhere; None: never.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        solver: Solver,
        new_id: Callable[[], str],
        *,
        authority: Authority | None = None,
        now_s: Callable[[], float] = time.time,
        migration: Habits | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._solver = solver
        self._new_id = new_id
        self._deciding = anyio.Lock()
        desk = MoveDesk(coordinator, solver, self._deciding)
        self._mover = Mover(desk)
        self._migrator = None if migration is None else Migrator(desk, migration)
        self._admission = Admission(coordinator, self._deciding, authority, now_s)
        coordinator.set_command_handler(self.handle)

    async def run(self) -> None:
        """Restart or move instances while this node leads; never returns."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._mover.run)
            if self._migrator is not None:
                tasks.start_soon(self._migrator.run)
            waiting: set[tuple[InstanceId, int]] = set()
            former: NodeId | None = None
            until_s: float | None = None
            async for state in self._coordinator.changes():
                if not self._coordinator.leadership.is_self:
                    former, until_s = state.master_node_id, None
                    continue
                if until_s is None:
                    until_s = anyio.current_time() + _FORMER_MASTER_S
                for event in restarts(state):
                    key = (event.instance_id, event.generation)
                    if key not in waiting:
                        waiting.add(key)
                        stages = state.instances[event.instance_id].plan.stages
                        is_of_former = any(stage.node_id == former for stage in stages)
                        from_s = until_s if is_of_former else 0.0
                        tasks.start_soon(self._restart, *key, from_s, waiting)

    async def handle(self, command: Command) -> Reply:
        """Carry one command out."""
        match command:
            case PlaceInstance():
                return await self._place(command)
            case DeleteInstance():
                return await self._delete(command)
            case PreviewPlacements() | PlanPlacement() | ExplainInstance():
                return await answer_question(self._coordinator, self._solver, command)
            case _:
                return await self._admission.handle(command)

    async def _place(self, command: PlaceInstance) -> Reply:
        refusal: Refusal | None = None
        for _ in range(_SOLVES_MAX):
            solved = await self._solve(self._coordinator.state, command)
            if not isinstance(solved, Placement):
                return solved
            # Decided and committed under one lock, so that two plans never take the same memory.
            async with self._deciding:
                state = self._coordinator.state
                reused = self._reused(state, command)
                if reused is not None:
                    return reused
                commit = CommitPlan(
                    command_id=command.command_id,
                    instance_id=InstanceId(self._new_id()),
                    request=command.request,
                    plan=solved.plan,
                    basis=solved.basis,
                )
                events = decide(state, commit)
                if not isinstance(events, Refusal):
                    index = await self._coordinator.propose(events, cause_id=command.command_id)
                    instance = self._coordinator.state.instances.get(commit.instance_id)
                    if instance is None:
                        return _deleted_meanwhile(commit.instance_id)
                    logger.info(
                        "placed {} as {} in {} stage(s)",
                        command.request.model_id,
                        commit.instance_id,
                        len(instance.stages),
                    )
                    return Placed(instance=instance, index=index)
            if events.code != PLAN_OUTDATED:
                return events
            refusal = events
        assert refusal is not None
        return refusal

    async def _solve(self, state: State, command: PlaceInstance) -> Placement | Reply:
        return self._reused(state, command) or await self._solver.place(state, command.request)

    def _reused(self, state: State, command: PlaceInstance) -> Placed | None:
        if not command.reuse_existing:
            return None
        instance = existing_instance(state, command.request.model_id, command.request.device_ids)
        return None if instance is None else Placed(instance=instance, index=state.index, is_new=False)

    async def _delete(self, command: DeleteInstance) -> Reply:
        async with self._deciding:
            events = decide(self._coordinator.state, command)
            if isinstance(events, Refusal):
                return events
            index = await self._coordinator.propose(events, cause_id=command.command_id)
            return Deleted(instance_id=command.instance_id, index=index)

    async def _restart(
        self,
        instance_id: InstanceId,
        generation: int,
        from_s: float,
        waiting: set[tuple[InstanceId, int]],
    ) -> None:
        """Restart after a pause that grows with the failures, not before `from_s`, if it is still called for."""
        try:
            instance = self._coordinator.state.instances.get(instance_id)
            failures = instance.failures_in_a_row if instance is not None else 0
            pause_s = min(_RESTART_DELAY_MAX_S, _RESTART_DELAY_S * 2**failures)
            await anyio.sleep(max(pause_s, from_s - anyio.current_time()))
            async with self._deciding:
                if not self._coordinator.leadership.is_self:
                    return
                for event in restarts(self._coordinator.state):
                    if (event.instance_id, event.generation) == (instance_id, generation):
                        logger.info("restarting {}: {}", instance_id, event.reason)
                        cause = self._coordinator.state.instances[instance_id].created_by
                        await self._coordinator.propose([event], cause_id=cause)
        except NoMasterError as error:
            # Whoever leads next sees the same broken instance.
            logger.warning("{} is not restarted now: {}", instance_id, error.message)
        finally:
            waiting.discard((instance_id, generation))


def _deleted_meanwhile(instance_id: InstanceId) -> Refusal:
    return Refusal(
        status=409, code="instance_deleted", message=f"The instance {instance_id} was deleted at once."
    )
