"""The rule that leaders follow about who votes: where it leads to, one voter at a time, and what it never does."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exo.cluster.membership import STOPPED, Choice, Presence, choose_voters, voters_wanted
from exo.cluster.raft.quorum import change_fault, has_majority
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import Node
from exo.shared.types.voters import Voters
from support.raft_lab import voters
from support.states import identity

STEPS_MAX = 32
"""From any voters to those that should be: five leave, five come, and each has to be followed first."""


def members(names: str, *, hosts: str | None = None, stopped: str = "") -> dict[NodeId, Node]:
    """Nodes in the order in which they joined, each on a host of its own unless said otherwise."""
    return {
        NodeId(name): Node(
            identity=identity(name, host_id=host),
            is_connected=name not in stopped,
            left_reason=STOPPED if name in stopped else None,
        )
        for name, host in zip(names, hosts or names, strict=True)
    }


def ids(names: str) -> frozenset[NodeId]:
    return frozenset(map(NodeId, names))


class World(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster in which nobody comes or goes while its leaders take step after step."""

    leader: NodeId
    nodes: dict[NodeId, Node]
    voters: Voters
    present: frozenset[NodeId]
    missed: frozenset[NodeId] = frozenset()
    leaving: frozenset[NodeId] = frozenset()
    voteless: frozenset[NodeId] = frozenset()
    able: frozenset[NodeId]
    """Who has the whole log as soon as a leader sends it."""
    learners: frozenset[NodeId] = frozenset()

    @property
    def unfit(self) -> frozenset[NodeId]:
        """Who must not vote: not a member, about to stop, stopped, or without what it promised."""
        stopped = {n for n, node in self.nodes.items() if node.left_reason == STOPPED} - self.present
        strangers = self.voters.members - self.nodes.keys()
        return self.leaving | self.voteless | stopped | strangers

    @property
    def heirs(self) -> frozenset[NodeId]:
        """Who could have a vote, or keep it."""
        return (self.present | frozenset(self.voters.voters)) & self.nodes.keys() - self.unfit

    @property
    def agreeing(self) -> frozenset[NodeId]:
        """Who takes entries: who lost its log does when it has it again."""
        return self.present - (self.voteless - self.able)

    def presence(self) -> Presence:
        followed = {self.leader} | self.voters.members | self.learners
        return Presence(
            present=self.present,
            missed=self.missed,
            level=self.able & followed,
            leaving=self.leaving,
            voteless=self.voteless,
        )

    def choose(self) -> Choice:
        return choose_voters(self.leader, self.nodes, self.voters, self.presence())

    def after(self, choice: Choice) -> "World":
        """Return what comes of a choice; a leader that votes no more is followed by one that is there."""
        changed = choice.voters or self.voters
        leader, learners, able = self.leader, choice.learners, self.able
        if leader not in changed.voters:
            leader, learners = min(self.present & set(changed.voters)), frozenset[NodeId]()
            able |= {leader}
        return msgspec.structs.replace(self, voters=changed, leader=leader, learners=learners, able=able)

    def story(self) -> list["World"]:
        """Return this world and those that follow, up to the first that stays as it is."""
        worlds = [self]
        while True:
            choice = worlds[-1].choose()
            if choice.voters is None and choice.learners == worlds[-1].learners:
                return worlds
            worlds.append(worlds[-1].after(choice))
            assert len(worlds) <= STEPS_MAX, [world.voters for world in worlds]


def world(names: str, before: Voters, *, leader: str = "a", hosts: str | None = None, **more: str) -> World:
    """A world of members, all of them there and able unless `absent` names them; the rest as World has it."""
    stopped = more.pop("stopped", "")
    present = ids(names) - ids(more.pop("absent", "")) - ids(stopped)
    able = present - ids(more.pop("slow", ""))
    return World(
        leader=NodeId(leader),
        nodes=members(names, hosts=hosts, stopped=stopped),
        voters=before,
        present=present,
        able=able,
        **{name: ids(value) for name, value in more.items()},
    )


