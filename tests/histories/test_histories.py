"""Histories recorded by earlier releases replay for ever, to the state they led to.

A history is `NAME.jsonl`, a log entry a line, and `NAME.state.json`, the state after the last one. A new release adds
files and never changes one: when this test fails, the change to the events is what is wrong. `support.recorded_story`
records new ones from simulated clusters.
"""

from pathlib import Path

import msgspec
import pytest

from exo.shared.apply import apply_entry
from exo.shared.invariants import check
from exo.shared.types.events import Decision, LogEntry
from exo.shared.types.state import State

HISTORIES = sorted(Path(__file__).parent.glob("*.jsonl"))


def replay(file: Path) -> tuple[State, set[str]]:
    """Fold a history; return its state and the kinds of events in it."""
    state = State()
    kinds: set[str] = set()
    for line in file.read_bytes().splitlines():
        entry = msgspec.json.decode(line, type=LogEntry)
        kinds.add(type(entry.event).__name__)
        state = apply_entry(state, entry)
        assert check(state) == []
    return state, kinds


@pytest.mark.parametrize("file", HISTORIES, ids=lambda file: file.stem)
def test_a_recorded_history_leads_to_its_recorded_state(file: Path) -> None:
    state, _ = replay(file)
    recorded = msgspec.json.decode(file.with_suffix(".state.json").read_bytes(), type=State)
    assert state == recorded


def test_the_histories_hold_every_kind_of_decision() -> None:
    recorded = {kind for file in HISTORIES for kind in replay(file)[1]}
    assert recorded == {kind.__name__ for kind in Decision.__args__}
