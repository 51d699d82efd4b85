"""A client that only measures: sends one streaming chat request and notes when each event arrived."""

import json
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Stream:
    """When the tokens came, in seconds from the sending of the request."""

    times_s: list[float] = field(default_factory=list)
    text: str = ""


def stream_chat(url: str, *, model: str, prompt: str, tokens: int) -> Stream:
    """Ask for exactly `tokens` tokens. Parsing waits until the end, so that it costs the stream nothing."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    arrivals: list[tuple[float, bytes]] = []
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started_s = time.perf_counter()
        connection.sendall(head + body)
        while received := connection.recv(65536):
            arrivals.append((time.perf_counter() - started_s, received))
    return _read(arrivals)


def _read(arrivals: list[tuple[float, bytes]]) -> Stream:
    """Undo the chunked encoding and note the arrival of each event that holds a token."""
    raw = b"".join(received for _, received in arrivals)
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"the node refused: {raw[:500].decode(errors='replace')}")
    assert b"transfer-encoding: chunked" in head.lower(), head
    ends: list[tuple[int, float]] = []
    position = 0
    for time_s, received in arrivals:
        position += len(received)
        ends.append((position, time_s))
    stream = Stream()
    offset = len(head) + 4
    arrival = 0
    event = b""
    while rest:
        size_text, _, tail = rest.partition(b"\r\n")
        size = int(size_text, 16)
        if size == 0:
            break
        event += tail[:size]
        consumed = len(size_text) + 2 + size + 2
        rest = rest[consumed:]
        offset += consumed
        while ends[arrival][0] < offset:
            arrival += 1
        while b"\n\n" in event:
            one, _, event = event.partition(b"\n\n")
            if not one.startswith(b"data: {"):
                continue
            data = json.loads(one[6:])
            if "error" in data:
                raise RuntimeError(f"the stream failed: {data['error']}")
            for choice in data["choices"]:
                content = choice["delta"].get("content")
                if content is not None:
                    stream.times_s.append(ends[arrival][1])
                    stream.text += content
    return stream
