"""Scenario files: what a simulated cluster does is what they say. `python -m exo_sim --scenario FILE --rewrite`."""

from pathlib import Path

import pytest

from exo_sim.__main__ import main
from exo_sim.errors import ScenarioError
from exo_sim.scenario import COMMANDS, play

FOLDER = Path(__file__).parents[1] / "scenarios"
FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_comes_of_a_scenario_is_what_it_says(path: Path) -> None:
    assert play(path.read_text()) == path.read_text()


def test_every_command_is_shown_in_some_scenario() -> None:
    told = "\n".join(path.read_text() for path in FILES)
    begun = {line.split()[0] for line in told.splitlines() if line and not line.startswith("#")}
    assert {line.split()[0] for line in COMMANDS.splitlines()} <= begun


def test_no_scenario_shows_a_broken_promise() -> None:
    assert [path.name for path in FILES if "BROKEN" in path.read_text()] == []


def test_a_scenario_that_says_something_else_is_shown_and_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# Mine.\ncluster a\nrun 0.2\n----\nnothing at all\n")
    assert main(["--scenario", str(path)]) == 1
    assert "-nothing at all" in capsys.readouterr().out
    assert main(["--scenario", str(path), "--rewrite"]) == 0
    assert "leads term 2" in path.read_text()
    assert path.read_text().startswith("# Mine.\ncluster a\n")
    assert main(["--scenario", str(path)]) == 0


def test_a_broken_promise_is_part_of_what_comes_of_it() -> None:
    played = play("cluster a b c\ncrash b c\nuntil one 2\n----\n")
    assert "BROKEN: not one cluster 2 s" in played


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cluster a\nrun 1\n", "line 1: no line of dashes follows"),
        ("run 1\n----\n", "there is no cluster yet"),
        ("cluster a\n----\n\ndance\n----\n", "line 4: 'dance' is no command"),
        ("cluster a\nrun fast\n----\n", "line 2: 'run fast'"),
        ("cluster a\ncrash z\n----\n", "line 2: 'crash z'"),
    ],
)
def test_a_scenario_that_cannot_be_played_says_where(text: str, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        play(text)
