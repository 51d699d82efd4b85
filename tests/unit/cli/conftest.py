"""The command line against an application on a real port, served from another thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from exo.cli.main import main
from support.api_world import World, ready_state, served, unplaced_state
from support.cli_run import Outcome, Run, RunningWorld


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `exo ...` in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_exo(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["exo", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return run_exo


def _serve(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningWorld]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(served(world)) as server:
        monkeypatch.setenv("EXO_URL", server.url)
        yield RunningWorld(world, server.url, portal, server.context)


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningWorld]:
    """A cluster on which `toy` is ready as the instance `i`; EXO_URL leads to it."""
    yield from _serve(World(ready_state(), tmp_path), monkeypatch)


@pytest.fixture
def unplaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningWorld]:
    """A cluster on which nothing is placed; EXO_URL leads to it."""
    yield from _serve(World(unplaced_state(), tmp_path), monkeypatch)
