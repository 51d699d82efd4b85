"""`exo` itself: flags and environment become settings, errors become one sentence and an exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from exo.cli import client as client_module
from exo.cli.node import parse_peers
from exo.settings import Settings
from exo.shared.errors import ConfigurationError, ExoError, LogCorruptError
from exo.shared.types.nodes import HostPort
from support.cli_run import Run, RunningWorld


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Keep the settings of nodes that would start."""
    found: list[Settings] = []
    module = ModuleType("exo.node")

    async def run_node(settings: Settings) -> None:
        found.append(settings)

    module.run_node = run_node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "exo.node", module)
    return found


def test_no_flags_are_the_usual_settings(run: Run, started: list[Settings]) -> None:
    assert run().code == 0
    assert started == [Settings(home=Path(os.environ["EXO_HOME"]))]


def test_every_flag_reaches_the_node(run: Run, started: list[Settings], tmp_path: Path) -> None:
    outcome = run(
        "-vv", "--port", "1", "--host", "localhost", "--cluster-port", "2", "--data-port", "3", "--discovery-port",
        "4", "--home", str(tmp_path / "h"), "--no-worker", "--peer", "127.0.0.1:5", "--peer", "localhost",
        "--namespace", "n", "--name", "me", "--models-dir", str(tmp_path), "--no-auto-place", "--no-discovery",
        "--telemetry-interval", "0.5", "--require-key",
    )  # fmt: skip
    assert outcome.code == 0
    assert started == [
        Settings(
            home=tmp_path / "h",
            host="localhost",
            port=1,
            cluster_port=2,
            data_port=3,
            discovery_port=4,
            is_discovery_enabled=False,
            namespace="n",
            peers=(HostPort("127.0.0.1", 5), HostPort("localhost", 52416)),
            is_worker=False,
            is_auto_place_enabled=False,
            is_key_required=True,
            models_dirs=(tmp_path,),
            telemetry_interval_s=0.5,
            verbosity=2,
            name="me",
        )
    ]


def test_every_flag_has_an_environment_variable(
    run: Run, started: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    variables = {
        "EXO_PORT": "1",
        "EXO_HOST": "localhost",
        "EXO_CLUSTER_PORT": "2",
        "EXO_DATA_PORT": "3",
        "EXO_DISCOVERY_PORT": "4",
        "EXO_HOME": str(tmp_path / "h"),
        "EXO_NO_WORKER": "1",
        "EXO_PEERS": "127.0.0.1:5, 127.0.0.1:6,127.0.0.1:5",
        "EXO_NAMESPACE": "n",
        "EXO_NAME": "me",
        "EXO_MODELS_DIRS": f"{one}{os.pathsep}{two}",
        "EXO_NO_AUTO_PLACE": "true",
        "EXO_NO_DISCOVERY": "1",
        "EXO_REQUIRE_KEY": "1",
        "EXO_TELEMETRY_INTERVAL": "0.5",
        "EXO_VERBOSITY": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run().code == 0
    (settings,) = started
    assert settings.peers == (HostPort("127.0.0.1", 5), HostPort("127.0.0.1", 6))
    assert (settings.is_worker, settings.is_auto_place_enabled, settings.is_discovery_enabled) == (False,) * 3
    assert (settings.models_dirs, settings.home, settings.name) == ((one, two), tmp_path / "h", "me")
    assert (settings.port, settings.cluster_port, settings.data_port, settings.discovery_port) == (1, 2, 3, 4)
    assert settings.is_key_required
    assert (settings.verbosity, settings.telemetry_interval_s, settings.namespace) == (1, 0.5, "n")
    help_text = run("--help").out
    for name in (*variables, "EXO_QUIET"):
        assert name in help_text
    monkeypatch.setenv("EXO_QUIET", "1")
    run()
    assert started[1].verbosity == -1


@pytest.mark.parametrize("text", ["nowhere:", "a:b:c", ":1", "h:0", "h:65536", "h:x"])
def test_a_peer_that_is_no_address_is_told(run: Run, started: list[Settings], text: str) -> None:
    outcome = run("--peer", text)
    assert outcome.code == 2
    assert outcome.err.startswith("exo: --peer: ")
    assert not started


def test_peers_may_be_ipv6_and_have_no_port() -> None:
    assert parse_peers(["[::1]:7", "host", ""]) == (HostPort("::1", 7), HostPort("host", 52416))
    with pytest.raises(ConfigurationError):
        parse_peers(["a b:c:d"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(ExoError("it failed"), 1), (ConfigurationError("it failed"), 2), (LogCorruptError("it failed"), 3)],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: ExoError, code: int
) -> None:
    module = ModuleType("exo.node")

    async def run_node(_: Settings) -> None:
        raise error

    module.run_node = run_node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "exo.node", module)
    assert run() == (code, "", "exo: it failed\n")
    assert "Traceback" in run("-vv").err


def test_a_fault_inside_is_one_sentence_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("exo.node")

    async def run_node(_: Settings) -> None:
        raise ValueError("innards")

    module.run_node = run_node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "exo.node", module)
    outcome = run()
    assert outcome.code == 1
    assert "ValueError: innards" in outcome.err
    assert "-vv" in outcome.err
    assert "Traceback" not in outcome.err
    assert "Traceback" in run("-v", "-v").err