def steps(story: list[World]) -> list[Voters]:
    """Return the voters of a story, each set of them once."""
    found = [story[0].voters]
    for each in story:
        if each.voters != found[-1]:
            found.append(each.voters)
    return found


@st.composite
def worlds(draw: st.DrawFn, *, is_calm: bool = False) -> World:
    """Any cluster whose leader leads: a majority of the voters is there and takes entries from it.

    Args:
        is_calm: Everybody is there and fit.
    """
    names = draw(st.permutations("abcdefghijkl"[: draw(st.integers(1, 12))]))
    some = st.just(frozenset[str]()) if is_calm else st.frozensets(st.sampled_from(names), max_size=4)
    absent, leaving, voteless, slow = draw(some), draw(some), draw(some), draw(some)
    stopped = absent & draw(some)
    strangers = [] if is_calm else ["x", "y"]
    voting = draw(st.lists(st.sampled_from([*names, *strangers]), min_size=1, max_size=6, unique=True))
    # Sizes in between are passed through, and begin a story where a leader died on the way.
    others = [name for name in (*names, *strangers) if name not in voting]
    replicas = draw(st.lists(st.sampled_from(others), max_size=1)) if others and len(voting) == 1 else []
    present = ids("".join(names)) - absent
    candidates = sorted(present & set(voting))
    assume(candidates)
    leader = draw(st.sampled_from(candidates))
    began = World(
        leader=leader,
        nodes=members(
            "".join(names),
            hosts="".join(
                draw(st.lists(st.sampled_from("HIJKLMNO"), min_size=len(names), max_size=len(names)))
            ),
            stopped="".join(stopped),
        ),
        voters=Voters(voters=tuple(sorted(map(NodeId, voting))), replicas=tuple(map(NodeId, replicas))),
        present=present,
        missed=ids("".join(absent & draw(some))),
        leaving=ids("".join(leaving)) & present,
        voteless=(ids("".join(voteless)) & present) - {leader},
        able=(present - slow) | {leader},
    )
    assume(has_majority(began.voters, began.agreeing))
    return began


# --- where it leads to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3), (6, 3), (7, 5), (8, 5), (100, 5), (1000, 5)]
)
def test_how_many_vote_of_how_many(count: int, wanted: int) -> None:
    assert voters_wanted(count) == wanted


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 1000])
def test_a_cluster_that_grows_at_once_gets_the_voters_of_its_size(count: int) -> None:
    names = [NodeId(f"node-{number:04}") for number in range(count)]
    nodes = {name: Node(identity=identity(name, host_id=name)) for name in names}
    began = World(
        leader=names[0],
        nodes=nodes,
        voters=Voters(voters=(names[0],)),
        present=frozenset(names),
        able=frozenset(names),
    )
    reached = began.story()[-1].voters
    assert reached.voters == tuple(names[: voters_wanted(count)])
    assert reached.replicas == (tuple(names[1:2]) if count == 2 else ())


def test_two_and_a_witness_are_three_voters() -> None:
    story = world("abw", voters("a", "b")).story()
    assert steps(story) == [voters("a", "b"), voters("ab"), voters("abw")]


@given(worlds(is_calm=True))
def test_with_everybody_there_it_comes_to_the_table(began: World) -> None:
    reached = began.story()[-1].voters
    assert len(reached.voters) == voters_wanted(len(began.nodes))
    assert len(reached.replicas) == (1 if len(began.nodes) == 2 else 0)
    assert reached.members <= began.nodes.keys()


@given(worlds(is_calm=True), st.randoms(use_true_random=False))
def test_the_order_of_joining_decides_who_votes_and_never_how_many(began: World, random) -> None:
    names = list(began.nodes)
    random.shuffle(names)
    shuffled = msgspec.structs.replace(began, nodes={name: began.nodes[name] for name in names})
    first, second = began.story()[-1].voters, shuffled.story()[-1].voters
    assert len(first.voters) == len(second.voters)
    assert len(first.replicas) == len(second.replicas)


