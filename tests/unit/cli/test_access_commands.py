"""`exo token`, `key`, `node`, `join` and `audit` against a running application with a real master."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.api.access_join import PendingJoin, read_pending_join
from exo.api.context import NodeActions, utc_text
from exo.cli.client import NodeClient, noted_url
from exo.cli.durations import parse_duration_s
from exo.cluster.trust.token import parse_token
from exo.shared.errors import ConfigurationError, ExoError
from exo.shared.types.events import JoinWished, VotersChanged
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters
from support.access_stories import FINGERPRINT, NOW_S, OTHER_FINGERPRINT
from support.api_world import rule
from support.cli_run import Run, RunningWorld
from support.states import cluster, fold, identity

TOKEN = f"exo1.{'a' * 32}.{'b' * 32}"


@pytest.fixture
def ruled(ready: RunningWorld) -> RunningWorld:
    """A running application in which a real master decides."""
    ready.portal.call(rule, ready.world)
    return ready


def wish(running: RunningWorld, node_id: str, *, name: str = "basement", key: str = FINGERPRINT) -> None:
    def happen() -> None:
        coordinator = running.world.coordinator
        event = JoinWished(
            node_id=NodeId(node_id), name=name, address="192.0.2.7:4", fingerprint=key, asked_at_s=NOW_S
        )
        coordinator.set_state(fold(coordinator.state, event))

    running.portal.call(happen)


def test_a_token_is_printed_alone_and_listed_without_itself(ruled: RunningWorld, run: Run) -> None:
    made = run("token", "create", "--expires", "15m", "--uses", "2")
    assert made.code == 0 and parse_token(made.out.strip()).reveal() == made.out.strip()
    assert "for 2 nodes" in made.err and "exo join TOKEN" in made.err and utc_text(NOW_S + 900) in made.err
    listed = run("token", "list")
    secret = made.out.strip().rpartition(".")[2]
    (token_id,) = ruled.world.coordinator.state.access.tokens
    assert token_id in listed.out and secret not in listed.out
    assert json.loads(run("token", "list", "--json").out)["tokens"][0]["uses_left"] == 2
    assert run("token", "delete", token_id).out == f"deleted {token_id}\n"
    assert "exo token create" in run("token", "list").out
    again = run("token", "delete", token_id)
    assert again.code == 1 and "exo token list" in again.err
    assert "token" in json.loads(run("token", "create", "--json").out)


def test_a_key_is_made_with_limits_which_the_list_shows(ruled: RunningWorld, run: Run) -> None:
    made = run(
        *("key", "create", "--scope", "infer", "--requests-per-minute", "60", "--tokens-per-day", "5000"),
        *("--device", "a/cpu:0", "--device", "host-b/cpu:0"),
    )
    assert made.code == 0, made.err
    for text in ("60 requests a minute", "5000 tokens a day", "only on a/cpu:0, b/cpu:0"):
        assert text in " ".join(made.err.split())
    (key,) = json.loads(run("key", "list", "--json").out)["keys"]
    limits = (key["requests_per_minute"], key["tokens_per_day"], key["device_ids"])
    assert limits == (60, 5000, ["a/cpu:0", "b/cpu:0"])
    listed = " ".join(run("key", "list").out.split())
    assert "LIMITS" in listed and "60" in listed and "minute" in listed
    nowhere = run("key", "create", "--scope", "infer", "--device", "a/cuda:7")
    assert nowhere.code == 2 and "there are host-a/cpu:0, host-b/cpu:0" in " ".join(nowhere.err.split())
    assert run("key", "create", "--scope", "infer", "--tokens-per-day", "0").code == 2
    everything = run("key", "create", "--scope", "admin", "--tokens-per-day", "5")
    assert everything.code == 1 and "leave out the scope admin" in " ".join(everything.err.split())


def test_a_key_is_printed_alone_used_by_exo_itself_and_listed_without_itself(
    ruled: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "only this machine is answered" in run("key", "list").out
    made = run("key", "create", "--scope", "read", "--scope", "infer", "--name", "laptop", "--expires", "30d")
    assert made.code == 0 and made.out.startswith("exo-") and made.out.count("\n") == 1
    assert "read, infer" in made.err and "EXO_API_KEY" in made.err
    monkeypatch.setenv("EXO_API_KEY", made.out.strip())
    assert run("status").code == 0
    refused = run("key", "list")
    assert refused.code == 1 and "--scope admin" in refused.err
    monkeypatch.delenv("EXO_API_KEY")
    listed = run("key", "list")
    (key_id,) = ruled.world.coordinator.state.access.keys
    assert key_id in listed.out and "laptop" in listed.out
    assert made.out.strip().rpartition("-")[2] not in listed.out
    assert json.loads(run("key", "list", "--json").out)["keys"][0]["scopes"] == ["read", "infer"]
    assert run("key", "delete", key_id).code == 0
    assert run("key", "create").code == 2
    wrong = run("key", "create", "--scope", "root")
    assert wrong.code == 1 and "scopes" in wrong.err
    bad = run("key", "create", "--scope", "read", "--expires", "soon")
    assert bad.code == 2 and "30d" in bad.err


def test_nodes_are_listed_approved_declined_and_removed(ruled: RunningWorld, run: Run) -> None:
    wish(ruled, "1234abcd")
    wish(ruled, "1299ffff", name="attic", key=OTHER_FINGERPRINT)
    listed = run("node", "list").out
    assert "host-a" in listed and "master" in listed
    assert "WANTS TO JOIN" in listed and "cdcd cdcd" in listed and "exo node approve" in listed
    assert len(json.loads(run("node", "list", "--json").out)["wishes"]) == 2
    vague = run("node", "approve", "12")
    assert vague.code == 2 and "1234abcd, 1299ffff" in vague.err
    nobody = run("node", "approve", "nobody").err
    assert "exo node list" in nobody and "exo join" in nobody
    approved = run("node", "approve", "1234")
    assert approved.code == 0 and "cdcd" in approved.out and "192.0.2.7" in approved.out
    declined = run("node", "decline", "attic", "--reason", "not ours")
    assert declined.code == 0
    access = ruled.world.coordinator.state.access
    assert access.approvals[NodeId("1234abcd")].fingerprint == FINGERPRINT
    assert access.declined[NodeId("1299ffff")].reason == "not ours"
    removed = run("node", "remove", "host-b", "--reason", "it burnt & more")
    assert (removed.code, removed.out) == (0, "removed b\n")
    assert ruled.world.coordinator.state.access.removed == {"b": "it burnt & more"}
    leads = run("node", "remove", "a")
    assert leads.code == 1 and "start another node first" in leads.err
    assert run("node", "remove", "nobody").code == 1
    assert "WANTS TO JOIN" not in run("node", "list").out


def test_forgetting_says_what_may_be_lost_and_wants_a_yes(ruled: RunningWorld, run: Run) -> None:
    def happen() -> None:
        coordinator = ruled.world.coordinator
        voters = Voters(voters=(NodeId("a"), NodeId("b")))
        coordinator.set_state(fold(coordinator.state, VotersChanged(voters=voters, reason="test")))

    ruled.portal.call(happen)
    asked = run("node", "forget", "host-b")
    assert asked.code == 2 and "are lost" in asked.err and "exo node forget b --yes" in asked.err
    needless = run("node", "forget", "b", "--yes")
    assert needless.code == 1 and "exo node remove b" in needless.err
    ruled.world.coordinator.has_master = False
    assert run("node", "forget", "b", "--yes").out == "this node goes on without b\n"
    assert ruled.world.coordinator.forgotten == [("b",)]


def note_node(home: Path, url: str) -> None:
    home.mkdir(exist_ok=True)
    host, _, port = url.removeprefix("http://").rpartition(":")
    note = {"pid": os.getpid(), "api_address": {"host": host, "port": int(port)}}
    (home / "node.json").write_text(json.dumps(note))


def test_a_token_is_kept_for_a_node_that_does_not_run(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "new-home"
    outcome = run("join", TOKEN, "--address", "192.0.2.9", "--home", str(home))
    assert outcome.code == 0 and "when it starts next" in outcome.out and "a" * 32 in outcome.err
    assert "b" * 32 not in outcome.out + outcome.err
    assert read_pending_join(home) == PendingJoin(token=TOKEN, address="192.0.2.9:52416")
    run("--home", str(home), "join", TOKEN)
    assert read_pending_join(home) == PendingJoin(token=TOKEN)
    asked = run("--home", str(home), "join", "--address", "192.0.2.9")
    assert asked.code == 0 and "when it starts next" in asked.out and "exo node approve ID" in asked.out
    assert read_pending_join(home) == PendingJoin(address="192.0.2.9:52416")


@pytest.mark.parametrize("is_used_now", [True, False])
def test_a_node_that_runs_is_given_the_token(
    ready: RunningWorld, run: Run, tmp_path: Path, is_used_now: bool
) -> None:
    home = tmp_path / "running"
    note_node(home, ready.url)
    refused = run("--home", str(home), "join", TOKEN)
    assert refused.code == 1 and "exo delete ID" in refused.err
    ready.world.coordinator.set_state(cluster(identity("a")))
    wanted: list[bool] = []
    ready.context.actions = NodeActions(join_wanted=(lambda: wanted.append(True)) if is_used_now else None)
    outcome = run("--home", str(home), "join", TOKEN)
    assert outcome.code == 0 and len(wanted) == is_used_now
    assert ("asks the cluster now" in outcome.out) == is_used_now
    assert read_pending_join(ready.world.home) == PendingJoin(token=TOKEN)
    asked = run("--home", str(home), "join")
    assert asked.code == 0 and len(wanted) == 2 * is_used_now
    assert read_pending_join(ready.world.home) == PendingJoin()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("exo1.short",), "has 3"), (("secret",), "no join token"), ((TOKEN, "--address", "x:"), "--address")],
)
def test_what_is_no_token_or_no_address_is_told(run: Run, arguments: tuple[str, ...], said: str) -> None:
    outcome = run("join", *arguments)
    assert outcome.code == 2 and said in outcome.err


def test_the_record_is_shown_checked_and_read_without_the_node(
    ruled: RunningWorld, run: Run, tmp_path: Path
) -> None:
    assert "nothing has been noted" in run("audit").out
    run("key", "create", "--scope", "infer", "--name", "laptop")
    run("token", "delete", "nothing")
    shown = run("audit").out
    assert "CreateKey" in shown and "name=laptop" in shown and "refused: token_not_found" in shown
    lines = [json.loads(line) for line in run("audit", "--json", "--limit", "1").out.splitlines()]
    assert [line["what"] for line in lines] == ["DeleteToken"]
    whole = run("audit", "--verify")
    assert (whole.code, whole.out) == (0, "all 2 lines follow each other\n")
    assert json.loads(run("audit", "--verify", "--json").out)["is_whole"] is True

    path = ruled.world.home / "audit" / "audit.log"
    path.write_bytes(path.read_bytes().replace(b"laptop", b"lapdog"))
    changed = run("audit", "--verify")
    assert changed.code == 1 and "something was changed or taken out" in changed.out


def test_the_record_of_a_node_that_does_not_run_is_read_from_its_files(
    ruled: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("key", "create", "--scope", "infer")
    monkeypatch.delenv("EXO_URL")
    home = str(ruled.world.home)
    assert "CreateKey" in run("--home", home, "audit").out
    assert run("--home", home, "audit", "--verify").code == 0


@given(number=st.integers(1, 999_999), unit=st.sampled_from("smhdw"))
def test_times_are_read(number: int, unit: str) -> None:
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
    assert parse_duration_s(f" {number}{unit.upper()} ", "--x") == number * seconds


@pytest.mark.parametrize("text", ["", "0s", "1", "1y", "-1h", "1.5h", "9999999s"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--x"):
        parse_duration_s(text, "--x")


def test_a_node_on_every_address_is_reached_on_loopback(tmp_path: Path) -> None:
    note_node(tmp_path, "http://0.0.0.0:7")
    assert noted_url(tmp_path) == "http://127.0.0.1:7"


def test_the_record_is_followed_line_by_line(
    ruled: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("key", "create", "--scope", "infer")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 1:
            raise ExoError("that is enough")
        with NodeClient(ruled.url) as client:
            client.post("/keys", {"scopes": ["read"]})

    monkeypatch.setattr("time.sleep", pause)
    outcome = run("audit", "--follow", "--json")
    assert "that is enough" in outcome.err
    assert [json.loads(line)["seq"] for line in outcome.out.splitlines()] == [1, 2]


@pytest.mark.skipif(os.name == "nt", reason="a folder in the way of a file is told otherwise there")
def test_a_token_that_cannot_be_kept_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "h" / "keys" / "token").mkdir(parents=True)
    outcome = run("join", TOKEN, "--home", str(tmp_path / "h"))
    assert outcome.code == 2 and "cannot write" in outcome.err and "b" * 32 not in outcome.err
