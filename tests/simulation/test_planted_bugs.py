"""Does the simulation catch anything? Each bug planted around the core has to be noticed within a few seeds.

Bugs in the core itself are planted in `test_raft_planted_bugs.py`.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from exo.cluster import facts
from exo.cluster.hosting import Hosting
from exo.cluster.joining import Joining
from exo.cluster.kernel import Kernel
from exo.cluster.lane import Lane
from exo.cluster.log.store import NodeStore
from exo.cluster.outbox import Outbox
from exo.cluster.raft.leader import Leader
from exo.cluster.uplink import Uplink
from exo.cluster.wire import Answer
from exo.cluster.writer import Writer
from exo.shared.errors import LogOrderError
from exo.shared.types.events import TermOpened
from support.faulty_story import FaultyStory
from support.virtual_time import run
from support.yielding_story import YieldingStory

SEEDS = range(60)
Plant = Callable[[pytest.MonkeyPatch], None]


def acknowledges_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_writes = NodeStore.apply_writes

    def apply_later(self: NodeStore, writes: Any) -> None:
        sync, self.log.sync = self.log.sync, lambda: None  # type: ignore[method-assign]
        try:
            apply_writes(self, writes)
        finally:
            self.log.sync = sync  # type: ignore[method-assign]

    monkeypatch.setattr(NodeStore, "apply_writes", apply_later)


def forgets_what_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Outbox.pause

    def pause_and_forget(self: Outbox) -> None:
        pause(self)
        self._sent.clear()

    monkeypatch.setattr(Outbox, "pause", pause_and_forget)


def sends_again_under_new_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Outbox.begin

    def begin_anew(self: Outbox, cluster_id: Any, term: int, last_seq: int) -> Any:
        self._cluster_id = None
        return begin(self, cluster_id, term, last_seq)

    monkeypatch.setattr(Outbox, "begin", begin_anew)


def commits_what_a_former_master_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Outbox.add

    def add_without_fence(self: Outbox, proposal: Any, *, is_first: bool = False) -> None:
        is_opening = any(isinstance(one.event, TermOpened) for one in proposal.events)
        fence = proposal.fence if is_opening else None
        add(self, msgspec.structs.replace(proposal, fence=fence), is_first=is_first)

    monkeypatch.setattr(Outbox, "add", add_without_fence)


def does_not_come_back_as_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure = Joining.ensure_member

    def ensure_once(self: Joining) -> None:
        if self._ticket is None:
            ensure(self)

    monkeypatch.setattr(Joining, "ensure_member", ensure_once)


def tells_a_new_master_only_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "tell_all", lambda self, instances: None)


def yields_though_it_has_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_rank", lambda one: (one.cluster_id or "",))
    monkeypatch.setattr(Kernel, "may_yield", property(lambda self: self.situation.is_open))


def answers_before_the_caller_can_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    received, outgoing = Uplink.answer_received, Hosting.outgoing

    def received_early(self: Uplink, answer: Answer) -> None:
        received(self, msgspec.structs.replace(answer, index=0))

    monkeypatch.setattr(Uplink, "answer_received", received_early)
    monkeypatch.setattr(
        Hosting, "outgoing", lambda self, session: session.take_answers() or outgoing(self, session)
    )


def keeps_the_log_of_the_cluster_that_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Writer) -> None:
        return

    monkeypatch.setattr(Writer, "reset", nothing)


def admits_behind_its_own_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leader, "is_dissolving", False, raising=False)
    setattr_ = Leader.__setattr__

    def never_dissolving(self: Leader, name: str, value: Any) -> None:
        setattr_(self, name, False if name == "is_dissolving" else value)

    monkeypatch.setattr(Leader, "__setattr__", never_dissolving)


PLANTS: list[Plant] = [
    acknowledges_before_the_sync,
    forgets_what_is_in_doubt,
    sends_again_under_new_numbers,
    commits_what_a_former_master_decided,
    does_not_come_back_as_a_member,
    tells_a_new_master_only_what_changes,
    yields_though_it_has_instances,
    answers_before_the_caller_can_see_it,
    keeps_the_log_of_the_cluster_that_it_left,
    admits_behind_its_own_farewell,
]
STORIES: dict[Plant, type[FaultyStory] | type[YieldingStory]] = {
    admits_behind_its_own_farewell: YieldingStory
}

CRASHES: dict[Plant, tuple[type[Exception], ...]] = {
    # The log itself refuses a history that does not continue its own.
    keeps_the_log_of_the_cluster_that_it_left: (LogOrderError,)
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a broken promise counts. Anything else (a plant that no longer fits the code) is an error of this test."""
    plant(monkeypatch)
    story = STORIES.get(plant, FaultyStory)
    for seed in SEEDS:
        try:
            run(story(seed).tell())
        except (AssertionError, *CRASHES.get(plant, ())) as caught:
            print(f"{plant.__name__}: seed {seed}: {str(caught)[:160]}")
            return
    pytest.fail(f"{len(SEEDS)} seeds did not notice it")
