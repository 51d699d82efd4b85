"""What every request passes before a route sees it: who asks, a host name of this machine, no foreign page, a size.

A page on the internet can make a browser send requests to this machine. It cannot read the answers (there are no
CORS headers), and it shall not have anything done either, not even a plan worked out by a GET. So requests are
refused that a browser says come from another site, names that merely resolve to this machine (DNS rebinding), and
bodies that are not declared as JSON, which browsers too old to say where a request comes from ask about first.

Whoever shows a key is no page on the internet: it has none. So with a key any name of this node will do.
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exo.api.access_callers import Caller, set_caller
from exo.api.access_gate import AccessRefused
from exo.api.access_scopes import RouteScopes
from exo.api.context import ApiContext
from exo.api.errors import ApiError, error_response

BODY_BYTES_MAX = 32 * 1024 * 1024

TRUSTED_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0", "::"})
"""This machine's own. The last two are what a node on every address is called by whoever reads its settings."""


class RequestGuard:
    """ASGI middleware; plain, because a wrapped response stream would cost on every token.

    Args:
        app: What comes behind it.
        context: Knows who may come in.
        scopes: What each route needs.
        body_bytes_max: How long a request may be.
    """

    def __init__(
        self, app: ASGIApp, *, context: ApiContext, scopes: RouteScopes, body_bytes_max: int = BODY_BYTES_MAX
    ) -> None:
        self._app = app
        self._context = context
        self._scopes = scopes
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method, path = scope["method"], scope["path"]
        client, server = scope.get("client"), scope.get("server")
        own_address = server[0] if server else ""
        try:
            caller = self._context.gate.admit(
                self._scopes.of(method, path),
                client[0] if client else "",
                headers,
                own_address=own_address,
            )
        except AccessRefused as refused:
            await self._context.desk.refused(refused, method, path)
            await error_response(path, refused)(scope, receive, send)
            return
        set_caller(caller)
        refusal = self._refusal(method, headers, caller, own_address)
        if refusal is not None:
            await error_response(scope["path"], refusal)(scope, receive, send)
            return
        # With a length given, the limit was checked above and the body cannot be longer: nothing to count.
        if scope["method"] in ("GET", "HEAD") or "content-length" in headers:
            await self._app(scope, receive, send)
            return
        received_bytes = 0

        async def counting_receive() -> Message:
            nonlocal received_bytes
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                if received_bytes > self._body_bytes_max:
                    too_large = self._too_large()
                    # The one exception that FastAPI passes on while it reads a body.
                    raise HTTPException(too_large.status, too_large.message)
            return message

        await self._app(scope, counting_receive, send)

    def _refusal(self, method: str, headers: Headers, caller: Caller, own_address: str) -> ApiError | None:
        host = host_name(headers.get("host", ""))
        # An address is no name that somebody else could have made resolve to it.
        if caller.kind == "loopback" and host not in TRUSTED_HOSTS and host != own_address:
            return ApiError(
                421,
                "host_not_trusted",
                f"requests for the host {host!r} are not answered; use http://127.0.0.1 or "
                "http://localhost, or show an API key",
            )
        if _is_from_elsewhere(method, headers):
            return ApiError(
                403,
                "cross_site",
                "requests that a page of another site makes are not answered; use the page at "
                f"http://{headers.get('host', '')}, or a program that is no browser",
            )
        if method == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and not (
                kind.startswith("application/") and kind.endswith("+json")
            ):
                return ApiError(
                    415, "not_json", "send the body as JSON, with the header Content-Type: application/json"
                )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._body_bytes_max:
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        limit = self._body_bytes_max
        return ApiError(413, "body_too_large", f"the body is larger than {limit} bytes; send less")


def _is_from_elsewhere(method: str, headers: Headers) -> bool:
    """Say whether a browser sent this for a page of another site. Following a link to here is no such thing."""
    origin = headers.get("origin")
    # A page reaches its own server under the name that is in the Host header, whatever tunnel is between.
    if origin is not None and origin.lower().partition("://")[2] != headers.get("host", "").strip().lower():
        return True
    if headers.get("sec-fetch-site", "") not in ("cross-site", "same-site"):
        return False
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return not (is_link and method == "GET")


def host_name(header: str) -> str:
    """Return the name in a Host header, without port and brackets, in lower case."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
