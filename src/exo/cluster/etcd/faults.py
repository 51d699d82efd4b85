"""What a failed request means, in words with the next step in them. Pure."""

import os
import ssl
from collections.abc import Iterator, Sequence

import httpx
import msgspec

from exo.cluster.etcd.errors import (
    EtcdCompactedError,
    EtcdError,
    EtcdFullError,
    EtcdLeaseGoneError,
    EtcdRefusedError,
    EtcdUnreachableError,
)
from exo.cluster.etcd.messages import Failure

_DEADLINE, _DENIED, _EXHAUSTED, _UNAVAILABLE, _UNAUTHENTICATED = 4, 7, 8, 14, 16
"""Codes of gRPC."""
_OUT_OF_ORDER = ("no leader", "leader changed", "timed out", "server stopped", "not healthy", "lost leader")
_WANTS_CERTIFICATE = ("certificate required", "bad certificate", "handshake failure", "unknown ca")


def transport_fault(url: str, error: Exception) -> EtcdError:
    """Return what is wrong when no answer came."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return EtcdRefusedError(
                f"the certificate of etcd at {url} is not trusted ({cause.verify_message}); "
                "name the authority that signed it with ?ca=PATH, and use the host name that it is made out to"
            )
    text = " ".join(str(cause) for cause in causes).lower().replace("_", " ")
    if "wrong version number" in text or "record layer failure" in text:
        return EtcdRefusedError(f"etcd at {url} speaks no TLS; use etcd:// or give it a certificate")
    if any(words in text for words in _WANTS_CERTIFICATE):
        return EtcdRefusedError(
            f"etcd at {url} does not take this node's certificate ({error}); "
            "give one that its --trusted-ca-file has signed with ?cert=PATH&key=PATH"
        )
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return EtcdUnreachableError(
            f"etcd at {url} gave no answer in time; see whether it runs and is not cut off"
        )
    reason = _reason(causes) or str(error) or "it hung up"
    if isinstance(error, httpx.ConnectError) and url.startswith("https:") and _began(causes):
        return EtcdUnreachableError(
            f"etcd at {url} ended the connection before it was secure ({reason}); use etcd:// if it speaks no TLS"
        )
    if isinstance(error, httpx.ConnectError):
        return EtcdUnreachableError(
            f"etcd at {url} cannot be reached ({reason}); start it, or correct --coordinator"
        )
    # An alert over a missing certificate is often lost on the way, and only the end of the connection is seen.
    hint = ""
    if url.startswith("https:"):
        hint = ", or give ?cert=PATH&key=PATH if it wants certificates"
    elif isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
        # A server of TLS answers in bytes that are no HTTP, and hangs up; which of the two is seen is chance.
        hint = ", or use etcds:// if it wants TLS"
    return EtcdUnreachableError(f"etcd at {url} ended the connection ({reason}); see whether it runs{hint}")


def _reason(causes: Sequence[BaseException]) -> str | None:
    for cause in causes:
        # The numbers of TLS are others than the system's.
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
            return os.strerror(cause.errno)
    return None


def _began(causes: Sequence[BaseException]) -> bool:
    """Say whether TLS had begun."""
    return any(isinstance(cause, ssl.SSLError) for cause in causes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]


def answer_fault(url: str, status: int, body: bytes) -> EtcdError:
    """Return what is wrong when the answer is a refusal."""
    try:
        failure = msgspec.json.decode(body, type=Failure)
    except msgspec.DecodeError:
        text = body[:200].decode(errors="replace").strip()
        if "HTTP request to an HTTPS server" in text:
            return EtcdRefusedError(f"etcd at {url} wants TLS; use etcds://")
        return EtcdRefusedError(
            f"what answers at {url} is not etcd 3.4 or newer with its JSON gateway (HTTP {status} {text!r}); "
            "correct --coordinator, or start etcd with --enable-grpc-gateway"
        )
    return failure_fault(url, failure.code, failure.error or failure.message)


def failure_fault(url: str, code: int, text: str) -> EtcdError:
    """Return what etcd's own words mean."""
    words = text.removeprefix("etcdserver: ").removeprefix("mvcc: ")
    if code in (_UNAVAILABLE, _DEADLINE) or any(sign in text for sign in _OUT_OF_ORDER):
        return EtcdUnreachableError(
            f"etcd at {url} cannot decide anything ({words}); see that a majority of its members runs"
        )
    if is_unauthenticated(code, text):
        return EtcdRefusedError(
            f"etcd at {url} does not know who asks ({words}); give ?user=NAME&password_file=PATH"
        )
    if "invalid user ID or password" in text:
        return EtcdRefusedError(
            f"etcd at {url} does not take the user and password; correct the password file"
        )
    if code == _DENIED or "permission denied" in text:
        return EtcdRefusedError(
            f"etcd at {url} denies this user the right; grant the role readwrite on everything under the prefix"
        )
    if "database space exceeded" in text:
        return EtcdFullError(
            f"etcd at {url} is full: nothing can be decided; compact and defragment it, then `etcdctl alarm disarm`"
        )
    if "required revision has been compacted" in text:
        return EtcdCompactedError(f"etcd at {url} has forgotten that part of its history")
    if "requested lease not found" in text:
        return EtcdLeaseGoneError("the lease at etcd has ended")
    if "request is too large" in text:
        return EtcdRefusedError(
            f"etcd at {url} takes no request of this size; start it with --max-request-bytes of 1572864 or more"
        )
    if code == _EXHAUSTED:
        return EtcdUnreachableError(f"etcd at {url} has too much to do ({words}); give it more room")
    return EtcdRefusedError(f"etcd at {url} refused: {words or f'code {code}'}; see its log")


def is_unauthenticated(code: int, text: str) -> bool:
    """Say whether a new token may help."""
    signs = ("user name is empty", "auth store is old", "invalid auth token")
    return code == _UNAUTHENTICATED or any(sign in text for sign in signs)
