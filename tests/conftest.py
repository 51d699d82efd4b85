"""What all tests share: a quiet environment, hypothesis profiles, and no process left behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile(
    "ci", deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the whole suite in two processes; a few tests are sooner done in this one."""
    is_whole = config.args_source is not pytest.Config.ArgsSource.ARGS and not config.option.keyword
    return min(2, os.cpu_count() or 1) if is_whole else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Keep each file's tests in one process, and those that start whole nodes all in the same."""
    return ByFile(config, log)


class ByFile(LoadScopeScheduling):
    """Whole nodes wait more than they work, and are best not disturbed by other nodes."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "nodes" if file.startswith(("tests/browser/", "tests/cluster/")) else file


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the user's own node, secret and settings out of every test."""
    for name in [name for name in os.environ if name.startswith("EXO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EXO_HOME", str(tmp_path / "exo-home"))
    monkeypatch.setenv("EXO_HOST_SECRET_FILE", str(tmp_path / "exo-secret" / "host.secret"))
    yield


@pytest.fixture(autouse=True, scope="module")
def no_process_left_behind() -> Iterator[None]:
    """Fail the module that leaves a child process running."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid not in before and child.status() != psutil.STATUS_ZOMBIE
    ]
    _, alive = psutil.wait_procs(left, timeout=5)
    stories = [f"{child.pid}: {' '.join(child.cmdline())}" for child in alive]
    for child in alive:
        child.kill()
    assert not stories, f"processes left behind: {stories}"
