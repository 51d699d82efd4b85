"""What `exo doctor --peers HOST` tries, step by step: the name, the port, what answers there, and what that says."""

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec

from exo.cli.advice import (
    Knocked,
    Outcome,
    explain_facts,
    explain_knock,
    explain_refusal,
    explain_sniffed,
    explain_unresolved,
)
from exo.cli.checks import Finding
from exo.cli.listening import explain_clock
from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError, NotDiallableError
from exo.cluster.facts import ClusterFacts
from exo.cluster.transport.addresses import is_loopback
from exo.cluster.transport.base import Transport
from exo.cluster.transport.framing import HANDSHAKE_BYTES_MAX, FrameError, FrameSplitter, Kind, encode_frame
from exo.cluster.transport.greeting import MAGIC, VERSION
from exo.cluster.wire import Hello, NotNow, decode_from_listener, encode
from exo.shared.handshake import NONCE_BYTES
from exo.shared.types.nodes import HostPort

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 5.0
ADDRESSES_MAX = 4


class Myself(NamedTuple):
    """As whom this process asks."""

    facts: ClusterFacts
    transport: Transport
    is_running: bool
    """A node runs here, and these are its facts."""


async def examine(target: HostPort, myself: Myself, *, api_port: int) -> list[Finding]:
    """Try an address; each finding says what to do next. Stops where going on makes no sense.

    Args:
        target: Name or address and cluster port of another node.
        api_port: Where its API may be, for its clock.
    """
    try:
        hosts = await resolve(target)
    except OSError as error:
        return [explain_unresolved(target, error.strerror or str(error))]
    findings: list[Finding] = []
    if hosts != [target.host]:
        findings.append(Finding("name", "ok", f"{target.host} is {', '.join(hosts)}"))
    knocks = await asyncio.gather(*(knock(HostPort(host, target.port)) for host in hosts[:ADDRESSES_MAX]))
    findings += [
        explain_knock(one, is_other_open=any(it.outcome == "open" for it in knocks)) for one in knocks
    ]
    address = next((one.address for one in knocks if one.outcome == "open"), None)
    if address is None:
        return findings
    findings += await ask(address, myself)
    if not is_loopback(address.host):
        findings += await compare_clocks(HostPort(address.host, api_port))
    return findings


async def resolve(target: HostPort) -> list[str]:
    """Return the addresses of a name, best first; raises OSError."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise OSError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from error
    except UnicodeError as error:
        raise OSError("it is no name of a host") from error
    hosts = [socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0] for *_, name in found]
    return list(dict.fromkeys(hosts))


async def knock(address: HostPort, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Knocked:
    """Connect and hang up."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError as error:  # This one's, or the system's.
        return Knocked(address, "silent", error.strerror or f"no answer within {timeout_s:g} s")
    except ConnectionRefusedError:
        return Knocked(address, "refused")
    except OSError as error:
        return Knocked(address, _outcome(error), error.strerror or str(error))
    writer.transport.abort()
    return Knocked(address, "open")


async def ask(address: HostPort, myself: Myself) -> list[Finding]:
    """Exchange facts with whoever listens, and judge them; where that fails, find out what listens."""
    try:
        connection = await myself.transport.dial(address, timeout_s=ANSWER_TIMEOUT_S)
    except NotDiallableError as error:
        sniffed = await sniff(address)
        return [explain_sniffed(address, sniffed) or explain_refusal(address, None, error.message)]
    except HandshakeError as error:
        sniffed = await sniff(address) if error.code == "other_protocol" else "exo"
        return [explain_sniffed(address, sniffed) or explain_refusal(address, error.code, error.message)]
    except DialError as error:
        sniffed = await sniff(address)
        return [explain_sniffed(address, sniffed) or explain_refusal(address, None, error.message)]
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await connection.send(encode(Hello(facts=myself.facts, intent="look")))
            answer = decode_from_listener(await connection.receive())
    except (TimeoutError, ConnectionLostError, msgspec.DecodeError) as error:
        text = f"{address} proved itself, but gave no answer that can be read: {error}"
        return [Finding("node", "broken", text, "run the same release of exo on both, and see its log")]
    finally:
        connection.close("looked")
    if not isinstance(answer, NotNow):
        text = f"{address} gave another answer than was asked for"
        return [Finding("node", "broken", text, "run the same release of exo on both")]
    return explain_facts(address, answer.facts, myself.facts, is_running=myself.is_running)


async def sniff(address: HostPort) -> str:
    """Say who answers to exo's first frame: `exo`, `http`, `tls`, `silent`, or what it said."""
    hello = encode_frame(Kind.HELLO, MAGIC + VERSION.to_bytes(2, "big") + bytes(NONCE_BYTES))
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                writer.write(hello)
                said = await reader.read(HANDSHAKE_BYTES_MAX)
                if not said:
                    return "silent"
                if said.startswith(b"HTTP/"):
                    return "http"
                return _speech(said)
            finally:
                writer.transport.abort()
    except OSError:  # Also when the time is up.
        return "silent"


async def compare_clocks(api: HostPort, *, now_s: Callable[[], float] = time.time) -> list[Finding]:
    """Read the date that an API's answer carries; by default no API can be reached from other hosts."""
    request = f"GET /healthz HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(api.host, api.port)
            try:
                writer.write(request.encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace")
            finally:
                writer.transport.abort()
    except (OSError, ValueError, asyncio.IncompleteReadError):
        head = ""
    for line in head.splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            try:
                difference_s = parsedate_to_datetime(value.strip()).timestamp() - now_s()
            except ValueError:
                break
            return explain_clock(difference_s, api.host, is_told_when_right=True)
    step = f"compare the clocks by hand: date -u, on {api.host} and here"
    return [Finding("clock", "note", f"not compared: no API answers at {api}", step)]


def _outcome(error: OSError) -> Outcome:
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN):
        return "unreachable"
    if error.errno == errno.ETIMEDOUT:
        return "silent"
    return "refused" if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET) else "failed"


def _speech(said: bytes) -> str:
    try:
        kind = next(iter(FrameSplitter().feed(said)), (None, b""))[0]
    except FrameError:
        kind = None
    if kind in (Kind.CHALLENGE, Kind.REFUSED, Kind.GOODBYE):
        return "exo"
    if said[0] == 0x15 and len(said) >= 7:
        return "tls"
    return repr(said[:40].decode(errors="replace").splitlines()[0])
