"""Plain connections are for loopback: seen with a real address that is not, in a network namespace of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "support" / "other_address.py"
UNSHARE = ["unshare", "--net", "--map-root-user"]


def reason_why_not() -> str | None:
    if sys.platform != "linux" or not all(shutil.which(tool) for tool in ("unshare", "ip")):
        return "needs Linux with unshare and ip"
    may = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], check=False, capture_output=True)
    return None if may.returncode == 0 else f"no right to make a namespace: {may.stderr.decode().strip()}"


@pytest.mark.privileged
def test_only_certificates_count_from_an_address_that_is_not_loopback() -> None:
    reason = reason_why_not()
    if reason is not None:
        pytest.skip(reason)
    command = [*UNSHARE, sys.executable, str(SCRIPT)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout.endswith("ok\n"), ran.stderr
