"""Starts real nodes, for benchmarks and for tests that need the whole process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil


class NodeFailedError(Exception):
    """Raised when a node did not become ready; holds what it printed."""


class NodeProcess:
    """One `exo` process with a data directory of its own and any free ports. Use in `with`."""

    module = "exo"
    """What Python runs; another one ends up running `exo` with the same arguments."""

    def __init__(
        self,
        home: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        namespace: str | None = None,
    ) -> None:
        self.home = home
        self.arguments = arguments
        self.environment = dict(environment or {})
        self.namespace = namespace or f"test-{os.getpid()}"
        self.log_file = home.parent / f"{home.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start_s = 0.0
        """Seconds from the start of the process to its first good answer."""

    @property
    def url(self) -> str:
        """Where its API answers."""
        address = self.addresses["api_address"]
        return f"http://{address['host']}:{address['port']}"

    @property
    def addresses(self) -> dict[str, Any]:
        """What the node wrote of itself when it was ready."""
        return json.loads((self.home / "node.json").read_text())

    def start(self, timeout_s: float = 30) -> Self:
        """Start it and wait until it is ready.

        Raises:
            NodeFailedError: It ended, or was not ready in time.
        """
        self.launch()
        self.wait_ready(timeout_s)
        return self

    def launch(self) -> None:
        """Start it without waiting."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "node.json").unlink(missing_ok=True)
        command: Sequence[str] = (
            sys.executable,
            "-m",
            self.module,
            "--port=0",
            "--cluster-port=0",
            "--data-port=0",
            f"--namespace={self.namespace}",
            *self.arguments,
        )
        secret = str(self.home.parent / "host-secret" / "host.secret")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EXO_")}
        variables = {**kept, "EXO_HOST_SECRET_FILE": secret, **self.environment, "EXO_HOME": str(self.home)}
        self._started_s = time.perf_counter()
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait_ready(self, timeout_s: float = 30) -> None:
        """Wait for `/readyz`."""
        assert self.process is not None
        while time.perf_counter() - self._started_s < timeout_s:
            if self.process.poll() is not None:
                raise NodeFailedError(f"the node ended with {self.process.returncode}:\n{self.log()}")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=1):
                    self.start_s = time.perf_counter() - self._started_s
                    return
            except (OSError, ValueError, KeyError):
                time.sleep(0.02)
        raise NodeFailedError(f"the node was not ready after {timeout_s} s:\n{self.log()}")

    def stages(self) -> list[psutil.Process]:
        """The stage processes that it runs."""
        assert self.process is not None
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in psutil.Process(self.process.pid).children(recursive=True):
                # Some end while they are looked at.
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "exo.worker.runner.child" in one.cmdline():
                        found.append(one)
        return found

    def log(self) -> str:
        """What it has printed."""
        return self.log_file.read_text(errors="replace")

    def get(self, path: str, timeout_s: float = 10) -> Any:
        """GET a path and decode the JSON."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            return json.load(answer)

    def call(
        self, method: str, path: str, body: object | None = None, timeout_s: float = 60
    ) -> tuple[int, Any]:
        """Send JSON; return status and decoded body, also of refusals."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text else None

    def terminate(self, timeout_s: float = 20) -> int:
        """Ask it to end, as Ctrl-C does; return its exit code."""
        return self.end(signal.SIGTERM, timeout_s)

    def kill(self) -> int:
        """End it without a chance to clean up."""
        return self.end(signal.SIGKILL, 10)

    def end(self, number: signal.Signals, timeout_s: float) -> int:
        """Send a signal and wait for the end."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise NodeFailedError(f"the node did not end within {timeout_s} s:\n{self.log()}") from None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.terminate()
