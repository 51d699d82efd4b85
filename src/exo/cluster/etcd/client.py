"""A small client of etcd's API v3 over its JSON gateway: bounded in time, with fail-over and typed errors."""

import ssl
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

import anyio
import httpx
import msgspec

from exo.cluster.etcd.address import EtcdAddress
from exo.cluster.etcd.errors import (
    EtcdCompactedError,
    EtcdError,
    EtcdRefusedError,
    EtcdUnreachableError,
)
from exo.cluster.etcd.faults import answer_fault, failure_fault, is_unauthenticated, transport_fault
from exo.cluster.etcd.messages import (
    Authenticate,
    CreateWatch,
    Failure,
    Grant,
    KeepAliveAnswer,
    LeaseAnswer,
    LeaseId,
    Nothing,
    Token,
    Txn,
    TxnAnswer,
    Watch,
    WatchAnswer,
    WatchLine,
)
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort

BYTES_PER_S_MIN = 256 * 1024
"""A request or an answer of many bytes gets this much more time."""
WHOLE_ANSWER_S = 30.0
"""The longest that an answer may take that never pauses."""

_TRANSPORT_ERRORS = (httpx.HTTPError, OSError)
"""Time-outs are OSErrors, and so are those of TLS, which httpx lets through as they are."""

T = TypeVar("T")


