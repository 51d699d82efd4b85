"""What is asked of the cluster from here, beside decisions: a confirmed read, a history begun anew, leave to stop."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence

import anyio

from exo.cluster.kernel import Kernel
from exo.cluster.membership import STOPPED
from exo.cluster.situation import Situation
from exo.shared.errors import ConfigurationError, NoMasterError
from exo.shared.types.events import NodeDisconnected
from exo.shared.types.ids import NodeId


class Asking:
    """Each method starts something in the kernel and waits until it shows, or for so long that it never will."""

    def __init__(self, kernel: Kernel, propose: Callable[..., Awaitable[int]]) -> None:
        self._propose = propose
        self._kernel = kernel
        self._situation = kernel.situation
        self._options = kernel.options

    async def confirm(self, *, timeout_s: float) -> int:
        """See Coordinator.confirm."""
        try:
            with anyio.fail_after(timeout_s):
                index = await self._confirmed()
                while self._situation.state.index < index:
                    await self._kernel.board.changed.wait()
        except TimeoutError as error:
            raise NoMasterError(
                f"no majority confirmed within {timeout_s:g} s that there is a master; see `exo status`"
            ) from error
        return index

    async def _confirmed(self) -> int:
        if self._situation.standing == "leader":
            return await self._kernel.confirm()
        if self._kernel.uplink.master is None:
            raise NoMasterError("no master can be reached; try again, or see `exo status`")
        answer = await self._kernel.uplink.confirm()
        if answer.error is not None:
            raise NoMasterError(answer.error)
        return answer.index

    async def forget(self, node_ids: Sequence[NodeId]) -> int:
        """See EmbeddedCoordinator.forget."""
        fault = forget_fault(self._situation, node_ids)
        if fault is not None:
            raise ConfigurationError(fault)
        self._kernel.force_history(node_ids)
        with anyio.move_on_after(self._options.answer_timeout_s):
            while not self._situation.is_open:
                await self._kernel.board.changed.wait()
        if not self._situation.is_open:
            raise NoMasterError("the history could not be begun anew; see the log of this node")
        return self._situation.state.index

    async def leave(self) -> None:
        """See EmbeddedCoordinator.leave."""
        situation = self._situation
        situation.is_leaving = True
        nodes, own = situation.state.nodes, situation.node_id
        has_others = any(key != own and node.is_connected for key, node in nodes.items())
        if not has_others or not situation.is_member:
            return
        with anyio.move_on_after(self._options.leave_s):
            if situation.standing == "leader":
                await self._propose(
                    [NodeDisconnected(node_id=own, reason=STOPPED)], cause_id=f"leave-{situation.boot_id}"
                )
            else:
                await self._say_farewell()
            while situation.is_agreeing or situation.standing == "leader":
                await self._kernel.board.changed.wait()

    async def _say_farewell(self) -> None:
        """Tell the master that this node stops, and wait until it knows.

        A connection that ends with what was last written to it would look as if this node was lost. What is sent is
        read in order: whoever answers what came behind the farewell has read that.
        """
        uplink = self._kernel.uplink
        if uplink.master is not None:
            uplink.say_farewell()
            with contextlib.suppress(NoMasterError):
                await uplink.confirm()


def forget_fault(situation: Situation, node_ids: Sequence[NodeId]) -> str | None:
    """Return why these voters cannot be given up from here, or None when they can."""
    if situation.leadership.master_node_id is not None:
        return "there is a master, so nobody has to be forgotten by force; use `exo node remove NODE`"
    voters, own = situation.voters.members, situation.node_id
    if not situation.is_agreeing:
        return (
            "this node keeps no copy of the log; run this on one of "
            f"{', '.join(sorted(voters)) or 'the voters'}"
        )
    others = voters - {own}
    if frozenset(node_ids) - {own} != others:
        return f"name every voter that is gone, and nobody else: {', '.join(sorted(others))}"
    return None
