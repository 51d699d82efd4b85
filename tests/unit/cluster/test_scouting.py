"""Who joins whom: one answer for every pair of clusters, the same seen from both."""

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.facts import ClusterFacts, is_senior
from exo.cluster.judging import judge
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort


def facts(node_id: str = "a", cluster_id: str = "x", **changes: object) -> ClusterFacts:
    own = ClusterFacts(
        exo_version="1",
        namespace="test",
        node_id=NodeId(node_id),
        boot_id=f"boot-{node_id}",
        name=node_id,
        cluster_address=HostPort(node_id, 1),
        cluster_id=ClusterId(cluster_id),
        incarnation=1,
        term=1,
        index=1,
        master_node_id=NodeId(node_id),
        master_address=HostPort(node_id, 1),
        member_count=1,
        instance_count=0,
    )
    return msgspec.structs.replace(own, **changes)


some_facts = st.builds(
    lambda cluster_id, members, instances: facts(
        f"master-of-{cluster_id}", cluster_id, member_count=members, instance_count=instances
    ),
    st.text("abc", min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(0, 2),
)


@given(some_facts, some_facts, some_facts)
def test_seniority_is_a_total_order(one: ClusterFacts, two: ClusterFacts, three: ClusterFacts) -> None:
    if one.cluster_id != two.cluster_id:
        assert is_senior(one, two) != is_senior(two, one)
    assert not is_senior(one, one)
    if is_senior(one, two) and is_senior(two, three):
        assert is_senior(one, three)


@given(some_facts, some_facts)
def test_of_two_masters_exactly_one_joins_unless_both_have_something_to_lose(
    one: ClusterFacts, two: ClusterFacts
) -> None:
    if one.cluster_id == two.cluster_id:
        return
    seen_from_one = judge(one, two, is_waiting=True)
    seen_from_two = judge(two, one, is_waiting=True)
    joins = [seen_from_one.join, seen_from_two.join]
    if one.instance_count and two.instance_count:
        assert joins == [None, None]
        assert seen_from_one.status == seen_from_two.status == "both_have_instances"
    else:
        assert joins.count(None) == 1
        junior = one if seen_from_one.join is not None else two
        assert not junior.instance_count


@dataclass
class Rule:
    name: str
    own: ClusterFacts
    seen: ClusterFacts
    status: str
    join: HostPort | None = None
    is_waiting: bool = True


ORPHAN = facts("a", master_node_id=None, master_address=None)
FOLLOWER = facts("a", master_node_id=NodeId("m"), master_address=HostPort("m", 1))
OTHERS = facts("b", "y")


@pytest.mark.parametrize(
    "rule",
    [
        Rule("another namespace", facts(), facts("b", "y", namespace="n"), "other_namespace"),
        Rule("another protocol", facts(), facts("b", "y", version=9), "other_version"),
        Rule("a copied data directory", facts(), facts("a", "x", boot_id="other"), "same_node_id"),
        Rule("a copied log", facts(), facts("b", "x"), "two_masters"),
        Rule("my follower", facts(), facts("b", "x", master_node_id=NodeId("a")), "member"),
        Rule("my lost master", ORPHAN, facts("m", "x"), "member", HostPort("m", 1)),
        Rule(
            "one who knows my lost master",
            ORPHAN,
            facts("b", "x", master_node_id=NodeId("m"), master_address=HostPort("m", 1)),
            "member",
            HostPort("m", 1),
        ),
        Rule(
            "an orphan like me",
            ORPHAN,
            facts("b", "x", master_node_id=None, master_address=None),
            "member",
        ),
        Rule("others, while I wait for my master", ORPHAN, OTHERS, "other_cluster"),
        Rule("others, when I wait no longer", ORPHAN, OTHERS, "joining", HostPort("b", 1), is_waiting=False),
        Rule("others, while I follow", FOLLOWER, OTHERS, "other_cluster"),
        Rule(
            "others without a master",
            facts(),
            facts("b", "y", master_node_id=None, master_address=None, member_count=9),
            "no_master",
        ),
    ],
    ids=lambda rule: rule.name,
)
def test_what_follows_from_the_facts(rule: Rule) -> None:
    judgement = judge(rule.own, rule.seen, is_waiting=rule.is_waiting)
    assert (judgement.status, judgement.join) == (rule.status, rule.join)
    assert judgement.detail