class EtcdClient:
    """Speaks to one endpoint until it fails, then to the next.

    A change whose answer was lost may have been made: all changes here compare first, so whoever is in doubt asks
    again and finds either the old state or the own change.

    Args:
        address: Where etcd is.
        timeout_s: How long an endpoint may be silent before the next one is asked.
        start_at: Which endpoint comes first, so that not all nodes ask the same.

    Raises:
        ConfigurationError: A certificate, key or password file cannot be read.
    """

    def __init__(self, address: EtcdAddress, *, timeout_s: float = 1.0, start_at: int = 0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._endpoints = address.endpoints
        self._current = start_at % len(self._endpoints)
        self._password = _read_password(address)
        self._token: str | None = None
        self._http = httpx.AsyncClient(
            verify=_tls_context(address) if address.is_tls else False,
            trust_env=False,
            timeout=httpx.Timeout(timeout_s),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=8, keepalive_expiry=30.0),
        )

    @property
    def endpoint(self) -> HostPort:
        """Which endpoint is asked now."""
        return self._endpoints[self._current]

    async def close(self) -> None:
        await self._http.aclose()

    async def txn(self, txn: Txn) -> TxnAnswer:
        """Carry out a transaction; one that only reads sees the newest of what a majority has.

        Raises:
            EtcdError: See errors.py.
        """
        return await self._call("/v3/kv/txn", txn, TxnAnswer)

    async def grant(self, ttl_s: int) -> LeaseAnswer:
        """Begin a lease; etcd may make it longer. Raises EtcdError."""
        return await self._call("/v3/lease/grant", Grant(TTL=ttl_s), LeaseAnswer)

    async def keep_alive(self, lease_id: int) -> int:
        """Let a lease begin anew, and return how many seconds it lasts; 0: it has ended. Raises EtcdError."""
        answer = await self._call("/v3/lease/keepalive", LeaseId(ID=lease_id), KeepAliveAnswer)
        return answer.result.TTL

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys. Raises EtcdError, EtcdLeaseGoneError where it has ended before."""
        await self._call("/v3/lease/revoke", LeaseId(ID=lease_id), Nothing)

    async def watch(
        self, key: bytes, range_end: bytes, start_revision: int
    ) -> AsyncGenerator[WatchAnswer, None]:
        """Yield what changes from a revision on, in order, nothing left out; first an answer without changes.

        Close the generator (`contextlib.aclosing`). That nothing comes does not show that etcd is well.

        Raises:
            EtcdCompactedError: That revision is forgotten.
            EtcdError: The stream has ended; begin again behind the last revision that was seen.
        """
        url = self._address.url(self.endpoint)
        request = Watch(
            create_request=CreateWatch(key=key, range_end=range_end, start_revision=start_revision)
        )
        try:
            with anyio.fail_after(2 * self._timeout_s):
                response = await self._open_stream(url + "/v3/watch", msgspec.json.encode(request))
        except _TRANSPORT_ERRORS as error:
            raise self._noted(transport_fault(url, error)) from error
        try:
            if response.status_code != 200:
                raise self._noted(answer_fault(url, response.status_code, await response.aread()))
            async for line in response.aiter_lines():
                if line:
                    yield self._watched(url, line)
        except _TRANSPORT_ERRORS as error:
            raise self._noted(transport_fault(url, error)) from error
        finally:
            await response.aclose()
        raise self._noted(EtcdUnreachableError(f"etcd at {url} ended the watch; see whether it is stopping"))

    async def _open_stream(self, url: str, content: bytes) -> httpx.Response:
        # A member that loses the others would stay silent for ever: it shall end the stream instead.
        headers = {**await self._headers(), "Grpc-Metadata-Hasleader": "true"}
        timeout = httpx.Timeout(self._timeout_s, read=None)
        request = self._http.build_request("POST", url, content=content, headers=headers, timeout=timeout)
        return await self._http.send(request, stream=True)

    def _watched(self, url: str, line: str) -> WatchAnswer:
        parsed = _decode(url, line.encode(), WatchLine)
        if parsed.error is not None:
            raise self._noted(
                failure_fault(url, parsed.error.code or parsed.error.grpc_code, parsed.error.message)
            )
        if parsed.result is None:
            raise self._noted(
                EtcdUnreachableError(f"etcd at {url} ended the watch; see whether it is stopping")
            )
        if parsed.result.compact_revision:
            raise EtcdCompactedError(f"etcd at {url} has forgotten that part of its history")
        if parsed.result.canceled:
            raise self._noted(failure_fault(url, 0, parsed.result.cancel_reason))
        return parsed.result

    # --- one request ---------------------------------------------------------------------------------------------

    async def _call(self, path: str, request: msgspec.Struct, answer_type: type[T]) -> T:
        """Ask one endpoint after the other until one answers."""
        content = msgspec.json.encode(request)
        worst: EtcdError | None = None
        for _ in self._endpoints:
            try:
                return _decode(path, await self._ask(path, content), answer_type)
            except EtcdUnreachableError as error:
                # A refusal says more than that another endpoint is down.
                worst = error if worst is None else worst
                self._current = (self._current + 1) % len(self._endpoints)
            except _EndpointRefusedError as error:
                worst = error.error
                self._current = (self._current + 1) % len(self._endpoints)
        assert worst is not None
        raise worst

    async def _ask(self, path: str, content: bytes) -> bytes:
        response = await self._post(path, content, await self._headers())
        if self._is_token_stale(response):
            self._token = None
            response = await self._post(path, content, await self._headers())
        if response.status_code != 200:
            raise answer_fault(self._address.url(self.endpoint), response.status_code, response.content)
        return response.content

    async def _post(self, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
        url = self._address.url(self.endpoint)
        timeout = httpx.Timeout(self._timeout_s, write=self._timeout_s + len(content) / BYTES_PER_S_MIN)
        try:
            with anyio.fail_after(WHOLE_ANSWER_S):
                return await self._http.post(url + path, content=content, headers=headers, timeout=timeout)
        except _TRANSPORT_ERRORS as error:
            fault = transport_fault(url, error)
            if isinstance(fault, EtcdRefusedError):
                raise _EndpointRefusedError(fault) from error
            raise fault from error

    async def _headers(self) -> dict[str, str]:
        if self._password is None or self._address.user is None:
            return {}
        if self._token is None:
            request = Authenticate(name=self._address.user, password=self._password)
            path = "/v3/auth/authenticate"
            response = await self._post(path, msgspec.json.encode(request), {})
            if response.status_code != 200:
                if b"authentication is not enabled" in response.content:
                    return {}
                raise answer_fault(self._address.url(self.endpoint), response.status_code, response.content)
            self._token = _decode(path, response.content, Token).token
        return {"Authorization": self._token}

    def _is_token_stale(self, response: httpx.Response) -> bool:
        if response.status_code == 200 or self._password is None:
            return False
        try:
            failure = msgspec.json.decode(response.content, type=Failure)
        except msgspec.DecodeError:
            return False
        return is_unauthenticated(failure.code, failure.error or failure.message)

    def _noted(self, error: EtcdError) -> EtcdError:
        """The stream at this endpoint failed: the next one may do better, with a new token."""
        self._current = (self._current + 1) % len(self._endpoints)
        self._token = None
        return error


class _EndpointRefusedError(Exception):
    """Raised when one endpoint cannot be used as it is set up; another may."""

    def __init__(self, error: EtcdRefusedError) -> None:
        super().__init__(error.message)
        self.error = error


def _decode(where: str, data: bytes, answer_type: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=answer_type, strict=False)
    except msgspec.DecodeError as error:
        raise EtcdRefusedError(
            f"what answers at {where} does not speak as etcd 3.4 and newer do ({error}); correct --coordinator"
        ) from error


def _read_password(address: EtcdAddress) -> str | None:
    if address.password_file is None:
        return None
    try:
        return address.password_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read the password for etcd: {error}; correct password_file"
        ) from error


def _tls_context(address: EtcdAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
        if address.certificate_file is not None:
            context.load_cert_chain(address.certificate_file, address.key_file)
    except (OSError, ssl.SSLError) as error:
        files: Sequence[object] = [
            file for file in (address.ca_file, address.certificate_file, address.key_file) if file is not None
        ]
        raise ConfigurationError(
            f"cannot use {', '.join(map(str, files))} to speak with etcd: {error}; correct ca, cert and key"
        ) from error
    return context
