"""`exo doctor`: each finding with its next step, on machines made to order."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from exo.cli import checks, doctor, nvidia
from exo.cli.checks import Finding
from exo.shared.types.models import ModelCard
from support.cli_run import Run, RunningWorld
from support.states import card


def test_every_check_runs_on_this_machine(run: Run, tmp_path: Path) -> None:
    outcome = run("doctor", "--json", "--home", str(tmp_path / "home"))
    report = json.loads(outcome.out)
    assert outcome.code == 0, report
    found = {check["name"]: check for check in report["checks"]}
    for name in (
        "python",
        "machine",
        "device",
        "nvidia",
        "engine",
        "mlx",
        "data directory",
        "ports",
        "dashboard",
    ):
        assert name in found
        assert "cannot be checked" not in found[name]["text"]
    assert "GFLOP/s" in found["mlx"]["text"]
    assert not (tmp_path / "home").exists()


def test_a_broken_finding_is_an_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: [Finding("mlx", "broken", "no [good]", "do this")])
    outcome = run("doctor")
    assert outcome.code == 1
    assert "no [good]" in outcome.out
    assert "→ do this" in outcome.out


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> list[Finding]:
        raise RuntimeError("innards")

    for name in dir(checks):
        if name.startswith("check_") and name not in ("check_home", "check_models"):
            monkeypatch.setattr(checks, name, list)
    monkeypatch.setattr(checks, "check_mlx", fail)
    broken = [finding for finding in doctor.examine(tmp_path) if finding.status == "broken"]
    assert [(finding.name, finding.text) for finding in broken] == [
        ("mlx", "cannot be checked: RuntimeError: innards")
    ]


def test_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (there,) = checks.check_home(tmp_path)
    assert (there.status, "can be written" in there.text) == ("ok", True)
    (new,) = checks.check_home(tmp_path / "a" / "b")
    assert (new.status, "will be made" in new.text) == ("ok", True)
    (tmp_path / "file").write_text("")
    (blocked,) = checks.check_home(tmp_path / "file" / "home")
    assert (blocked.status, "EXO_HOME" in blocked.next_step) == ("broken", True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    (closed,) = checks.check_home(tmp_path)
    assert closed.status == "broken"


class ScriptedStore:
    """A model store that finds what a test wrote down."""

    cards: tuple[ModelCard, ...] = ()
    unreadable: dict[str, str] = {}
    folders: tuple[Path, ...] = ()

    def __init__(self, folders: tuple[Path, ...]) -> None:
        type(self).folders = folders

    def scan(self) -> tuple[ModelCard, ...]:
        return self.cards

    def directory(self, model_id: str) -> Path:
        return Path("/models") / model_id


def test_models_and_their_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo.worker.models.store.ModelStore", ScriptedStore)
    monkeypatch.setenv("EXO_MODELS_DIRS", f"/one{os.pathsep}/two")
    monkeypatch.setattr(ScriptedStore, "cards", (card("toy"), card("half", problem="it is truncated")))
    monkeypatch.setattr(ScriptedStore, "unreadable", {"odd": "it has no config.json"})
    found = checks.check_models(tmp_path)
    assert [(one.status, one.text.partition(":")[0]) for one in found] == [
        ("ok", "toy"),
        ("note", "half"),
        ("note", "odd"),
    ]
    assert "it is truncated" in found[1].text
    assert ScriptedStore.folders == (tmp_path / "models", Path("/one"), Path("/two"))
    monkeypatch.setattr(ScriptedStore, "cards", (card("toy"), replace(card("llama"), format="gguf")))
    assert "llama: no engine here can run gguf" in checks.check_models(tmp_path)[1].text
    monkeypatch.setattr(ScriptedStore, "cards", ())
    monkeypatch.setattr(ScriptedStore, "unreadable", {})
    (none,) = checks.check_models(tmp_path)
    assert str(tmp_path / "models") in none.next_step


def test_ports(ready: RunningWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXO_PORT", "EXO_CLUSTER_PORT", "EXO_DATA_PORT"):
        monkeypatch.setenv(name, "0")
    assert checks.check_ports()[0].status == "ok"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("EXO_CLUSTER_PORT", str(port))
        (taken,) = checks.check_ports()
        assert taken.status == "note"
        assert str(port) in taken.text
        assert "exo --cluster-port 0" in taken.next_step
    monkeypatch.setenv("EXO_PORT", ready.url.rpartition(":")[2])
    monkeypatch.setenv("EXO_CLUSTER_PORT", "0")
    (running,) = checks.check_ports()
    assert (running.status, ready.url in running.text) == ("ok", True)


def gpus(
    monkeypatch: pytest.MonkeyPatch, *, command: str, has_gpu: bool, has_mlx: bool, is_wanted: bool
) -> Finding:
    advice = nvidia.Advice(command, "the reason", has_gpu=has_gpu)
    monkeypatch.setattr(nvidia, "advise", lambda: advice)
    monkeypatch.setattr(nvidia, "has_mlx_cuda", lambda: has_mlx)
    monkeypatch.setattr(nvidia, "wants_cuda", lambda: is_wanted)
    (found,) = checks.check_nvidia()
    return found


def test_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, plain = nvidia.CUDA_COMMAND, nvidia.PLAIN_COMMAND
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"command": cuda, "has_gpu": True, "has_mlx": True, "is_wanted": True}, "ok", ""),
        ({"command": cuda, "has_gpu": True, "has_mlx": False, "is_wanted": False}, "note", cuda),
        ({"command": cuda, "has_gpu": True, "has_mlx": False, "is_wanted": True}, "broken", cuda),
        ({"command": plain, "has_gpu": True, "has_mlx": False, "is_wanted": False}, "note", "update"),
        ({"command": plain, "has_gpu": False, "has_mlx": False, "is_wanted": True}, "broken", "EXO_USE_CUDA"),
        ({"command": plain, "has_gpu": False, "has_mlx": False, "is_wanted": False}, "ok", ""),
    ]
    for machine, status, step in cases:
        found = gpus(monkeypatch, **machine)
        assert found.status == status, machine
        assert step in found.next_step


def test_an_mlx_that_crashes_is_broken_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_MLX_PROBE", "import os; os.abort()")
    (found,) = checks.check_mlx()
    assert found.status == "broken"
    monkeypatch.setattr(checks, "_MLX_PROBE", "raise ImportError('libcuda.so.1 is missing')")
    (found,) = checks.check_mlx()
    assert "libcuda.so.1 is missing" in found.text
    monkeypatch.setattr(checks, "_MLX_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(checks, "_MLX_TIMEOUT_S", 0.5)
    (found,) = checks.check_mlx()
    assert "within 0.5 s" in found.text


def test_the_mlx_backend_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"version": "1", "device": "gpu", "gflops": 5.0}
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Metal" in checks.describe_mlx(found)
    monkeypatch.setattr(sys, "platform", "linux")
    assert "CUDA" in checks.describe_mlx(found)
    assert "CPU" in checks.describe_mlx(found | {"device": "cpu"})


def test_without_multicast_the_way_round_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(socket.socket):
        def setsockopt(self, *_: Any) -> None:
            raise OSError(19, "No such device")

    monkeypatch.setattr(socket, "socket", Closed)
    (found,) = checks.check_multicast()
    assert (found.status, "No such device" in found.text) == ("note", True)
    assert "--peer" in found.next_step