@pytest.mark.parametrize(
    "arguments", [("--prot", "5"), ("statsu",), ("--port", "70000"), ("--port", "x"), ("place",)]
)
def test_bad_usage_is_exit_code_2_with_help(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Usage" in outcome.err


def test_a_models_folder_must_be_there(run: Run, tmp_path: Path) -> None:
    outcome = run("--models-dir", str(tmp_path / "missing"))
    assert (outcome.code, "is not a directory" in outcome.err) == (2, True)


def test_expecting_cuda_is_answered_at_the_start(
    run: Run, started: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo.cli.node.cuda_advice", lambda: "MLX has no CUDA: do this")
    assert "do this" not in run().err
    monkeypatch.setenv("EXO_USE_CUDA", "1")
    assert "EXO_USE_CUDA is set, but MLX has no CUDA: do this" in run().err
    assert len(started) == 2


def test_help_and_version_load_nothing_heavy() -> None:
    heavy = [
        "pydantic",
        "fastapi",
        "httpx",
        "mlx",
        "numpy",
        "msgspec",
        "anyio",
        "uvicorn",
        "psutil",
        "loguru",
    ]
    for flag in ("--help", "--version"):
        code = (
            f"import sys; sys.argv = ['exo', {flag!r}]\n"
            "from exo.cli.main import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == "[]\n"
        assert done.stdout


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exo", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout[0].isdigit()


def test_the_running_node_of_a_data_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = "http://127.0.0.1:52415"
    monkeypatch.setenv("EXO_HOME", str(tmp_path))
    assert client_module.running_node_url() == usual
    note = '{"pid": %d, "api_address": {"host": "%s", "port": 7}}'
    (tmp_path / "node.json").write_text(note % (os.getpid(), "127.0.0.1"))
    assert client_module.running_node_url() == "http://127.0.0.1:7"
    (tmp_path / "node.json").write_text(note % (os.getpid(), "::1"))
    assert client_module.running_node_url() == "http://[::1]:7"
    (tmp_path / "node.json").write_text(note % (2**22 + 1, "127.0.0.1"))
    assert client_module.running_node_url() == usual
    (tmp_path / "node.json").write_text("{")
    assert client_module.running_node_url() == usual
    monkeypatch.setenv("EXO_PORT", "9")
    assert client_module.running_node_url() == "http://127.0.0.1:9"


def note_node(home: Path, url: str) -> None:
    """Write what a running node notes in its data directory."""
    home.mkdir()
    host, _, port = url.removeprefix("http://").rpartition(":")
    note = {"pid": os.getpid(), "api_address": {"host": host, "port": int(port)}}
    (home / "node.json").write_text(json.dumps(note))


def test_a_data_directory_before_a_command_says_which_node_to_ask(
    ready: RunningWorld, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_node(tmp_path / "other", ready.url)
    monkeypatch.setenv("EXO_URL", "http://127.0.0.1:1")
    assert run("status").code == 1
    outcome = run("--home", str(tmp_path / "other"), "status")
    assert (outcome.code, "toy" in outcome.out) == (0, True)
    # A flag behind the command is nearer, and no other node is asked where none runs.
    assert run("--home", str(tmp_path / "other"), "status", "--url", "http://127.0.0.1:1").code == 1
    monkeypatch.setenv("EXO_URL", ready.url)
    nobody = run("--home", str(tmp_path / "nobody"), "status")
    assert (nobody.code, "no exo node runs on the data directory" in nobody.err) == (1, True)


def test_doctor_looks_at_the_data_directory_before_it(run: Run, tmp_path: Path) -> None:
    before, behind = tmp_path / "before", tmp_path / "behind"
    assert str(before) in run("--home", str(before), "doctor", "--json").out
    assert str(behind) in run("--home", str(before), "doctor", "--json", "--home", str(behind)).out


@pytest.mark.parametrize(
    "flags",
    [("--port", "8"), ("--no-worker",), ("--peer", "127.0.0.1"), ("--models-dir", "/tmp"), ("--name", "me")],
)
def test_flags_of_a_node_before_a_command_are_refused(run: Run, flags: tuple[str, ...]) -> None:
    outcome = run(*flags, "status")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"exo: {flags[0]} is for starting a node")
    assert outcome.err.count("\n") == 1


def test_variables_of_a_node_do_not_disturb_a_command(
    ready: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXO_NO_WORKER", "1")
    monkeypatch.setenv("EXO_NAME", "me")
    assert run("status").code == 0
    assert ready.url


@pytest.mark.parametrize(
    "arguments", [("status", "-vv"), ("-vv", "status"), ("chat", "toy", "Hi", "-v", "-v")]
)
def test_tracebacks_are_shown_wherever_they_are_asked_for(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments, *(() if arguments[0] == "-vv" else ("--url", "http://127.0.0.1:1")))
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_a_prompt_is_no_flag(run: Run) -> None:
    outcome = run("chat", "toy", "--url", "http://127.0.0.1:1", "--", "-vv")
    assert (outcome.code, "Traceback" in outcome.err) == (1, False)


def test_urls_may_leave_the_scheme_out() -> None:
    assert client_module.check_url("localhost:7/") == "http://localhost:7"
    for text in ("ftp://x", "http://", "http://[::1"):
        with pytest.raises(ConfigurationError):
            client_module.check_url(text)
