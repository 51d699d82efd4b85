"""Nodes that are called alike can be told apart."""

from msgspec.structs import replace

from exo.master.remedy import called
from exo.shared.node_names import distinct_names
from support.states import GIB, cluster, cpu, identity


def test_only_names_that_several_have_are_told_with_ids() -> None:
    names = {"7c1f19c0": "oak", "a9a9930e": "oak", "415c40f7": "pine"}
    assert distinct_names(names) == {"7c1f19c0": "oak 7c1f", "a9a9930e": "oak a9a9", "415c40f7": "pine"}
    assert distinct_names({}) == {}


def test_devices_of_such_nodes_are_told_apart_too() -> None:
    nodes = (identity(name, devices=[cpu(name, GIB)]) for name in ("7c1f19c0", "a9a9930e"))
    assert called(cluster(*(replace(one, name="oak") for one in nodes))) == {
        "7c1f19c0": "oak 7c1f",
        "7c1f19c0/cpu:0": "cpu:0 of oak 7c1f",
        "a9a9930e": "oak a9a9",
        "a9a9930e/cpu:0": "cpu:0 of oak a9a9",
    }
