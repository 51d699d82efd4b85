"""The count of a node's starts: it only grows, whatever becomes of its file."""

from pathlib import Path

import pytest

from exo.cluster.boots import count_boot
from exo.shared.errors import ConfigurationError

NOW_S = 1_800_000_000.0


def test_each_start_counts_once(tmp_path: Path) -> None:
    assert [count_boot(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boots"]


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"-4", b"1e9", b"9" * 40, "٣".encode()])
def test_a_damaged_count_goes_on_from_more_than_there_were(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "boots").write_bytes(damage)
    first = count_boot(tmp_path, now_s=lambda: NOW_S)
    assert first > 60_000
    assert count_boot(tmp_path, now_s=lambda: 0.0) == first + 1


def test_a_damaged_count_and_a_clock_before_its_time(tmp_path: Path) -> None:
    (tmp_path / "boots").write_text("?")
    assert count_boot(tmp_path, now_s=lambda: 0.0) == 1


def test_a_count_that_cannot_be_kept_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "boots").mkdir()
    with pytest.raises(ConfigurationError, match=r"boots: .*; make room there"):
        count_boot(tmp_path)
