"""Simulated clusters of agreement cores: 500 schedules, and that they are what they claim to be.

`python -m exo_sim --schedules 20000 --jobs 2` is the long run.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from exo.cluster.raft import following
from exo_sim.__main__ import main
from exo_sim.report import Report
from exo_sim.schedule import MODES, run_schedule
from support.planting import plant

SEEDS = range(500)
JOBS = min(2, os.cpu_count() or 1)
KINDS = {
    "bit rot",
    "clock stall",
    "crash",
    "crash after a vote",
    "crash of the leader",
    "delay",
    "disk full",
    "duplication",
    "forced history",
    "frozen process",
    "hand-over",
    "loss",
    "membership change",
    "one-way partition",
    "partition",
    "reordering",
    "restart",
    "slow disk",
    "wrong clock",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of all schedules, run as CI and people run them."""
    path = tmp_path_factory.mktemp("schedules") / "report.json"
    command = ["-m", "exo_sim", "--schedules", str(len(SEEDS)), "--jobs", str(JOBS), "--json", str(path)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return msgspec.json.decode(path.read_bytes(), type=Report)


@pytest.mark.parametrize("seed", [10758, 19010])
def test_a_promise_that_was_broken_once_is_kept(seed: int) -> None:
    """A fact under two numbers; a voter that went before its successor came: see docs/benchmarks/schedules.md."""
    assert run_schedule(seed).broken is None


@pytest.mark.timeout(300)
def test_no_promise_is_broken(report: Report) -> None:
    assert [f"--seed {one.seed} --nodes {one.mode}: {one.broken}" for one in report.failures] == []


@pytest.mark.timeout(300)
def test_every_schedule_counts(report: Report) -> None:
    assert (report.schedules, report.too_quiet) == (len(SEEDS), 0)
    assert report.virtual_s >= 30 * len(SEEDS)


@pytest.mark.timeout(300)
def test_everything_goes_wrong_and_something_comes_of_it(report: Report) -> None:
    assert set(report.faults) == KINDS
    assert {"lost", "duplicated", "overtook", "cut off"} < set(report.messages)
    for what in (
        "commits",
        "acknowledged",
        "elections",
        "changes of voters",
        "reads confirmed",
        "reads refused",
    ):
        assert report.counts[what] > len(SEEDS), what
    assert report.counts["given up by force"] > 0


def test_the_seeds_cover_all_kinds_of_clusters() -> None:
    assert {run_schedule(seed).mode for seed in SEEDS[: len(MODES)]} == set(MODES)


def test_a_seed_replays_its_run() -> None:
    first, again = (run_schedule(7, is_telling=True) for _ in range(2))
    assert first == again
    assert len(first.story) > 50


def test_a_seed_replays_its_run_in_another_process() -> None:
    """The order of sets differs from one process to the next; nothing may depend on it."""
    command = [sys.executable, "-m", "exo_sim", "--seed", "3"]
    stories = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=60
        ).stdout
        for seed in ("1", "2")
    }
    assert len(stories) == 1


def test_telling_the_story_changes_nothing() -> None:
    told, untold = run_schedule(5, is_telling=True), run_schedule(5)
    assert msgspec.structs.replace(told, story=[]) == untold


# --- the command -----------------------------------------------------------------------------------------------------


def test_many_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert main(["--schedules", "4", "--first", "100", "--json", str(path)]) == 0
    report = msgspec.json.decode(path.read_bytes(), type=Report)
    assert report.schedules == 4
    assert report.failures == []
    said = capsys.readouterr().out
    assert "4 schedules" in said
    assert "no promise was broken" in said


def test_several_processes_report_the_same(tmp_path: Path) -> None:
    reports: list[Report] = []
    for jobs in ("1", "2"):
        path = tmp_path / f"{jobs}.json"
        command = ["-m", "exo_sim", "--schedules", "14", "--jobs", jobs, "--json", str(path)]
        subprocess.run([sys.executable, *command], capture_output=True, check=True, timeout=60)
        report = msgspec.json.decode(path.read_bytes(), type=Report)
        reports.append(msgspec.structs.replace(report, cpu_s=0.0))
    assert reports[0] == reports[1]


def test_a_broken_promise_is_reported_with_its_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "core.output.send_when_durable(source, _answer(core, last_index, is_accepted=True))"
    plant(monkeypatch, following, "_append_received", answer, answer.replace("_when_durable", ""))
    assert main(["--schedules", "1"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN" in said
    assert "--seed 0 --nodes 3" in said
    assert main(["--seed", "0"]) == 1
    assert "and its disk ends at" in capsys.readouterr().out.splitlines()[-3]


def test_an_unknown_kind_of_cluster_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--seed", "1", "--nodes", "4"])
    assert refused.value.code == 2
    assert "'1', '2', '3', '5', 'grow'" in capsys.readouterr().err
