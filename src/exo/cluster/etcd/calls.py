"""Commands: carried out here while this node is the master, sent to the master otherwise."""

import asyncio
from collections.abc import Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup
from loguru import logger

from exo.cluster.coordinator import CommandHandler
from exo.cluster.etcd.member import Member
from exo.cluster.wire import Answer
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.commands import Command, Reply


class Calls:
    """Both sides of a command."""

    def __init__(self, member: Member) -> None:
        self.handler: CommandHandler | None = None
        self._member = member
        self._tasks: TaskGroup | None = None

    def start(self, tasks: TaskGroup) -> None:
        """Commands run in this task group from now on."""
        self._tasks = tasks

    async def send(self, command: Command, *, timeout_s: float) -> Reply:
        """See Coordinator.send."""
        try:
            with anyio.fail_after(timeout_s):
                answer = await self._send(command)
                await self._member.reached(answer.index)
        except TimeoutError as error:
            if self._member.leadership.master_node_id is None:
                raise self._member.no_master(timeout_s) from error
            raise NoMasterError(
                f"no master answered within {timeout_s:g} s; try again, or see `exo status`"
            ) from error
        if answer.reply is None:
            raise NoMasterError(answer.error or "the master gave no answer; try again")
        return answer.reply

    async def _send(self, command: Command) -> Answer:
        member = self._member
        without_since_s = member.clock()
        while True:
            leadership = member.leadership
            if leadership.is_self and self.handler is not None:
                future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                self.execute(command, partial(_settle, future))
                return await future
            if leadership.master_node_id is not None and not leadership.is_self and member.link is not None:
                future = member.link.call(command)
                member.uplink_work.fire()
                return await future
            left_s = member.options.master_wait_s - (member.clock() - without_since_s)
            if left_s <= 0:
                raise member.no_master(member.options.master_wait_s)
            with anyio.move_on_after(left_s):
                await member.board.changed.wait()

    def execute(self, command: Command, answered: Callable[[Answer], None]) -> None:
        """Start to carry a command out as the master; `answered` is called with what came of it."""
        if self._tasks is None:
            answered(self._failure("the node is starting; try again"))
        else:
            self._tasks.start_soon(self._execute, command, answered)

    async def _execute(self, command: Command, answered: Callable[[Answer], None]) -> None:
        try:
            if self.handler is None or not self._member.leadership.is_self:
                answered(self._failure("the master has no one to carry commands out; try again"))
                return
            reply = await self.handler(command)
            answered(Answer(call_id=0, index=self._member.state.index, reply=reply))
        except ExoError as error:
            answered(self._failure(error.message))
        except Exception as error:
            logger.exception("a command failed: {}", type(command).__name__)
            answered(self._failure(f"the master failed to carry it out: {error}"))
        except asyncio.CancelledError:
            answered(self._failure("the node stopped before the command was carried out"))
            raise

    def _failure(self, message: str) -> Answer:
        return Answer(call_id=0, index=self._member.state.index, error=message)


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)
