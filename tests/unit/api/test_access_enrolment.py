"""A stranger's request to join, with real keys and proofs: let in, made to wait or refused, and written down."""

import json
import secrets

import httpx
import pytest
from msgspec.structs import replace

from exo.api.access_enrolment import EnrolmentDesk
from exo.cluster.trust.authority import create_key, create_request
from exo.cluster.trust.certificates import read_node_certificate
from exo.cluster.trust.errors import CertificateError
from exo.cluster.trust.messages import (
    EnrolGranted,
    EnrolOrigin,
    EnrolRefused,
    EnrolRequest,
    EnrolWaiting,
    with_proof,
)
from exo.cluster.trust.token import parse_token
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.access_stories import JOINER
from support.api_world import World, client_of, rule

ORIGIN = EnrolOrigin(address=HostPort("192.0.2.7", 40000), server_certificate_sha256=secrets.token_bytes(32))
KEY_PEM = create_key()


def request(node_id: NodeId = JOINER, *, namespace: str = "test") -> EnrolRequest:
    return EnrolRequest(
        node_id=node_id,
        name="basement",
        platform="linux",
        exo_version="0",
        csr=create_request(KEY_PEM, node_id),
        namespace=namespace,
    )


class Door:
    """An application of a node that strangers reach, and whoever may use its API."""

    def __init__(self, world: World) -> None:
        rule(world)
        app = world.app()
        self.world = world
        self.enrol = EnrolmentDesk(app.state.context)
        self.http = client_of(app)

    async def audit(self) -> list[tuple[str, str, str | None]]:
        lines = (await self.http.get("/audit")).json()["entries"]
        return [(line["what"], line["result"], line["code"]) for line in lines]


@pytest.fixture
def door(world: World) -> Door:
    return Door(world)


async def token_of(http: httpx.AsyncClient) -> str:
    return (await http.post("/tokens", json={})).json()["token"]


async def test_a_token_lets_a_node_in_with_a_certificate_of_its_own(door: Door) -> None:
    token = parse_token(await token_of(door.http))
    asked = with_proof(request(), token, ORIGIN.server_certificate_sha256)
    answer = await door.enrol(asked, ORIGIN)
    assert isinstance(answer, EnrolGranted)
    read = read_node_certificate(answer.certificate)
    assert read.node_id == JOINER and answer.cluster_id == "cluster"
    (certificate,) = door.world.coordinator.state.access.certificates[JOINER]
    assert certificate.serial == read.serial
    # Asked again, as after a lost answer: the same certificate.
    assert await door.enrol(asked, ORIGIN) == answer
    assert await door.audit() == [
        ("CreateToken", "done", None), ("EnrolNode", "done", None), ("EnrolNode", "done", None)
    ]  # fmt: skip


async def test_a_proof_is_worth_nothing_on_another_servers_connection(door: Door) -> None:
    token = parse_token(await token_of(door.http))
    asked = with_proof(request(), token, secrets.token_bytes(32))
    answer = await door.enrol(asked, ORIGIN)
    assert isinstance(answer, EnrolRefused) and answer.code == "token_wrong"
    (held,) = door.world.coordinator.state.access.tokens.values()
    assert held.wrong_tries == 1


async def test_guessing_locks_the_token_is_counted_and_written_down_once(door: Door) -> None:
    token = parse_token(await token_of(door.http))
    right = with_proof(request(), token, ORIGIN.server_certificate_sha256)
    codes: list[str] = []
    for _ in range(7):
        answer = await door.enrol(replace(right, proof=secrets.token_bytes(32)), ORIGIN)
        assert isinstance(answer, EnrolRefused)
        codes.append(answer.code)
    assert codes == ["token_wrong"] * 5 + ["token_locked"] * 2
    late = await door.enrol(right, ORIGIN)
    assert isinstance(late, EnrolRefused) and late.code == "token_locked"
    assert (await door.audit())[1:] == [
        ("EnrolNode", "refused", "token_wrong"), ("EnrolNode", "refused", "token_locked")
    ]  # fmt: skip
    metrics = (await door.http.get("/metrics")).text
    assert 'exo_enrolments_refused_total{reason="token_wrong"} 5.0' in metrics
    assert 'exo_enrolments_refused_total{reason="token_locked"} 3.0' in metrics


async def test_without_a_token_a_node_waits_and_is_let_in_once_approved(door: Door) -> None:
    for _ in range(3):
        answer = await door.enrol(request(), ORIGIN)
        assert isinstance(answer, EnrolWaiting) and "exo node approve joiner" in answer.text
    (wish,) = (await door.http.get("/nodes")).json()["wishes"]
    assert (wish["node_id"], wish["address"]) == ("joiner", "192.0.2.7:40000")
    body = {"fingerprint": wish["fingerprint"]}
    assert (await door.http.post("/nodes/joiner/approve", json=body)).status_code == 200
    assert isinstance(await door.enrol(request(), ORIGIN), EnrolGranted)
    # However often it asks, it is written down once.
    assert [what for what, _, _ in await door.audit()] == ["EnrolNode", "ApproveNode", "EnrolNode"]


async def test_other_namespaces_and_foreign_requests_are_refused(door: Door) -> None:
    answer = await door.enrol(request(namespace="other"), ORIGIN)
    assert isinstance(answer, EnrolRefused) and "--namespace test" in answer.reason
    for csr in (b"nothing", create_request(KEY_PEM, NodeId("somebody"))):
        with pytest.raises(CertificateError):
            await door.enrol(replace(request(), csr=csr), ORIGIN)
    metrics = (await door.http.get("/metrics")).text
    assert 'exo_enrolments_refused_total{reason="other_namespace"} 1.0' in metrics
    assert 'exo_enrolments_refused_total{reason="request_malformed"} 2.0' in metrics
    assert door.world.coordinator.proposed == []


async def test_a_removed_node_is_not_let_in_again_by_its_old_token(door: Door) -> None:
    token = parse_token((await door.http.post("/tokens", json={"uses": 5})).json()["token"])
    asked = with_proof(request(), token, ORIGIN.server_certificate_sha256)
    assert isinstance(await door.enrol(asked, ORIGIN), EnrolGranted)
    assert (await door.http.delete("/nodes/joiner")).status_code == 200
    answer = await door.enrol(asked, ORIGIN)
    assert isinstance(answer, EnrolRefused) and answer.code == "node_removed"
    state = (await door.http.get("/audit")).content
    assert json.loads(state)["entries"][-1]["who"] == "node joiner"
