"""A node as the page sees it, following a script: serves the built dashboard and answers from fixtures."""

import copy
import json
import queue
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from exo.api.schemas.planning import PlanWish

Json = dict[str, Any]

FIXTURES = Path(__file__).parent / "fixtures"
GATE_TIMEOUT_S = 20.0
API_PATHS = ("/state", "/models", "/nodes", "/events", "/devices/known", "/instance/previews")


def fixture(name: str) -> Json:
    """Return one of the recorded answers."""
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


class ScriptedNode:
    """Its answers can be changed while it runs; every change is told on `/events`."""

    def __init__(self, dashboard: Path) -> None:
        self.dashboard = dashboard
        self.state = fixture("state")
        self.nodes = fixture("nodes")
        self.models = fixture("models")
        self.previews = fixture("previews")
        self.why = fixture("why")
        self.known = fixture("known")
        self.requests: list[tuple[str, str, Json | None]] = []
        """Method, path with query, and body of each request that changes or asks something."""
        self.state_request_count = 0
        self.chat_error: tuple[int, Json] | None = None
        self.chat_tokens: list[str] = []
        self.chat_gate = threading.Semaphore(0)
        """One token of the answer is sent per release."""
        self.chat_client_left = threading.Event()
        self.delete_error: tuple[int, Json] | None = None
        self.approve_error: tuple[int, Json] | None = None
        self.needed_key: str | None = None
        """Asked for by every route of the API; None: nobody needs one."""
        self.unkeyed: list[str] = []
        """Paths of requests that were refused for want of it."""
        self.refuses_events = False
        self._watchers: list[queue.Queue[bytes | None]] = []
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        """Listen; after a stop, on the same port as before."""
        self._server = _Server(
            ("127.0.0.1", self._port), partial(_Handler, self, directory=str(self.dashboard))
        )
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="scripted node").start()

    def stop(self) -> None:
        """Close the port and end every open stream."""
        server, self._server = self._server, None
        if server is None:
            return
        self.end_events()
        server.is_stopping.set()
        server.shutdown()
        server.server_close()

    def change(self, **fields: Any) -> None:
        """Set fields of the state as one new decision, and tell those who watch."""
        with self._lock:
            state = copy.deepcopy(self.state)
            state.update(fields)
            state["index"] += 1
            self.state = state
        self.tell("decision", {"index": state["index"]})

    def tell(self, name: str, value: Json) -> None:
        """Send an event to every watcher."""
        message = f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()
        with self._lock:
            for watcher in self._watchers:
                watcher.put(message)

    def end_events(self) -> None:
        """End the streams of all watchers, as a node does that stops."""
        with self._lock:
            for watcher in self._watchers:
                watcher.put(None)

    @property
    def watcher_count(self) -> int:
        with self._lock:
            return len(self._watchers)

    def watch(self) -> "queue.Queue[bytes | None]":
        watcher: queue.Queue[bytes | None] = queue.Queue()
        with self._lock:
            self._watchers.append(watcher)
        return watcher

    def unwatch(self, watcher: "queue.Queue[bytes | None]") -> None:
        with self._lock:
            self._watchers.remove(watcher)

    def place(self, request: Json) -> Json:
        """Carry out `POST /instance`: a pending instance with the plan of the preview of this request."""
        same = {key: value for key, value in request.items() if key != "exclude"}
        plan = next(
            one["plan"] for one in self.previews["previews"] if same.items() <= one["request"].items()
        )
        instance = fixture("instance") | {"plan": plan, "request": request}
        instance["stages"] = [stage_of(planned, "pending") for planned in plan["stages"]]
        self.change(instances={instance["instance_id"]: instance})
        return instance | {"index": self.state["index"]}

    def imagine(self, wish: Json) -> Json:
        """Answer `POST /instance/plan`: a machine more is faster, oak is missed, and three nodes cannot be had then."""
        if wish["machines"]:
            return fixture("planned")
        return fixture("planned_refused" if wish["min_nodes"] > 2 else "planned_without")

    def set_stages(
        self, status: str, phases: list[str], loaded: list[int], reason: str | None = None
    ) -> None:
        """Move the one instance on: each stage's phase and loaded layers."""
        ((instance_id, instance),) = copy.deepcopy(self.state["instances"]).items()
        planned = instance["plan"]["stages"]
        instance["stages"] = [
            stage_of(plan, phase, count, reason if phase == "failed" else None)
            for plan, phase, count in zip(planned, phases, loaded, strict=True)
        ]
        instance |= {"status": status, "reason": reason, "loaded_layers": sum(loaded)}
        self.change(instances={instance_id: instance})

    def decide_on_wish(self, node_id: str) -> Json:
        """Take a wish off the list: its node was approved or declined."""
        left = [wish for wish in self.nodes["wishes"] if wish["node_id"] != node_id]
        self.set_nodes(wishes=left)
        return {"index": self.state["index"]}

    def remove_member(self, node_id: str) -> Json:
        """Take a member out of the cluster."""
        topology = self.state["topology"]
        left = [node for node in topology["nodes"] if node["node_id"] != node_id]
        voters = self.state["voters"]
        voting = [voter for voter in voters["voters"] if voter != node_id]
        members = [member for member in self.nodes["nodes"] if member["node_id"] != node_id]
        self.nodes = self.nodes | {"nodes": members}
        self.change(topology=topology | {"nodes": left}, voters=voters | {"voters": voting})
        return {"index": self.state["index"]}

    def set_nodes(self, **fields: Any) -> None:
        """Set fields of the list of nodes as one new decision."""
        self.nodes = self.nodes | fields
        self.change()

    def chat_chunks(self, body: Json) -> Iterator[Json]:
        """Yield the chunks of a streamed answer, each when its gate opens."""
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        last = len(self.chat_tokens) - 1
        for place, text in enumerate(self.chat_tokens):
            if not self.chat_gate.acquire(timeout=GATE_TIMEOUT_S):
                return
            delta: Json = {"content": text} if place else {"role": "assistant", "content": text}
            end = "stop" if place == last else None
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
            chunk: Json = head | {"choices": [choice], "usage": None}
            if end:
                chunk["exo"] = {
                    "instance_id": "7d93e1b0",
                    "time_to_first_token_s": 0.02,
                    "tokens_per_s": 57.25,
                }
            yield chunk
        count = len(self.chat_tokens)
        usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
        yield head | {"choices": [], "usage": usage}


