"""Commands: carried out here while this node is the master, sent to the master otherwise."""

import asyncio
from collections.abc import Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup
from loguru import logger

from exo.cluster.coordinator import CommandHandler
from exo.cluster.kernel import Kernel
from exo.cluster.wire import Answer
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.commands import Command, Reply


class Commanding:
    """Both sides of a command.

    Args:
        kernel: The node.
        clock: Monotonic seconds.
        settle_s: How long after the start a node without instances holds commands back: the cluster that it
            belongs to may be found in the next moment, and what it decided alone would keep the two apart.
    """

    def __init__(self, kernel: Kernel, clock: Callable[[], float], *, settle_s: float) -> None:
        self.handler: CommandHandler | None = None
        self._kernel = kernel
        self._situation = kernel.situation
        self._clock = clock
        self._settle_s = settle_s
        self._started_s: float | None = None
        self._tasks: TaskGroup | None = None
        self._running_count = 0

    @property
    def is_busy(self) -> bool:
        """A command is being carried out here."""
        return self._running_count > 0

    def start(self, tasks: TaskGroup) -> None:
        """Commands run in this task group from now on."""
        self._tasks = tasks
        self._started_s = self._clock()

    async def send(self, command: Command, *, timeout_s: float) -> Reply:
        """See Coordinator.send."""
        try:
            with anyio.fail_after(timeout_s):
                answer = await self._send(command)
                while self._situation.state.index < answer.index:
                    await self._kernel.board.changed.wait()
        except TimeoutError as error:
            what = "answered" if self._situation.leadership.master_node_id is not None else "could be reached"
            raise NoMasterError(
                f"no master {what} within {timeout_s:g} s; try again, or see `exo status`"
            ) from error
        if answer.reply is None:
            raise NoMasterError(answer.error or "the master gave no answer; try again")
        return answer.reply

    async def _send(self, command: Command) -> Answer:
        options = self._kernel.options
        without_since_s = self._clock()
        while True:
            leadership = self._situation.leadership
            if leadership.is_self and self.handler is not None:
                held_s = self._held_s()
                if held_s < 0.001:
                    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                    self.execute(command, partial(_settle, future))
                    return await future
                with anyio.move_on_after(held_s):
                    await self._kernel.board.changed.wait()
                without_since_s = self._clock()
            elif leadership.master_node_id is not None and not leadership.is_self:
                return await self._kernel.uplink.call(command)
            else:
                left_s = options.master_wait_s - (self._clock() - without_since_s)
                if left_s < 0.001:
                    raise NoMasterError(
                        f"no master could be reached for {options.master_wait_s:g} s; "
                        "start the node that was the master, or see `exo status`"
                    )
                with anyio.move_on_after(left_s):
                    await self._kernel.board.changed.wait()

    def _held_s(self) -> float:
        """Return how long to hold a command back at most, looking again at every change."""
        if self._started_s is None or not self._settle_s or self._situation.state.instances:
            return 0.0
        age_s = self._clock() - self._started_s
        if self._situation.is_joining:
            return 3 * self._settle_s - age_s
        return self._settle_s - age_s

    def execute(self, command: Command, answered: Callable[[Answer], None]) -> None:
        """Start to carry a command out as the master; `answered` is called with what came of it."""
        if self._tasks is None:
            answered(self._failure("the node is starting; try again"))
            return
        self._running_count += 1
        self._tasks.start_soon(self._execute, command, answered)

    async def _execute(self, command: Command, answered: Callable[[Answer], None]) -> None:
        try:
            if self.handler is None or not self._situation.leadership.is_self:
                answered(self._failure("the master has no one to carry commands out; try again"))
                return
            reply = await self.handler(command)
            answered(Answer(call_id=0, index=self._situation.state.index, reply=reply))
        except ExoError as error:
            answered(self._failure(error.message))
        except Exception as error:
            # Not the command itself: some hold what a token or a key is checked with.
            logger.exception("a command failed: {} {}", type(command).__name__, command.command_id)
            answered(self._failure(f"the master failed to carry it out: {error}"))
        except asyncio.CancelledError:
            answered(self._failure("the node stopped before the command was carried out"))
            raise
        finally:
            self._running_count -= 1

    def _failure(self, message: str) -> Answer:
        return Answer(call_id=0, index=self._situation.state.index, error=message)


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)
