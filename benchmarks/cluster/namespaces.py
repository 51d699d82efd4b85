"""A network of its own for processes on this machine: a namespace each, on a bridge, with cables to be pulled."""

import os
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from benchmarks.cluster.measuring import CannotMeasureError


class Network:
    """Hosts `10.77.0.1`, `10.77.0.2`, ... that reach each other over a bridge, as over a switch."""

    def __init__(self, count: int) -> None:
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]
        self._hub = f"exo-bench-{os.getpid()}"
        self._hosts = [f"{self._hub}-{number}" for number in range(count)]

    def prefix(self, number: int) -> Sequence[str]:
        """Return the words that run a command on a host."""
        return ("ip", "netns", "exec", self._hosts[number])

    def cut(self, number: int) -> None:
        """Pull a host's cable: its packets go nowhere, and nobody is told."""
        _ip("-n", self._hub, "link", "set", f"port{number}", "nomaster")

    def heal(self, number: int) -> None:
        """Put the cable back."""
        _ip("-n", self._hub, "link", "set", f"port{number}", "master", "bridge0")

    def make(self) -> None:
        """Create the namespaces."""
        _ip("netns", "add", self._hub)
        _ip("-n", self._hub, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self._hub, "link", "set", "bridge0", "up")
        for number, (host, address) in enumerate(zip(self._hosts, self.addresses, strict=True)):
            port = f"port{number}"
            _ip("netns", "add", host)
            _ip("-n", self._hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("-n", self._hub, "link", "set", port, "master", "bridge0", "up")
            _ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "link", "set", "lo", "up")

    def remove(self) -> None:
        """Remove what there is of it."""
        for name in (*self._hosts, self._hub):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def network(count: int) -> Generator[Network]:
    """Yield a network that goes with the block.

    Raises:
        CannotMeasureError: This user may not make one, or `ip` is missing.
    """
    made = Network(count)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotMeasureError("network namespaces need the command `ip` (iproute2)") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"exit code {error.returncode}"
        raise CannotMeasureError(
            f"network namespaces cannot be made here (`ip {' '.join(words)}`: {said}); run this as root"
        ) from error