@given(worlds())
def test_it_comes_to_rest(began: World) -> None:
    """`story` itself fails where it does not; and what is at rest stays so."""
    story = began.story()
    assert story[-1].story() == [story[-1]]
    sizes = [world.voters for world in story if world.voters != began.voters]
    assert len(set(steps(story))) == len(steps(story)), "it never takes a step back"
    assert len(sizes) < STEPS_MAX


@given(worlds())
def test_it_rests_at_an_odd_number_or_waits_for_somebody(began: World) -> None:
    rest = began.story()[-1]
    size = len(rest.voters.voters)
    if size % 2:
        assert size <= max(voters_wanted(len(began.nodes)), len(began.voters.voters))
        return
    if not rest.heirs:
        return  # All that are there are about to stop: nobody could take a vote over.
    is_blocked = any(not _can_go_on(rest, one) for one in rest.voters.voters)
    assert is_blocked or rest.learners - rest.presence().level, "two, four or six for no reason"
    began_unfit = bool(set(began.voters.voters) & began.unfit)
    assert began_unfit or len(began.voters.voters) % 2 == 0, "it began odd, and nobody had to leave"


def _can_go_on(one: World, without: NodeId) -> bool:
    """Say whether the other voters could agree and win an election without this one."""
    left = Voters(voters=tuple(node_id for node_id in one.voters.voters if node_id != without))
    return has_majority(left, one.present - one.voteless)


# --- one step --------------------------------------------------------------------------------------------------------


@given(worlds())
@settings(max_examples=300)
def test_every_step_changes_one_voter_and_may_be_taken(began: World) -> None:
    story = began.story()
    for before, after in pairwise(story):
        assert change_fault(before.voters, after.voters) is None
        assert len(set(before.voters.voters) ^ set(after.voters.voters)) <= 1


@given(worlds())
@settings(max_examples=300)
def test_no_step_loses_the_majority(began: World) -> None:
    """Those who are there could agree before, so they can after: a change counts at once, also for itself."""
    story = began.story()
    for before, after in pairwise(story):
        assert has_majority(before.voters, before.agreeing)
        assert has_majority(after.voters, before.agreeing), (before.voters, after.voters)
        if has_majority(before.voters, before.present - before.voteless):
            assert has_majority(after.voters, after.present - after.voteless), "no election could be won"


@given(worlds())
@settings(max_examples=300)
def test_whoever_begins_to_vote_is_there_fit_and_has_the_log(began: World) -> None:
    story = began.story()
    for before, after in pairwise(story):
        for node_id in after.voters.members - before.voters.members:
            assert node_id in began.nodes
            assert node_id in before.present - before.unfit
            assert node_id in before.presence().level


@given(worlds())
def test_nobody_keeps_a_vote_that_somebody_else_could_have(began: World) -> None:
    rest = began.story()[-1]
    able = rest.present - rest.unfit
    gone = set(rest.voters.voters) & (rest.missed - rest.present)
    waiting = rest.learners - rest.presence().level
    if able - rest.voters.members and gone:
        is_needed = not all(_can_go_on(rest, one) for one in gone)
        assert waiting or is_needed, f"{gone} votes, and {able} could"


@given(worlds())
def test_who_may_not_vote_keeps_its_vote_only_where_the_others_could_not_agree(began: World) -> None:
    rest = began.story()[-1]
    kept = set(rest.voters.voters) & rest.unfit
    waits_for_heir = bool(rest.learners - rest.presence().level)
    for node_id in kept:
        assert not _can_go_on(rest, node_id) or waits_for_heir or not rest.heirs, (
            f"{node_id} in {rest.voters}"
        )


@given(worlds())
def test_a_choice_depends_on_what_is_so_and_on_nothing_else(began: World) -> None:
    order = sorted(began.nodes, reverse=True)
    turned = Presence(
        present=frozenset(node_id for node_id in order if node_id in began.present),
        missed=frozenset(node_id for node_id in order if node_id in began.missed),
        level=frozenset(node_id for node_id in [*order, "x", "y"] if node_id in began.presence().level),
        leaving=frozenset(node_id for node_id in order if node_id in began.leaving),
        voteless=frozenset(node_id for node_id in order if node_id in began.voteless),
    )
    assert choose_voters(began.leader, began.nodes, began.voters, turned) == began.choose() == began.choose()


