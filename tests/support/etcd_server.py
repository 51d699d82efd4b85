"""A real etcd on loopback for tests: free ports, a folder of its own, killed and started again at will."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from exo.shared.types.nodes import HostPort
from support.relay import Relay

START_TIMEOUT_S = 20.0


def require_etcd() -> str:
    """Return where etcd is, or skip the test."""
    found = shutil.which("etcd")
    if found is None:
        pytest.skip("etcd is not installed: apt-get install etcd-server")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class EtcdServer:
    """One member, quick at elections. `arguments` come on top, such as those for TLS."""

    def __init__(
        self,
        home: Path,
        *,
        arguments: Sequence[str] = (),
        scheme: str = "http",
        quota_bytes: int | None = None,
    ) -> None:
        self.home = home
        self.address = HostPort("127.0.0.1", free_port())
        self._peer_port = free_port()
        self._scheme = scheme
        self._arguments = [*arguments, *([f"--quota-backend-bytes={quota_bytes}"] if quota_bytes else [])]
        self._program = require_etcd()
        self.process: subprocess.Popen[bytes] | None = None
        home.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"etcd://{self.address}"

    def start(self) -> "EtcdServer":
        """Start it with what its folder holds; `until_ready` says when it answers."""
        client, peer = f"{self._scheme}://{self.address}", f"http://127.0.0.1:{self._peer_port}"
        with (self.home / "etcd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self._program,
                    f"--data-dir={self.home / 'data'}",
                    f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=default={peer}",
                    "--heartbeat-interval=20",
                    "--election-timeout=200",
                    "--logger=zap",
                    "--log-level=warn",
                    *self._arguments,
                ],
                stdout=log,
                stderr=log,
            )
        return self

    def until_ready(self) -> "EtcdServer":
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.home / "etcd.log").read_text()
            try:
                self.call("/v3/maintenance/status", {})
                return self
            except OSError:
                assert time.monotonic() < deadline_s, (self.home / "etcd.log").read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """As `kill -9` does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def call(self, path: str, body: dict[str, Any], *, token: str | None = None) -> dict[str, Any]:
        """Ask the JSON gateway, past the code under test."""
        headers = {"Authorization": token} if token else {}
        request = urllib.request.Request(
            f"{self._scheme}://{self.address}{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.loads(response.read())

    # --- as an operator would -----------------------------------------------------------------------------------

    def keys(self, prefix: str) -> list[str]:
        answer = self.call(
            "/v3/kv/range", {"key": text64(prefix), "range_end": text64(prefix + "\x7f"), "keys_only": True}
        )
        return [base64.b64decode(found["key"]).decode() for found in answer.get("kvs", [])]

    def delete(self, prefix: str) -> None:
        self.call("/v3/kv/deleterange", {"key": text64(prefix), "range_end": text64(prefix + "\x7f")})

    def revision(self) -> int:
        return int(self.call("/v3/maintenance/status", {})["header"]["revision"])

    def compact(self) -> None:
        """Forget all history."""
        self.call("/v3/kv/compaction", {"revision": str(self.revision()), "physical": True})

    def fill(self, prefix: str) -> None:
        """Write until the quota is reached."""
        with contextlib.suppress(urllib.error.HTTPError):
            for number in range(1000):
                self.call("/v3/kv/put", {"key": text64(f"{prefix}{number}"), "value": text64("x" * 200_000)})

    def make_room(self, prefix: str) -> None:
        """Delete what is there, compact, defragment and disarm."""
        self.delete(prefix)
        self.compact()
        self.call("/v3/maintenance/defragment", {})
        for alarm in self.call("/v3/maintenance/alarm", {"action": "GET"}).get("alarms", []):
            self.call("/v3/maintenance/alarm", {**alarm, "action": "DEACTIVATE"})

    def demand_password(self, user: str, password: str) -> None:
        """Let only this user, and `root` with the same password, in."""
        for name in dict.fromkeys(("root", user)):
            self.call("/v3/auth/user/add", {"name": name, "password": password})
        self.call("/v3/auth/role/add", {"name": "root"})
        self.call("/v3/auth/user/grant", {"user": "root", "role": "root"})
        self.call("/v3/auth/enable", {})

    def grant(self, user: str, prefix: str, *, password: str) -> None:
        """Give a user the right to read and write under a prefix."""
        token = self.call("/v3/auth/authenticate", {"name": "root", "password": password})["token"]
        permission = {"permType": "READWRITE", "key": text64(prefix), "range_end": text64(prefix + "\x7f")}
        self.call("/v3/auth/role/add", {"name": user}, token=token)
        self.call("/v3/auth/role/grant", {"name": user, "perm": permission}, token=token)
        self.call("/v3/auth/user/grant", {"user": user, "role": user}, token=token)


def text64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@contextlib.contextmanager
def running_etcd(home: Path, **options: Any) -> Iterator[EtcdServer]:
    """A server that answers, and is gone afterwards."""
    server = EtcdServer(home, **options).start()
    try:
        yield server.until_ready()
    finally:
        server.kill()


class Cable(Relay):
    """Between one node and etcd: can be pulled out, and put in again, which ends what was connected before."""

    def cut(self) -> None:
        self.is_cut = True

    def mend(self) -> None:
        self.is_cut = False
        for writer in self._writers:
            writer.close()
