"""One real node, end to end: start, chat, kill -9, restart, bad input, clean end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from benchmarks.nodes import NodeProcess

pytestmark = pytest.mark.slow

MODEL = "exo-tiny"


def ask(node: NodeProcess, text: str, **more: Any) -> tuple[int, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
    return node.call("POST", "/v1/chat/completions", body, timeout_s=120)


def answer(node: NodeProcess, text: str, **more: Any) -> str:
    status, body = ask(node, text, **more)
    assert status == 200, body
    return body["choices"][0]["message"]["content"]


def require_clean_end(node: NodeProcess, number: signal.Signals) -> None:
    """End a node that has placed something by a signal."""
    assert node.process is not None
    family = psutil.Process(node.process.pid).children(recursive=True)
    assert family, "no stage process"
    with urllib.request.urlopen(f"{node.url}/events", timeout=10):
        assert node.end(number, 15) == 0, node.log()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert not (node.home / "node.json").exists()


def run_exo(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exo", *arguments],
        env={**os.environ, "EXO_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("one") / "home", "--no-discovery") as running:
        yield running


def test_the_first_chat_places_the_model_and_answers_rightly(node: NodeProcess) -> None:
    assert "42" in answer(node, "What is 12 + 30?")
    counted = answer(node, "Count to 12.")
    assert [word.strip(",. ") for word in counted.replace(",", " ").split()][-12:] == [
        str(number) for number in range(1, 13)
    ]
    assert answer(node, "Count to 12.") == counted
    assert len(node.get("/instance")["instances"]) == 1


def test_openais_client_streams_one_chunk_per_token(node: NodeProcess) -> None:
    client = openai.OpenAI(base_url=f"{node.url}/v1", api_key="none")
    with client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "What is 7 + 8?"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert "15" in text
        tokens = [chunk for chunk in chunks if chunk.choices]
        usage = chunks[-1].usage
        assert usage is not None and usage.completion_tokens == len(tokens)
        assert tokens[-1].choices[0].finish_reason == "stop"
        assert MODEL in [model.id for model in client.models.list()]


def test_a_client_that_goes_away_ends_its_generation(node: NodeProcess) -> None:
    client = openai.OpenAI(base_url=f"{node.url}/v1", api_key="none")
    with client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to 30."}],
            stream=True,
            max_tokens=900,
            extra_body={"ignore_eos": True},
        )
        for _ in range(5):
            next(stream)
        stream.close()
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        with urllib.request.urlopen(f"{node.url}/metrics") as metrics:
            lines = metrics.read().decode().splitlines()
        active = [line for line in lines if line.startswith("exo_requests_active")]
        if active and all(float(line.rsplit(" ", 1)[1]) == 0 for line in active):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"the request is still counted as running: {active}")
    assert "42" in answer(node, "What is 12 + 30?")


def test_state_has_the_fields_that_others_rely_on(node: NodeProcess) -> None:
    answer(node, "What is 1 + 1?")
    state = node.get("/state")
    (member,) = state["topology"]["nodes"]
    memory = member["node_profile"]["memory"]
    assert isinstance(memory["ram_total"], int) and memory["ram_total"] > 0
    assert isinstance(memory["gpu_vram_total"], int)
    assert isinstance(member["node_profile"]["system"]["gpu_count"], int)
    (reading,) = state["gpu_device_state"].values()
    assert reading["memory_total_bytes"] > 0
    assert state["master_node_id"] == member["node_id"]


def test_events_can_be_read_from_any_index(node: NodeProcess) -> None:
    answer(node, "What is 1 + 1?")
    request = urllib.request.Request(f"{node.url}/events", headers={"Last-Event-ID": "0"})
    events: list[dict[str, Any]] = []
    with urllib.request.urlopen(request, timeout=10) as stream:
        while len(events) < 4:
            line = stream.readline().decode().strip()
            if line.startswith("data:"):
                events.append(json.loads(line[5:]))
    indices = [event["index"] for event in events if "index" in event]
    assert indices == list(range(1, len(indices) + 1))
    assert events[0]["event"]["type"] == "ClusterFormed"


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "exo-tinny"}, 404, "exo-tiny"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"messages": [{"role": "user", "content": "one two three " * 2000}]}, 400, "context"),
    ],
)
def test_bad_requests_are_refused_before_a_body_starts(
    node: NodeProcess, change: dict[str, Any], status: int, words: str
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True, **change}
    got, problem = node.call("POST", "/v1/chat/completions", body, timeout_s=60)
    assert got == status
    assert words in json.dumps(problem["error"])


def test_a_stage_killed_in_mid_answer_ends_the_request_with_an_error_and_comes_back(
    node: NodeProcess,
) -> None:
    assert "42" in answer(node, "What is 12 + 30?")
    (before,) = node.get("/instance")["instances"]
    assert node.process is not None
    client = openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0)
    with client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to 30."}],
            stream=True,
            max_tokens=900,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        (stage,) = node.stages()
        stage.kill()
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
    deadline_s = time.monotonic() + 60
    while node.get("/instance")["instances"][0]["generation"] == before["generation"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    (instance,) = node.get("/instance")["instances"]
    node.get(f"/instance/{instance['instance_id']}/wait?timeout_s=60", timeout_s=70)
    assert "42" in answer(node, "What is 12 + 30?")


def test_sigterm_leaves_no_process_and_exits_with_zero(node: NodeProcess) -> None:
    answer(node, "What is 1 + 2?")
    require_clean_end(node, signal.SIGTERM)


def test_models_that_do_not_fit_or_are_damaged_are_refused_in_words(tmp_path: Path) -> None:
    from exo.worker.models.store import BUNDLED_DIR

    models = tmp_path / "home" / "models"
    for name in ("huge", "copy"):
        (models / name).mkdir(parents=True)
    _write_sparse_model(models / "huge", layer_bytes=2**40)
    for file in (BUNDLED_DIR / MODEL).iterdir():
        data = file.read_bytes()
        (models / "copy" / file.name).write_bytes(data[:-1000] if file.suffix == ".safetensors" else data)
    with NodeProcess(tmp_path / "home", "--no-discovery") as node:
        status, problem = node.call("POST", "/instance", {"model_id": "huge"})
        assert status == 422, problem
        assert problem["code"] == "not_enough_memory" and problem["needed_bytes"] > 2**41
        assert problem["nodes"][0]["free_bytes"] > 0

        status, problem = node.call("POST", "/instance", {"model_id": "copy"})
        assert status == 422 and "truncated" in problem["detail"]
        status, problem = node.call(
            "POST", "/v1/chat/completions", {"model": "copy", "messages": [{"role": "user", "content": "hi"}]}
        )
        assert status in {422, 503} and "truncated" in json.dumps(problem)
        assert node.get("/instance")["instances"] == []


def test_killed_and_restarted_its_instance_is_placed_again_and_sigint_ends_it(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "home", "--no-discovery").start()
    try:
        assert "42" in answer(node, "What is 12 + 30?")
        (before,) = node.get("/instance")["instances"]
        state = node.get("/state")
        children = psutil.Process(node.process.pid).children(recursive=True) if node.process else []
        node.kill()
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == [], "stage processes outlived their node"
        node.start()
        (after,) = node.get("/instance")["instances"]
        assert after["instance_id"] == before["instance_id"]
        assert node.get("/state")["index"] > state["index"]
        assert node.get("/state")["term"] == state["term"] + 1
        node.get(f"/instance/{after['instance_id']}/wait?timeout_s=60", timeout_s=70)
        assert "42" in answer(node, "What is 12 + 30?")
        require_clean_end(node, signal.SIGINT)
    finally:
        node.kill()


def test_a_port_in_use_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_exo("--port", str(port), "--cluster-port=0", "--data-port=0", home=tmp_path / "h")
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_directory_that_cannot_be_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    done = run_exo("--port=0", home=tmp_path / "file" / "home")
    assert done.returncode == 2
    assert "EXO_HOME" in done.stderr and "Traceback" not in done.stderr


def test_a_node_on_every_address_answers_this_machine_and_elsewhere_only_who_has_a_key(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with NodeProcess(home, "--no-discovery", "--host", "0.0.0.0") as node:
        assert node.get("/state")["index"] > 0
        # What a proxy on this machine passes on comes from elsewhere.
        elsewhere = {"x-forwarded-for": "192.0.2.7"}
        assert httpx.get(f"{node.url}/state", headers=elsewhere).status_code == 403
        made = run_exo("key", "create", "--scope", "read", home=home)
        assert made.returncode == 0
        key = made.stdout.strip()
        assert httpx.get(f"{node.url}/state", headers=elsewhere).status_code == 401
        with_key = elsewhere | {"authorization": f"Bearer {key}"}
        assert httpx.get(f"{node.url}/state", headers=with_key).status_code == 200
        assert httpx.get(f"{node.url}/keys", headers=with_key).status_code == 403
    audit = run_exo("audit", "--verify", home=home)
    assert audit.returncode == 0
    assert "CreateKey" in run_exo("audit", home=home).stdout
    assert key.rpartition("-")[2] not in run_exo("audit", "--json", home=home).stdout


def test_where_keys_are_required_exo_itself_shows_its_users(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with NodeProcess(home, "--no-discovery", "--require-key") as node:
        assert httpx.get(f"{node.url}/state").status_code == 401
        assert run_exo("status", home=home).returncode == 0


def test_a_half_written_log_tail_is_cut_off_and_nothing_else_is_lost(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "home", "--no-discovery").start()
    try:
        assert node.call("POST", "/keys", {"name": "kept", "scopes": ["read"]})[0] == 201
        before = node.get("/state")
        node.kill()
        (segment,) = (node.home / "log").glob("*.log")
        with segment.open("r+b") as file:
            file.seek(len(file.read().rstrip(b"\0")) + 8)  # It is filled ahead with zeros.
            file.write(b"\x07half a frame")
        node.start()
        assert node.get("/state")["index"] > before["index"]
        assert [key["name"] for key in node.get("/keys")["keys"]] == ["kept"]
        assert "cutting off the torn tail" in node.log()
    finally:
        node.end(signal.SIGKILL, 10)


def _write_sparse_model(directory: Path, *, layer_bytes: int) -> None:
    """A model of two layers whose weights file is as large as it says, and empty on disk."""
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "vocab_size": 8,
        "max_position_embeddings": 64,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    header: dict[str, Any] = {}
    for layer in range(2):
        header[f"model.layers.{layer}.weight"] = {
            "dtype": "F32",
            "shape": [layer_bytes // 4],
            "data_offsets": [layer * layer_bytes, (layer + 1) * layer_bytes],
        }
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2 * layer_bytes)
