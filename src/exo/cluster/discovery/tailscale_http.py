"""One question to Tailscale's local API, over its socket or its port. Apart, for httpx takes long to import."""

import asyncio

import httpx

from exo.cluster.discovery.errors import StatusError
from exo.cluster.discovery.tailscale_status import STATUS_BYTES_MAX, Way

HOST_HEADER = "local-tailscaled.sock"
"""Tailscale refuses any other, so that no page of the web can ask it."""


async def get_status(way: Way, timeout_s: float) -> bytes | None:
    """Return the answer; None where nothing listens any more.

    Raises:
        StatusError: There is no answer in time, or none for this user.
    """
    url = f"http://{HOST_HEADER}" if way.socket else f"http://127.0.0.1:{way.port}"
    # No TLS on the way to oneself: without this, each transport reads all of the world's authorities first.
    transport = httpx.AsyncHTTPTransport(uds=way.socket or None, verify=False)
    auth = httpx.BasicAuth("", way.password) if way.password else None
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(transport=transport, trust_env=False, auth=auth, timeout=timeout_s) as client,
            client.stream("GET", f"{url}/localapi/v0/status", headers={"Host": HOST_HEADER}) as response,
        ):
            return await _read(response)
    except httpx.ConnectError:
        return None  # It has stopped, and left its socket or its folder behind.
    except (httpx.TimeoutException, TimeoutError) as error:
        raise StatusError(f"it gave no answer within {timeout_s:g} s") from error
    except httpx.HTTPError as error:
        raise StatusError(f"the connection to it broke: {error}") from error


async def _read(response: httpx.Response) -> bytes:
    if response.status_code in (401, 403):
        raise StatusError(
            "it does not let this user read its status; allow it with: sudo tailscale set --operator=$USER"
        )
    if response.status_code != 200:
        raise StatusError(f"it answered with {response.status_code}")
    parts: list[bytes] = []
    size_bytes = 0
    async for part in response.aiter_bytes():
        size_bytes += len(part)
        if size_bytes > STATUS_BYTES_MAX:
            raise StatusError(f"its answer is longer than {STATUS_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts)
