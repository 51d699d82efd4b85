"""What a node remembers of its devices, and when it does not believe it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from msgspec.structs import replace

from exo.gpu.registry import DeviceRegistry
from support.states import gpu

DEVICE = replace(gpu("n", 1000), uuid="GPU-1", driver_version="580.65")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gpu_registry.json"


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(message.record["message"]), level="WARNING")
    yield heard
    logger.remove(sink)


def test_what_was_remembered_is_known_at_the_next_start(file: Path, warnings: list[str]) -> None:
    registry = DeviceRegistry(file, "1.0")
    assert not registry.knows(DEVICE)
    registry.remember([DEVICE])
    assert registry.knows(DEVICE)
    assert DeviceRegistry(file, "1.0").knows(DEVICE)
    assert json.loads(file.read_text())["devices"][0]["driver_version"] == "580.65"
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    assert warnings == []


@pytest.mark.parametrize(
    "change",
    [
        {"driver_version": "580.66"},
        {"memory_total_bytes": 1001},
        {"name": "Other GPU"},
        {"uuid": "GPU-2"},
        {"pci_address": "0000:01:00.0"},
    ],
)
def test_another_driver_or_device_has_to_show_again_that_it_computes(
    file: Path, change: dict[str, Any]
) -> None:
    DeviceRegistry(file, "1.0").remember([DEVICE])
    assert not DeviceRegistry(file, "1.0").knows(replace(DEVICE, **change))


def test_another_release_checks_again(file: Path) -> None:
    DeviceRegistry(file, "1.0").remember([DEVICE])
    assert not DeviceRegistry(file, "1.1").knows(DEVICE)


def test_what_is_not_seen_any_more_is_forgotten(file: Path) -> None:
    registry = DeviceRegistry(file, "1.0")
    registry.remember([DEVICE])
    registry.remember([])
    assert not DeviceRegistry(file, "1.0").knows(DEVICE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b'{"format": 1, "devices": [{"name": 3}]}',
        pytest.param(b'{"x": ' + b"[" * 100_000, id="deeper than a decoder goes"),
    ],
)
def test_a_corrupt_file_is_ignored_with_one_line_and_written_anew(
    file: Path, content: bytes, warnings: list[str]
) -> None:
    file.write_bytes(content)
    registry = DeviceRegistry(file, "1.0")
    assert not registry.knows(DEVICE) and not registry.knows(DEVICE)
    assert len(warnings) == 1 and "gpu_registry.json cannot be read" in warnings[0]
    registry.remember([])
    assert json.loads(file.read_text()) == {"format": 1, "devices": []}
    registry.remember([DEVICE])
    assert DeviceRegistry(file, "1.0").knows(DEVICE)
    assert len(warnings) == 1


def test_a_newer_format_is_not_believed(file: Path, warnings: list[str]) -> None:
    file.write_text('{"format": 2, "devices": []}')
    registry = DeviceRegistry(file, "1.0")
    assert not registry.knows(DEVICE)
    registry.remember([DEVICE])
    assert DeviceRegistry(file, "1.0").knows(DEVICE)


def test_what_has_not_changed_is_not_written(file: Path) -> None:
    registry = DeviceRegistry(file, "1.0")
    registry.remember([DEVICE])
    file.unlink()
    registry.remember([DEVICE])
    assert not file.exists()


def test_a_folder_that_cannot_be_written_to_is_only_said(tmp_path: Path, warnings: list[str]) -> None:
    registry = DeviceRegistry(tmp_path / "missing" / "gpu_registry.json", "1.0")
    registry.remember([DEVICE])
    assert registry.knows(DEVICE)
    assert len(warnings) == 1 and "the next start checks all devices" in warnings[0]
