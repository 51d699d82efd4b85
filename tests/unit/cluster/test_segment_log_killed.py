"""A writing process is killed, many times: what it had said was durable is there, and the log goes on."""

import subprocess
import sys
from pathlib import Path

from exo.cluster.log.segments import SegmentLog
from support.entries import entries

WRITER = """
import pathlib, sys
from exo.cluster.log.segments import SegmentLog
from support.entries import entries
log = SegmentLog(pathlib.Path(sys.argv[1]), segment_bytes=4000)
while True:
    first = log.last_index + 1
    log.append(entries(first, first + first % 4))
    log.sync()
    print(log.last_index, flush=True)
"""


def test_kill_minus_nine_many_times(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    acknowledged = 0
    for round_number in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": "tests", "PATH": ""},
            cwd=Path(__file__).parents[3],
        )
        assert writer.stdout is not None
        for _ in range(3 + 7 * round_number):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        rest, _ = writer.communicate()
        # A last line may be cut short by the kill itself.
        acknowledged = max([acknowledged, *map(int, rest.rsplit("\n", 1)[0].split())])
        log = SegmentLog(directory)
        assert log.last_index >= acknowledged
        assert list(log.read()) == entries(1, log.last_index)
        log.close()
    assert acknowledged > 100
