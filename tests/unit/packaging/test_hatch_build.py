"""The build hook: builds the dashboard when it is missing, and never stands in the way of a node."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed; run: uv sync --group check")
import hatch_build
from hatchling.bridge.app import Application

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for npm are shell scripts")

BUILDS = """#!/bin/sh
echo "$@" >> calls
[ "$1" = run ] || exit 0
mkdir -p ../src/exo/api/dashboard
echo page > ../src/exo/api/dashboard/index.html
"""


class Tree(SimpleNamespace):
    """A source tree with a stand-in for npm on PATH."""

    root: Path

    @property
    def index(self) -> Path:
        return self.root / "src/exo/api/dashboard/index.html"

    @property
    def calls(self) -> list[str]:
        file = self.root / "dashboard" / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def run_hook(self, version: str) -> None:
        arguments: list[Any] = [
            str(self.root),
            {},
            None,
            None,
            str(self.root / "dist"),
            "wheel",
            Application(),
        ]
        hatch_build.DashboardBuildHook(*arguments).initialize(version, {})


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "tree"
    (root / "dashboard").mkdir(parents=True)
    (root / "dashboard" / "package-lock.json").write_text("{}")
    return Tree(root=root)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "npm").write_text(script)
        (folder / "npm").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


def test_a_missing_dashboard_is_built(tree: Tree, npm: Any, capfd: pytest.CaptureFixture[str]) -> None:
    npm(BUILDS)
    tree.run_hook("editable")
    assert tree.calls == ["ci --no-audit --no-fund", "run build"]
    assert tree.index.read_text() == "page\n"
    assert "no dashboard" not in capfd.readouterr().out


def test_a_built_dashboard_is_left_alone(tree: Tree, npm: Any) -> None:
    npm(BUILDS)
    tree.index.parent.mkdir(parents=True)
    tree.index.write_text("mine")
    tree.run_hook("standard")
    assert tree.calls == []
    assert tree.index.read_text() == "mine"


def test_it_can_be_skipped(tree: Tree, npm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(BUILDS)
    monkeypatch.setenv("EXO_SKIP_DASHBOARD", "1")
    tree.run_hook("standard")
    assert tree.calls == []


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_a_failure_is_told_with_what_npm_said_and_stops_nothing(
    tree: Tree, npm: Any, capfd: pytest.CaptureFixture[str], version: str
) -> None:
    npm("#!/bin/sh\nfor i in $(seq 100); do echo line $i; done\nexit 7\n")
    tree.run_hook(version)
    told = "".join(capfd.readouterr())
    assert "npm ci --no-audit --no-fund ended with exit code 7" in told
    assert "line 100" in told and "line 60\n" not in told
    assert "cd dashboard && npm ci && npm run build" in told
    assert ("!!!!" in told) == (version == "standard")


def test_without_npm_it_says_how_to_build(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tree.run_hook("standard")
    told = "".join(capfd.readouterr())
    assert "npm is not on PATH" in told
    assert "Node.js 20.19 or newer" in told


def test_npm_that_builds_nothing_is_noticed(tree: Tree, npm: Any, capfd: pytest.CaptureFixture[str]) -> None:
    npm("#!/bin/sh\nexit 0\n")
    tree.run_hook("standard")
    assert "npm left no" in "".join(capfd.readouterr())


def test_npm_that_hangs_is_ended_with_its_children(
    tree: Tree, npm: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    npm("#!/bin/sh\nsleep 600 &\necho $! > child.new\nmv child.new child\nwait\n")
    child_file = tree.root / "dashboard" / "child"

    class ImpatientPopen(subprocess.Popen[str]):
        """Runs out of time as soon as npm's child is there, and not before."""

        def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
            while not child_file.exists():
                assert self.poll() is None
            return super().communicate(timeout=0.01)

    monkeypatch.setattr(subprocess, "Popen", ImpatientPopen)
    tree.run_hook("editable")
    assert "took longer than" in "".join(capfd.readouterr())
    try:
        psutil.Process(int(child_file.read_text())).wait(timeout=10)
    except psutil.NoSuchProcess:
        pass
