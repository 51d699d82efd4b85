"""Does the simulation catch anything? Each bug planted here has to be noticed within a few seeds."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from exo.cluster import facts
from exo.cluster.core import Core
from exo.cluster.core_messages import ProposalReceived
from exo.cluster.kernel import Kernel
from exo.cluster.lane import Lane
from exo.cluster.leading import redirect_all
from exo.cluster.outbox import Outbox
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.wire import Answer
from exo.cluster.writer import Writer
from exo.shared.types.nodes import HostPort
from support.faulty_story import FaultyStory
from support.virtual_time import run
from support.yielding_story import YieldingStory

SEEDS = range(40)
Plant = Callable[[pytest.MonkeyPatch], None]


def admits_again_what_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two lines of defence: the origin asks what was admitted, and the master looks at the number. Both are taken away.
    admit, begin = Core._admit, Outbox.begin

    def admit_any(self: Core, message: ProposalReceived) -> Any:
        return admit(self, msgspec.structs.replace(message, first_seq=self.last_seq(message.origin) + 1))

    def send_all_again(self: Outbox, cluster_id: Any, term: int, last_seq: int) -> Any:
        self._cluster_id = None
        return begin(self, cluster_id, term, last_seq)

    monkeypatch.setattr(Core, "_admit", admit_any)
    monkeypatch.setattr(Outbox, "begin", send_all_again)


def acknowledges_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "_write", lambda self, entries: self._log.append(entries))


def forgets_what_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Outbox.pause

    def pause_and_forget(self: Outbox) -> None:
        pause(self)
        self._sent.clear()

    monkeypatch.setattr(Outbox, "pause", pause_and_forget)


def numbers_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Outbox.begin
    monkeypatch.setattr(
        Outbox, "begin", lambda self, cluster_id, term, last_seq: begin(self, cluster_id, term, 0)
    )


def does_not_come_back_as_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure = Kernel._ensure_member

    def ensure_once(self: Kernel) -> None:
        if self._join_ticket is None:
            ensure(self)

    monkeypatch.setattr(Kernel, "_ensure_member", ensure_once)


def tells_a_new_master_only_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "tell_all", lambda self, instances: None)


def yields_though_it_has_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_rank", lambda one: (one.cluster_id or "",))
    monkeypatch.setattr(Kernel, "may_yield", property(lambda self: self.core.role == "leader"))


def answers_before_the_caller_can_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    received = Kernel.answer_received

    def received_early(self: Kernel, answer: Answer) -> None:
        received(self, msgspec.structs.replace(answer, index=0))

    monkeypatch.setattr(Kernel, "answer_received", received_early)
    outgoing = Kernel.outgoing

    def answers_first(self: Kernel, session: Any) -> Any:
        return session.take_answers() or outgoing(self, session)

    monkeypatch.setattr(Kernel, "outgoing", answers_first)


def opens_the_same_term_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lead = Core._lead

    def lead_again(self: Core, message: Any) -> Any:
        return lead(self, msgspec.structs.replace(message, term=max(0, message.term - 1)))

    monkeypatch.setattr(Core, "_lead", lead_again)


def leads_on_while_it_tells_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def give_up_late(self: EmbeddedCoordinator, address: HostPort) -> None:
        await redirect_all(list(self._kernel.sessions.values()), address)
        self._kernel.stop_leading("late")
        await self._writer.reset()

    monkeypatch.setattr(EmbeddedCoordinator, "_give_up_leading", give_up_late)


PLANTS: list[Plant] = [
    admits_again_what_is_sent_again,
    acknowledges_before_the_sync,
    forgets_what_is_in_doubt,
    numbers_begin_anew,
    does_not_come_back_as_a_member,
    tells_a_new_master_only_what_changes,
    yields_though_it_has_instances,
    answers_before_the_caller_can_see_it,
    opens_the_same_term_again,
    leads_on_while_it_tells_where_it_goes,
]
STORIES: dict[Plant, type[FaultyStory] | type[YieldingStory]] = {
    leads_on_while_it_tells_where_it_goes: YieldingStory
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a broken promise counts. Anything else (a plant that no longer fits the code) is an error of this test."""
    plant(monkeypatch)
    story = STORIES.get(plant, FaultyStory)
    for seed in SEEDS:
        try:
            run(story(seed).tell())
        except AssertionError as caught:
            print(f"{plant.__name__}: seed {seed}: {str(caught)[:160]}")
            return
    pytest.fail(f"{len(SEEDS)} seeds did not notice it")
