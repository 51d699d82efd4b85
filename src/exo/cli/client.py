"""Talks to a running node: JSON in, JSON out, every failure one sentence."""

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import httpx

from exo.api.access_owner import read_owner_key
from exo.settings import API_PORT, default_home
from exo.shared.errors import ConfigurationError, ExoError

Json = dict[str, Any]

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0

_LOOPBACK_BEHIND = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class NodeUnreachableError(ExoError):
    """Raised when no node answers."""


class RefusedError(ExoError):
    """Raised when a node refuses what was asked. `body` is its answer."""

    def __init__(self, status: int, message: str, body: Json) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class NodeClient:
    """A node's API. Use in `with`.

    Args:
        url: Where it answers.
        key: An API key to show, where one is needed.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        # No proxy of the environment: a node is on this machine, or at the end of a tunnel to it.
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            trust_env=False,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    @classmethod
    def open(cls, url: str | None, home: Path | None = None) -> Self:
        """Return a client of the node at this address, or of the one that runs here.

        It shows the key in EXO_API_KEY; to the node that runs here otherwise the one that it made for its user.

        Args:
            url: The node's address.
            home: Without an address: the data directory whose node is meant.

        Raises:
            ConfigurationError: The address is none.
            NodeUnreachableError: No node runs on the data directory that was given.
        """
        key = os.environ.get("EXO_API_KEY", "").strip() or None
        if url:
            return cls(check_url(url), key)
        return cls(
            running_node_url(home), key or read_owner_key(home.expanduser() if home else default_home())
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(
        self, path: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Json:
        """Ask.

        Raises:
            NodeUnreachableError: No node answers.
            RefusedError: It refuses.
        """
        return self._call("GET", path, params=params, timeout_s=timeout_s)

    def post(self, path: str, body: Json) -> Json:
        """Have something done; raises as `get`."""
        return self._call("POST", path, body=body)

    def delete(self, path: str) -> Json:
        """Have something deleted; raises as `get`."""
        return self._call("DELETE", path)

    @contextmanager
    def stream(self, path: str, body: Json) -> Generator[Iterator[tuple[str, str]]]:
        """Have something done, and give the answer's server-sent events: (event, data). Raises as `get`."""
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        with self._failures(), self._http.stream("POST", path, json=body, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
                raise _refused(response)
            yield _events(response)

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Json | None = None,
        timeout_s: float | None = None,
    ) -> Json:
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s)
        with self._failures():
            response = self._http.request(method, path, params=params, json=body, timeout=timeout)
        if response.status_code >= 400:
            raise _refused(response)
        found = _json(response)
        if found is None:
            raise NodeUnreachableError(f"what answers at {self.url} is not an exo node; give the right --url")
        return found

    @contextmanager
    def _failures(self) -> Generator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NodeUnreachableError(f"no exo node answers at {self.url}; start one with: exo") from error
        except httpx.TimeoutException as error:
            raise NodeUnreachableError(
                f"the node at {self.url} did not answer in time; see its log"
            ) from error
        except httpx.HTTPError as error:
            raise NodeUnreachableError(f"the connection to the node at {self.url} broke: {error}") from error


def check_url(text: str) -> str:
    """Return an address with its scheme.

    Raises:
        ConfigurationError: It is none.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        url = httpx.URL(full)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{text!r} is not an address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError(
            f"{text!r} is not an address; expected one such as http://127.0.0.1:{API_PORT}"
        )
    return full.rstrip("/")


def running_node_url(home: Path | None = None) -> str:
    """Return where the node of a data directory answers; of the usual directory, else the usual address.

    Raises:
        NodeUnreachableError: No node runs on the directory that was given; another one is not asked instead.
    """
    found = noted_url(home.expanduser() if home else default_home())
    if found is not None:
        return found
    if home is not None:
        raise NodeUnreachableError(
            f"no exo node runs on the data directory {home}; start one with: exo --home {home}"
        )
    return f"http://127.0.0.1:{os.environ.get('EXO_PORT') or API_PORT}"


def noted_url(home: Path) -> str | None:
    """Return the address that the node of a data directory has noted there, while it runs."""
    try:
        note = json.loads((home / "node.json").read_text(encoding="utf-8"))
        host, port, pid = note["api_address"]["host"], int(note["api_address"]["port"]), int(note["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    import psutil

    if not psutil.pid_exists(pid):
        return None
    # One that listens on every address is reached on this machine's own.
    host = _LOOPBACK_BEHIND.get(str(host), str(host))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _json(response: httpx.Response) -> Json | None:
    try:
        found: Any = response.json()
    except ValueError:
        return None
    return cast(Json, found) if isinstance(found, dict) else None


def _refused(response: httpx.Response) -> RefusedError:
    """Return what the node says, in either of its dialects."""
    body = _json(response) or {}
    error: Any = body.get("error")
    message: Any = cast(Json, error).get("message") if isinstance(error, dict) else body.get("detail")
    text = str(message) if message else f"the node answered with {response.status_code}; see its log"
    return RefusedError(response.status_code, text, body)


def _events(response: httpx.Response) -> Iterator[tuple[str, str]]:
    event, data = "message", ""
    for line in response.iter_lines():
        if not line:
            if data:
                yield event, data
            event, data = "message", ""
        elif line.startswith("data:"):
            data += line[5:].removeprefix(" ")
        elif line.startswith("event:"):
            event = line[6:].strip()
