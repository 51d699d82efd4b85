"""A writing process is killed, many times: what it had said was durable is there, and nothing that it had cut off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("EXO_TEST_KILLS", "25"))
SEED = os.environ.get("EXO_TEST_SEED", "1")


@pytest.mark.skipif(sys.platform == "win32", reason="writers are forked, which Windows cannot")
@pytest.mark.timeout(120 + KILLS)
def test_kill_minus_nine_many_times(tmp_path: Path) -> None:
    """Set EXO_TEST_KILLS for more kills, EXO_TEST_SEED for others."""
    killer = subprocess.run(
        [
            sys.executable,
            ROOT / "tests" / "support" / "log_killer.py",
            tmp_path / "log",
            str(KILLS),
            SEED,
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    assert killer.returncode == 0, killer.stderr
    counts = json.loads(killer.stdout)
    print(counts)
    assert counts["kills"] == KILLS
    for step in ("append", "truncate", "vote", "snapshot", "tidy"):
        assert counts[step] >= 3, counts
