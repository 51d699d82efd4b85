"""The audit log: durable lines in a chain, bounded files, and every cut in the middle noticed."""

import itertools
import json
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from exo.api import access_audit
from exo.api.access_audit import FILE_NAME, AuditLog, read_lines, verify


def log_in(folder: Path, *, file_bytes_max: int = 10_000, files_max: int = 3) -> AuditLog:
    return AuditLog(
        folder, lambda: "2026-01-01T00:00:00Z", file_bytes_max=file_bytes_max, files_max=files_max
    )


async def note(log: AuditLog, what: str = "CreateKey") -> None:
    await log.record(who="loopback", address="127.0.0.1", what=what, result="done", index=7)


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


async def test_lines_are_durable_private_and_chained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = access_audit.sync_descriptor
    monkeypatch.setattr(access_audit, "sync_descriptor", lambda fd: (synced.append(fd), sync(fd)))
    log = log_in(tmp_path / "audit")
    for _ in range(3):
        await note(log)
    path = tmp_path / "audit" / FILE_NAME
    assert len(synced) == 3
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert lines[0]["previous"] == "" and lines[1]["previous"] != lines[2]["previous"]
    found = await log.verify()
    assert (found.problems, found.line_count, found.first_seq, found.last_seq) == ((), 3, 1, 3)


async def test_the_chain_goes_on_after_a_restart_and_over_files(tmp_path: Path) -> None:
    for _ in range(5):
        log = log_in(tmp_path, file_bytes_max=600)
        for _ in range(2):
            await note(log)
    assert sizes(tmp_path).keys() == {"audit.log", "audit.log.1", "audit.log.2"}
    assert max(sizes(tmp_path).values()) <= 600
    found = verify(tmp_path)
    assert found.problems == () and found.last_seq == 10
    assert found.first_seq is not None and found.first_seq > 1
    seqs = [line.seq for line in await log.entries(limit=100)]
    assert seqs == list(range(found.first_seq, 11))


async def test_reading_takes_the_newest_or_what_is_behind_a_number(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    assert await log.entries(limit=5) == []
    for _ in range(6):
        await note(log)
    assert [line.seq for line in await log.entries(limit=2)] == [5, 6]
    assert [line.seq for line in await log.entries(limit=2, after=1)] == [2, 3]
    assert await log.entries(limit=2, after=6) == []


async def test_a_line_that_a_crash_cut_off_stays_and_the_chain_goes_on(tmp_path: Path) -> None:
    await note(log_in(tmp_path))
    await note(log_in(tmp_path))
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-30])
    await note(log_in(tmp_path))
    assert path.read_bytes().count(b"\n") == 3
    assert [line.seq for line in read_lines(tmp_path, limit=9)] == [1, 3]
    assert verify(tmp_path).problems == ()


@given(data=st.data())
def test_whatever_is_changed_or_taken_out_before_the_end_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("audit")

    async def write() -> None:
        log = log_in(folder, file_bytes_max=600, files_max=9)
        for number in range(8):
            await note(log, f"command {number}")

    anyio.run(write)
    paths = sorted(folder.iterdir())
    assert len(paths) > 2 and verify(folder).problems == ()
    path = data.draw(st.sampled_from(paths))
    lines = path.read_bytes().splitlines(keepends=True)
    is_newest = path.name == FILE_NAME
    number = data.draw(st.integers(0, len(lines) - (2 if is_newest and len(lines) > 1 else 1)))
    if is_newest and number == len(lines) - 1:
        return  # The very last line has none behind it that would know.
    match data.draw(st.sampled_from(["drop", "change", "repeat", "swap"])):
        case "drop":
            is_oldest = path == max(paths, key=lambda one: one.name) and number == 0
            if is_oldest:
                return  # As if the file before it had been rotated away.
            del lines[number]
        case "change":
            lines[number] = lines[number].replace(b"loopback", b"somebody")
        case "repeat":
            lines.insert(number, lines[number])
        case _:
            if number + 1 >= len(lines):
                return
            lines[number], lines[number + 1] = lines[number + 1], lines[number]
    path.write_bytes(b"".join(lines))
    assert verify(folder).problems


async def test_texts_from_outside_stay_on_their_line(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    await log.record(
        who="key a\nb", address="x" * 999, what="request", result="refused", details={"path": "/\x1b[2J\n{}"}
    )
    (line,) = await log.entries(limit=1)
    assert line.who == "key a b" and len(line.address) == 256 and line.details == {"path": "/ [2J {}"}


async def test_a_disk_that_fails_is_told_and_the_command_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_in(tmp_path)
    await note(log)
    failures = itertools.count()
    write = access_audit.os.write

    def failing(descriptor: int, data: bytes) -> int:
        if next(failures) < 2:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(access_audit.os, "write", failing)
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING")
    await note(log)
    await note(log)
    assert len(lines) == 1 and "No space left" in lines[0], "one line is enough of it"
    await note(log)
    await note(log)
    logger.remove(sink)
    assert len(lines) == 2 and "lacks 2 lines" in lines[1]
    assert [line.seq for line in await log.entries(limit=9)] == [1, 2, 3]
    assert verify(tmp_path).problems == ()


async def test_lines_of_many_at_once_come_one_by_one(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(note, log)
    assert [line.seq for line in await log.entries(limit=99)] == list(range(1, 11))
    assert (await log.verify()).problems == ()
