"""What all who move instances rely on: one decision at a time, none while another leads, and no fault ends a master."""

import anyio
import anyio.lowlevel
import pytest

from exo.master.move_desk import MoveDesk
from exo.master.placement.ladder.errors import StoppedError
from exo.master.solver import Solver
from exo.shared.errors import NoMasterError
from exo.shared.types.ids import InstanceId, NodeId
from support.coordinator import MemoryCoordinator
from support.device_stories import machine
from support.states import cluster

INSTANCE = InstanceId("i")


def desk(deciding: anyio.Lock) -> MoveDesk:
    return MoveDesk(MemoryCoordinator(NodeId("a"), cluster(machine("a"))), Solver(), deciding)


async def test_nobody_else_decides_until_the_block_ends() -> None:
    deciding = anyio.Lock()
    async with desk(deciding).newest() as state:
        assert state is not None and deciding.locked()
    assert not deciding.locked()


async def test_nothing_is_decided_while_another_node_leads() -> None:
    coordinator = MemoryCoordinator(NodeId("a"), cluster(machine("a")))
    coordinator.has_master = False
    async with MoveDesk(coordinator, Solver(), anyio.Lock()).newest() as state:
        assert state is None


@pytest.mark.parametrize(
    "error", [NoMasterError("no master"), OSError("broken"), StoppedError(), KeyError("a fault of a solver")]
)
async def test_no_error_ends_the_master(error: Exception) -> None:
    with desk(anyio.Lock()).enduring(INSTANCE, "is not moved now", level="DEBUG"):
        raise error


async def test_being_cancelled_is_no_error() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        with desk(anyio.Lock()).enduring(INSTANCE, "is not moved now", level="DEBUG"):
            await anyio.lowlevel.checkpoint()
        pytest.fail("it went on")
    assert scope.cancelled_caught
