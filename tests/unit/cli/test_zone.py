"""`--zone`: the name of the place where a node stands."""

import pytest
from msgspec.structs import replace

from exo.cli.node import ZONE_CHARACTERS_MAX, parse_zone
from exo.shared.errors import ConfigurationError
from support.cli_run import Run, RunningWorld


@pytest.mark.parametrize(
    ("text", "name"), [("", ""), ("  ", ""), (" garage ", "garage"), ("Büro 2", "Büro 2")]
)
def test_a_zone_is_its_name_without_spaces_around(text: str, name: str) -> None:
    assert parse_zone(text) == name


@pytest.mark.parametrize("text", ["x" * (ZONE_CHARACTERS_MAX + 1), "a\nb", "\x1b[31m"])
def test_what_no_terminal_shows_or_is_too_long_is_no_zone(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no name for a zone; give up to 64 letters"):
        parse_zone(text)


def test_status_names_the_zones_that_nodes_are_in(unplaced: RunningWorld, run: Run) -> None:
    coordinator = unplaced.world.coordinator
    state = coordinator.state
    first = min(state.nodes)
    node = state.nodes[first]
    named = replace(node, identity=replace(node.identity, zone="garage"))
    assert " in garage" not in run("status").out
    unplaced.portal.call(coordinator.set_state, replace(state, nodes={**state.nodes, first: named}))
    assert run("status").out.count(f"{node.identity.name} (master) in garage") == 1
