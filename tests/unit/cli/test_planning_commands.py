"""`exo place --dry-run`, what-if and `exo why`, as a person reads them; a real master answers."""

import json
from pathlib import Path

import pytest

from exo.cli.planning import asked_line
from exo.master.loop import Master
from exo.shared.types.commands import DeleteInstance, PlaceInstance
from exo.shared.types.ids import CommandId, InstanceId, ModelId
from exo.shared.types.instances import PlacementRequest
from support.cli_run import Run, RunningWorld
from support.inline_solver import InlineSolver
from support.placing import MIXED, mixed_state


@pytest.fixture
def lab(unplaced: RunningWorld) -> RunningWorld:
    """A laboratory of four unequal machines, with a real master."""

    async def rule() -> None:
        unplaced.world.coordinator.set_state(mixed_state(MIXED["what was at hand, 32B"]))
        Master(unplaced.world.coordinator, InlineSolver(), lambda: "0123456789ab")

    unplaced.portal.call(rule)
    return unplaced


def place(lab: RunningWorld) -> None:
    request = PlacementRequest(model_id=ModelId("big"))
    command = PlaceInstance(command_id=CommandId("c"), request=request)

    async def send() -> None:
        await lab.world.coordinator.send(command, timeout_s=30)

    lab.portal.call(send)


def test_a_dry_run_shows_the_plan_and_other_ways(lab: RunningWorld, run: Run) -> None:
    outcome = run("place", "big", "--dry-run")
    assert outcome.code == 0, outcome.err
    for words in (
        "tokens/s",
        "(estimate)",
        "STAGE",
        "certificate: ",
        "baseline: ",
        "NOT USED",
        "Fewest nodes",
    ):
        assert words.lower() in outcome.out.lower(), words
    assert "nothing was decided" in outcome.err
    assert lab.world.coordinator.proposed == []


def test_explain_gives_every_reason(lab: RunningWorld, run: Run) -> None:
    outcome = run("place", "big", "--dry-run", "--explain")
    assert outcome.code == 0 and "not used: " in outcome.out


def test_as_json_it_is_the_answers_of_the_node(lab: RunningWorld, run: Run) -> None:
    found = json.loads(run("place", "big", "--dry-run", "--json").out)
    assert found["answer"]["plan"]["stages"] and len(found["previews"]) > 4
    assert found["verdict"] is None


def test_what_a_card_would_bring(lab: RunningWorld, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "used-3090.toml"
    file.write_text('gpu = "RTX 3090"')
    outcome = run("place", "big", "--with", str(file))
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("With used-3090: ") and "instead of" in outcome.out
    assert "used-3090 (not there)" in outcome.out and "936" in outcome.out
    assert lab.world.coordinator.proposed == []
    file.write_text('gpu = "RTX 3091"')
    outcome = run("place", "big", "--with", str(file))
    assert (outcome.code, outcome.out) == (2, "")
    assert "line 1" in outcome.err and "did you mean" in outcome.err


def test_without_a_node_given_by_its_name(lab: RunningWorld, run: Run) -> None:
    outcome = run("place", "big", "--without", "host-node-01-0", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    used = {one["node_id"] for one in found["answer"]["plan"]["stages"]}
    assert "node-01-0" not in used and "previews" not in found
    assert run("place", "big", "--without", "zebra").code == 2


def test_a_refusal_names_what_would_help_and_keeps_the_ways_that_are_open(
    lab: RunningWorld, run: Run
) -> None:
    outcome = run("place", "big", "--dry-run", "--layers", "1,2")
    assert outcome.code == 1
    assert "What would help: do not prescribe the layers of each stage." in outcome.err
    table, _, others = outcome.out.partition("not open: ")
    assert "Fewest nodes" in table and "adds up to 3" not in outcome.out
    assert others.startswith("Tensor parallel: ")


def test_why_of_a_misspelt_model_guesses_it(lab: RunningWorld, run: Run) -> None:
    place(lab)
    outcome = run("why", "bigg")
    assert (outcome.code, outcome.out) == (2, "") and "did you mean big?" in outcome.err


def test_a_dry_run_that_ends_with_a_refusal_fails(lab: RunningWorld, run: Run) -> None:
    outcome = run("place", "big", "--dry-run", "--concurrency", "100000")
    assert outcome.code == 1
    assert "big needs" in outcome.err
    outcome = run("place", "bgi", "--dry-run")
    assert (outcome.code, outcome.out) == (1, "") and "did you mean big?" in outcome.err


def test_further_wishes_are_sent(lab: RunningWorld, run: Run) -> None:
    outcome = run(
        "place", "big", "--dry-run", "--json", "--must-use", "host-node-02-0", "--objective", "latency",
        "--apart-from", "big", "--min-zones", "1",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    request = json.loads(outcome.out)["answer"]["request"]
    assert (request["must_use"], request["objective"]) == (["node-02-0"], "latency")
    assert request["apart_from"] == ["big"]


def test_why_tells_the_decision_and_what_else_was_possible(lab: RunningWorld, run: Run) -> None:
    place(lab)
    outcome = run("why", "big")
    assert outcome.code == 0, outcome.err
    for words in (
        "big, instance 0123456789ab",
        "placed 2026-01-01T00:00:00Z by decision",
        "asked for: nothing special",
        "made again on what it was made on: the same answer, to the last figure",
        "other ways, on the same state:",
        "Without host-",
        "placed now: ",
    ):
        assert words.lower() in outcome.out.lower(), words
    found = json.loads(run("why", "0123", "--json").out)
    assert found["explained"]["is_identical"] is True
    index = found["decisions"][0]["index"]
    assert run("why", "big", "--decision", str(index)).code == 0
    assert run("why", "big", "--decision", "1").code == 1


def test_why_tells_what_was_asked_for_from_what_could_be_had_later() -> None:
    usual = {"model_id": "big", "min_nodes": 1, "device_ids": []}
    two = usual | {"min_nodes": 2}
    assert asked_line(usual, usual) == "asked for: nothing special"
    assert asked_line(two, two) == "asked for: min nodes 2"
    assert asked_line(two, usual) == "asked for: min nodes 2; this decision was made without that"
    assert asked_line(two | {"min_nodes": 3}, two) == (
        "asked for: min nodes 3; this decision was made for: min nodes 2"
    )


def test_why_of_one_that_is_gone(lab: RunningWorld, run: Run) -> None:
    place(lab)

    async def delete() -> None:
        command = DeleteInstance(command_id=CommandId("d"), instance_id=InstanceId("0123456789ab"))
        await lab.world.coordinator.send(command, timeout_s=30)

    lab.portal.call(delete)
    outcome = run("why", "0123456789ab")
    assert outcome.code == 0, outcome.err
    assert "deleted 2026-01-01T00:00:00Z" in outcome.out
    outcome = run("why", "zebra")
    assert (outcome.code, outcome.out) == (1, "") and "the log knows of none" in outcome.err
    assert "found by its whole id" in run("why", "0123").err
    outcome = run("why", "big")
    assert outcome.code == 1 and "big is a model, and no instance of it is placed" in outcome.err