def stage_of(planned: Json, phase: str, loaded_layers: int = 0, reason: str | None = None) -> Json:
    """Return a stage in the shape `StageView`."""
    return {
        "rank": planned["rank"],
        "node_id": planned["node_id"],
        "phase": phase,
        "address": None,
        "reason": reason,
        "is_permanent": False,
        "loaded_layers": loaded_layers,
        "total_layers": planned["end_layer"] - planned["start_layer"],
        "detail": "",
    }


def problem(status: int, code: str, detail: str) -> Json:
    """Return Problem Details."""
    return {"type": "about:blank", "title": "", "status": status, "detail": detail, "code": code}


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, *args: Any) -> None:
        self.is_stopping = threading.Event()
        super().__init__(*args)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is no error of the test's."""


class _Handler(SimpleHTTPRequestHandler):
    """One connection; HTTP/1.0, so that every answer ends with its connection."""

    def __init__(self, node: ScriptedNode, *args: Any, **kwargs: Any) -> None:
        self.node = node
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path in API_PATHS and not self._has_key():
            return
        match parts.path:
            case "/state":
                self.node.state_request_count += 1
                self._json(200, self.node.state)
            case "/models":
                self._json(200, self.node.models)
            case "/nodes":
                self._json(200, self.node.nodes)
            case "/devices/known":
                self._json(200, self.node.known)
            case "/instance/previews":
                self.node.requests.append(("GET", self.path, None))
                wanted = parse_qs(parts.query)["model_id"][0]
                self._json(200, self.node.previews) if wanted == "exo-tiny" else self._unknown(wanted)
            case path if path.startswith("/instance/") and path.endswith("/why"):
                self.node.requests.append(("GET", self.path, None))
                self._json(200, self.node.why)
            case "/events" if self.node.refuses_events:
                self._json(
                    503, {"type": "about:blank", "title": "", "status": 503, "detail": "no", "code": "no"}
                )
            case "/events":
                self._events()
            case _:
                super().do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._has_key():
            return
        self.node.requests.append(("POST", self.path, body))
        if self.path == "/instance":
            self._json(201, self.node.place(body))
        elif self.path == "/instance/plan":
            PlanWish.model_validate(body)
            self._json(200, self.node.imagine(body))
        elif self.path.startswith("/nodes/") and self.path.endswith("/approve") and self.node.approve_error:
            self._json(*self.node.approve_error)
        elif self.path.startswith("/nodes/"):
            self._json(200, self.node.decide_on_wish(self.path.split("/")[2]))
        elif self.node.chat_error:
            self._json(*self.node.chat_error)
        else:
            self._chat(body)

    def do_DELETE(self) -> None:
        if not self._has_key():
            return
        self.node.requests.append(("DELETE", self.path, None))
        if self.node.delete_error:
            self._json(*self.node.delete_error)
            return
        if self.path.startswith("/nodes/"):
            self._json(200, self.node.remove_member(urlsplit(self.path).path.split("/")[2]))
            return
        self.node.change(instances={})
        self._json(200, {"index": self.node.state["index"], "instance_id": self.path.rpartition("/")[2]})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _has_key(self) -> bool:
        """Say whether the request shows the key that is needed; if not, answer it."""
        needed, shown = self.node.needed_key, self.headers.get("authorization")
        if needed is None or shown == f"Bearer {needed}":
            return True
        self.node.unkeyed.append(self.path)
        code, detail = "key_wrong", "this key is not known here, or was deleted; make another: exo key create"
        if shown is None:
            code, detail = (
                "key_missing",
                "send an API key as `Authorization: Bearer KEY`; make one on a node with: exo key create",
            )
        self._json(401, problem(401, code, detail))
        return False

    def _unknown(self, model_id: str) -> None:
        detail = f"there is no model {model_id!r}"
        self._json(404, {"type": "about:blank", "title": "", "status": 404, "detail": detail, "code": "x"})

    def _json(self, status: int, value: Json) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def _events(self) -> None:
        watcher = self.node.watch()
        stopping = cast(_Server, self.server).is_stopping
        try:
            self._begin_stream()
            while not stopping.is_set():
                try:
                    message = watcher.get(timeout=0.05)
                except queue.Empty:
                    continue
                if message is None:
                    return
                self.wfile.write(message)
        finally:
            self.node.unwatch(watcher)

    def _chat(self, body: Json) -> None:
        self._begin_stream()
        try:
            for chunk in self.node.chat_chunks(body):
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.node.chat_client_left.set()


def wait_until(condition: Any, what: str, timeout_s: float = 10.0) -> None:
    """Wait for a condition of the node's own; the page's are waited for by the browser."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {timeout_s:g} s"
        threading.Event().wait(0.01)