PROGRAM = """
import random
from test_membership import Presence, Voters, choose_voters, ids, members
random = random.Random(5)
names = "abcdefghij"
for _ in range(200):
    some = lambda count: ids("".join(random.sample(names, count)))
    print(choose_voters(
        "a",
        members("".join(random.sample(names, 10)), hosts="HHHIIJJKLM"),
        Voters(voters=tuple(sorted(some(random.choice((1, 3, 5))) | {"a"}))),
        Presence(present=some(7) | {"a"}, missed=some(2), level=some(8), leaving=some(1), voteless=some(1)),
    ).voters)
"""


def test_every_process_chooses_the_same() -> None:
    """Sets of names are walked through in another order in each process."""

    def chosen(seed: str) -> str:
        here = Path(__file__)
        return subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2]), *sys.path]),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    first = chosen("1")
    assert first.count("Voters(") > 50
    assert chosen("2") == first


# --- who is taken, and who goes --------------------------------------------------------------------------------------


def test_newcomers_vote_in_the_order_in_which_they_joined() -> None:
    assert world("adcb", voters("a")).story()[-1].voters == voters("acd")


def test_other_hosts_come_first() -> None:
    assert world("abcd", voters("a"), hosts="HHIJ").story()[-1].voters == voters("acd")


def test_with_one_host_only_they_vote_all_the_same() -> None:
    assert world("abcd", voters("a"), hosts="HHHH").story()[-1].voters == voters("abc")


def test_one_that_is_merely_lost_keeps_its_vote() -> None:
    assert steps(world("abcd", voters("abc"), absent="c").story()) == [voters("abc")]


def test_one_that_has_been_gone_for_long_gives_its_place_to_somebody_who_has_the_log() -> None:
    lost = world("abcd", voters("abc"), absent="c", missed="c")
    assert steps(lost.story()) == [voters("abc"), voters("abcd"), voters("abd")]
    slow = world("abcd", voters("abc"), absent="c", missed="c", slow="d")
    assert steps(slow.story()) == [voters("abc")]
    assert slow.story()[-1].learners == ids("d"), "it is sent the log meanwhile"


def test_one_that_has_been_gone_for_long_keeps_its_vote_where_nobody_else_can_have_it() -> None:
    assert steps(world("abc", voters("abc"), absent="c", missed="c").story()) == [voters("abc")]


def test_one_that_was_stopped_goes_at_once() -> None:
    assert steps(world("abcd", voters("abc"), stopped="c", slow="d").story()) == [voters("abc"), voters("ab")]


def test_of_three_the_last_one_decides_alone() -> None:
    assert steps(world("abc", voters("abc"), stopped="bc").story()) == [voters("abc")], "they have not agreed"
    two = steps(world("abc", voters("abc"), stopped="c").story())
    assert two == [voters("abc"), voters("ab"), voters("a"), voters("a", "b")]
    assert steps(world("abc", voters("a", "b"), stopped="c", leaving="b").story())[-1] == voters("a")


def test_a_leader_that_leaves_goes_last() -> None:
    leaves = msgspec.structs.replace(world("abcd", voters("abc"), leaving="a"), learners=ids("d"))
    assert steps(leaves.story()) == [voters("abc"), voters("abcd"), voters("bcd")]
    slow = world("abcd", voters("abc"), leaving="a", slow="d")
    assert steps(slow.story()) == [voters("abc"), voters("bc")], "it does not wait for anybody to catch up"
    two = steps(world("ab", voters("a", "b"), leaving="a").story())
    assert two == [voters("a", "b"), voters("ab"), voters("b")]


def test_who_is_alone_and_leaves_keeps_its_vote() -> None:
    assert steps(world("ab", voters("a"), absent="b", leaving="a").story()) == [voters("a")]


