"""Which engines can run here is found out without importing them, and said with the next step."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

from exo.engines import registry


def test_what_is_installed_can_run() -> None:
    assert registry.engine_problems() == {"mlx": None}
    assert registry.available_engines() == ("mlx",)


def test_a_missing_package_is_named_with_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlx_lm" else object())
    problem = registry.engine_problems()["mlx"]
    assert problem is not None
    assert "mlx-lm is not installed" in problem
    assert "uv sync" in problem
    assert registry.available_engines() == ()


def test_mlx_without_a_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    problem = registry.engine_problems()["mlx"]
    assert problem is not None
    assert "without a back end" in problem


def test_a_platform_without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    problem = registry.engine_problems()["mlx"]
    assert problem is not None
    assert "does not run on win32" in problem


def test_the_nodes_side_imports_no_engine() -> None:
    code = (
        "import sys\n"
        "import exo.worker.runner.supervisor, exo.dataplane.client\n"
        "from exo.engines.registry import available_engines\n"
        "available_engines()\n"
        "print(*sorted({'mlx', 'mlx_lm', 'transformers', 'tokenizers', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("system", "machine", "installed", "backends"),
    [
        ("linux", "x86_64", {"mlx-cpu"}, ("cpu",)),
        ("linux", "x86_64", {"mlx-cuda-13"}, ("cuda", "cpu")),
        ("darwin", "arm64", set[str](), ("metal", "cpu")),
        ("darwin", "x86_64", set[str](), ("cpu",)),
    ],
)
def test_an_engine_uses_the_devices_that_it_was_built_for(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, installed: set[str], backends: tuple[str, ...]
) -> None:
    monkeypatch.setattr(registry.sys, "platform", system)
    monkeypatch.setattr(registry.platform, "machine", lambda: machine)
    monkeypatch.setattr(registry, "_is_installed", lambda name: name in installed)
    assert registry.engine_backends() == {"mlx": backends}
