"""A stage process's environment: what is set, and what the user's own settings keep."""

import sys
import tempfile
from pathlib import Path

import pytest

from exo.worker.runner import environment
from exo.worker.runner.environment import stage_environment


@pytest.fixture
def with_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "find_openblas", lambda: "/usr/lib/libopenblas.so.0")


@pytest.mark.usefixtures("with_openblas")
def test_mlx_on_a_cpu_gets_a_fast_blas() -> None:
    made = stage_environment({"PATH": "/bin"}, engine="mlx", device="cpu:0")
    assert made["LD_PRELOAD"] == "/usr/lib/libopenblas.so.0"
    assert made["PATH"] == "/bin"
    assert made["HF_HUB_OFFLINE"] == "1"
    assert int(made["OPENBLAS_NUM_THREADS"]) >= 1


@pytest.mark.usefixtures("with_openblas")
@pytest.mark.parametrize(("engine", "device"), [("mlx", "cuda:0"), ("torch", "cpu:0")])
def test_nobody_else_does(engine: str, device: str) -> None:
    assert "LD_PRELOAD" not in stage_environment({}, engine=engine, device=device)


@pytest.mark.usefixtures("with_openblas")
@pytest.mark.parametrize(
    ("own", "made"),
    [
        ("libjemalloc.so", "libjemalloc.so /usr/lib/libopenblas.so.0"),
        ("/opt/my/libblas.so", "/opt/my/libblas.so"),
    ],
)
def test_what_the_user_preloads_stays(own: str, made: str) -> None:
    assert stage_environment({"LD_PRELOAD": own}, engine="mlx", device="cpu:0")["LD_PRELOAD"] == made


def test_what_the_user_set_stays() -> None:
    made = stage_environment({"OPENBLAS_NUM_THREADS": "7"}, engine="mlx", device="cpu:0")
    assert made["OPENBLAS_NUM_THREADS"] == "7"


def test_without_openblas_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_openblas", lambda: None)
    assert "LD_PRELOAD" not in stage_environment({}, engine="mlx", device="cpu:0")


@pytest.mark.skipif(sys.platform == "win32", reason="owners and modes as on Unix")
def test_compiled_code_goes_where_nobody_else_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = environment.private_scratch_dir()
    assert first is not None
    assert Path(first).stat().st_mode & 0o777 == 0o700
    assert environment.private_scratch_dir() == first
    # Somebody else may have been there first.
    Path(first).chmod(0o777)
    other = environment.private_scratch_dir()
    assert other is not None
    assert other != first
    # One for all stages, however often they are started.
    assert environment.private_scratch_dir() == other
    assert len(list(tmp_path.iterdir())) == 2
    assert Path(other).stat().st_mode & 0o777 == 0o700
    assert stage_environment({}, engine="mlx", device="cpu:0", scratch_dir=other)["TMPDIR"] == other


def test_looking_for_openblas_finds_a_file_or_nothing() -> None:
    found = environment.find_openblas()
    assert found is None or found.endswith(".so.0")