def test_of_more_than_are_needed_those_who_are_there_stay() -> None:
    """Of seven nodes one was removed. Two voters are away: without the third, the other two could not agree."""
    story = steps(world("abcdef", voters("abcde"), absent="bc").story())
    assert story == [voters("abcde"), voters("acde"), voters("ade")]


def test_one_that_leaves_is_kept_until_the_others_can_agree() -> None:
    """Two of five are away. Without the third, the last two could decide nothing any more."""
    away = world("abcdefg", voters("abcde"), absent="defg", leaving="c")
    assert steps(away.story()) == [voters("abcde"), voters("abcd"), voters("abd")]
    helped = world("abcdefg", voters("abcde"), absent="deg", leaving="c")
    assert steps(helped.story()) == [voters("abcde"), voters("abcdef"), voters("abdef")]


def test_who_is_gone_goes_before_who_is_about_to() -> None:
    """The other way round, one of two voters would be missing."""
    story = steps(world("abd", voters("abx"), leaving="b").story())
    assert story[:3] == [voters("abx"), voters("ab"), voters("a")]


def test_who_lost_its_log_is_kept_while_it_is_needed_and_never_counted_on_to_vote() -> None:
    """One of three is away, another forgot what it promised. With the one that is away gone, nobody could be elected;
    with the other one gone, nothing could be decided."""
    assert steps(world("abc", voters("abc"), absent="c", missed="c", voteless="b").story()) == [voters("abc")]
    slow = world("abc", voters("abc"), absent="c", missed="c", voteless="b", slow="b")
    assert steps(slow.story()) == [voters("abc")]
    back = world("abc", voters("abc"), voteless="b")
    assert steps(back.story())[:2] == [voters("abc"), voters("ac")]
    removed = world("ab", voters("abc"), voteless="b")
    assert steps(removed.story())[:3] == [voters("abc"), voters("ab"), voters("a")], (
        "the one away will not be back"
    )


def test_no_pause_at_four() -> None:
    """Four voters bear the loss of one, as three do, and need one more to agree."""
    slow = world("abcdefg", voters("abc"), slow="e")
    assert slow.choose().learners == ids("de")
    assert steps(slow.story()) == [voters("abc")]
    assert steps(world("abcdefg", voters("abc")).story()) == [voters("abc"), voters("abcd"), voters("abcde")]


def test_no_pause_at_two() -> None:
    assert steps(world("abc", voters("a"), slow="c").story()) == [voters("a")]


def test_two_nodes_have_one_voter_and_a_replica_while_it_is_in_sync() -> None:
    assert steps(world("ab", voters("a")).story()) == [voters("a"), voters("a", "b")]
    assert steps(world("ab", voters("a"), slow="b").story()) == [voters("a")]
    assert steps(world("ab", voters("a", "b"), slow="b").story()) == [voters("a", "b"), voters("a")]
    assert steps(world("ab", voters("a", "b"), absent="b").story()) == [voters("a", "b"), voters("a")]


def test_the_replica_of_a_cluster_that_shrinks_to_two_is_on_another_host() -> None:
    only = world("abc", voters("a"), hosts="HHI", stopped="")
    two = msgspec.structs.replace(only, leaving=ids("b"))
    assert two.story()[-1].voters == voters("a", "c")


def test_without_a_fit_member_nothing_changes() -> None:
    assert steps(world("b", voters("a"), leader="a", absent="b").story()) == [voters("a")]


@pytest.mark.parametrize(
    ("began", "reason"),
    [
        (world("ab", voters("a")), "b is in sync"),
        (world("ab", voters("a", "b"), absent="b"), "b is out of sync"),
        (world("abc", voters("a", "b")), "b is a voter now"),
        (world("ab", voters("a", "b"), leaving="a"), "b takes over from a"),
        (world("abcd", voters("abcd"), leaving="a"), "a hands its vote on"),
        (world("abcd", voters("abc"), stopped="c"), "c is no voter any more"),
    ],
)
def test_every_reason_names_who_it_is_about(began: World, reason: str) -> None:
    followed = msgspec.structs.replace(began, learners=began.choose().learners)
    assert followed.choose().reason == reason
