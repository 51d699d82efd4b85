"""`exo doctor --peers`: why each node that was noticed is or is not of this cluster, and what to check when none is."""

import asyncio
import os
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from exo.api.access_join import JoinOutcome, read_join_outcome
from exo.cli.advice import explain_status
from exo.cli.checks import Finding, home_folder
from exo.cli.client import NodeClient
from exo.cli.listening import LISTEN_S, Listened, explain_announced, explain_multicast, listen
from exo.cli.probe import Myself, examine
from exo.cluster.discovery.interfaces import read_interfaces
from exo.cluster.facts import ClusterFacts
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.addresses import is_loopback
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.trust.key_store import KeyStore
from exo.node_trust.trust import beacon_keys
from exo.settings import API_PORT, CLUSTER_PORT, secret_file
from exo.shared.errors import ConfigurationError, ExoError
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort

Json = dict[str, Any]

OLD_S = 10.0
"""Who was last noticed longer ago than this may be gone."""


def examine_peers(
    open_client: Callable[[], NodeClient],
    *,
    home: Path | None,
    target: str | None,
) -> list[Finding]:
    """Ask the node that runs here whom it noticed, listen for others, and try an address where one is given.

    Args:
        open_client: Returns a client of the node to ask; raises ExoError where there is none.
        home: The data directory, for the keys of the node that uses it.
        target: `HOST` or `HOST:PORT` of another node.

    Raises:
        ConfigurationError: `target` is no address.
    """
    address = parse_target(target) if target is not None else None
    findings: list[Finding] = []
    state, peers = _ask_node(open_client, findings)
    namespace: str = state["namespace"] if state is not None else os.environ.get("EXO_NAMESPACE") or "default"
    own_node_id: str | None = state["node_id"] if state is not None else None
    findings += explain_joining(read_join_outcome(home_folder(home)))

    secret = _secret(findings)
    port = _port("EXO_DISCOVERY_PORT", CLUSTER_PORT)
    listened = listen(
        port, _beacon_keys(home_folder(home), own_node_id, secret), read_interfaces(), seconds=LISTEN_S
    )
    findings += explain_multicast(listened, port)
    findings += explain_announced(listened, own_node_id=own_node_id, namespace=namespace)
    findings += explain_peers(peers)
    findings += explain_silence(listened, peers, own_node_id=own_node_id, namespace=namespace)
    if address is not None:
        try:
            myself = make_myself(state, home_folder(home), secret or bytes(32), namespace)
        except ConfigurationError as error:
            step = "mend or move the file; exo join TOKEN makes a new certificate"
            return [*findings, Finding("certificate", "broken", error.message, step)]
        findings += asyncio.run(examine(address, myself, api_port=_port("EXO_PORT", API_PORT)))
    return findings


def parse_target(text: str) -> HostPort:
    """Return an address, with the usual cluster port where it has none.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        return HostPort.parse(text, CLUSTER_PORT)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def explain_joining(outcome: JoinOutcome | None) -> list[Finding]:
    """Say why this node is not in the cluster that it was told to join."""
    if outcome is None:
        return []
    if outcome.is_waiting:
        return [
            Finding(
                "joining", "note", outcome.text, "it goes on asking; to end that: exo join with another token"
            )
        ]
    step = "exo token create on a node of that cluster, then here: exo join TOKEN"
    return [Finding("joining", "broken", outcome.text, step)]


def explain_peers(peers: list[Json]) -> list[Finding]:
    """Say of everybody whom the node here noticed what became of it."""
    return [
        _explain_peer(peer) for peer in sorted(peers, key=lambda peer: (peer["status"], str(peer["name"])))
    ]


def _explain_peer(peer: Json) -> Finding:
    where = peer["address"]
    address = HostPort(where["host"], where["port"]) if where is not None else None
    who = f"{peer['name'] or peer['node_id'] or 'somebody'} at {address or 'an unknown address'}"
    text = f"{who}, by {peer['via']}: {peer['status']}: {peer['detail']}"
    if peer["age_s"] > OLD_S:
        text += f" (last noticed {peer['age_s']:.0f} s ago)"
    return explain_status("peer", peer["status"], text, address)


def explain_silence(
    listened: Listened, peers: list[Json], *, own_node_id: str | None, namespace: str
) -> list[Finding]:
    """Say what to check where nobody is there."""
    findings: list[Finding] = []
    if own_node_id is not None and own_node_id not in listened.announced and not listened.problem:
        text = "the node that was asked was not heard announcing itself here"
        step = "start it without --no-discovery; if it has another --discovery-port, set EXO_DISCOVERY_PORT to it"
        findings.append(Finding("announcing", "note", text, step))
    if not peers and not listened.announced.keys() - {own_node_id}:
        step = (
            f"on the other host: is exo running, without --no-discovery, in the namespace {namespace!r}, on the same "
            "network (no guest network, no VPN in between)? then, from here: exo doctor --peers ITS-ADDRESS"
        )
        findings.append(Finding("peers", "note", "no other node was noticed", step))
    return findings


def make_myself(state: Json | None, home: Path, secret: bytes, namespace: str) -> Myself:
    """Return as whom to ask other nodes: as the node that runs here, else as nobody of any cluster.

    Raises:
        ConfigurationError: The certificate in the data directory cannot be used.
    """
    node = _own_node(state) if state is not None else None
    node_id = NodeId(node["node_id"] if node is not None else _kept_node_id(home))
    transport = TcpTransport(secret)
    identity = KeyStore(home).load_identity(node_id)
    if identity is not None:
        transport.set_identity(identity)
    if state is None or node is None:
        facts = ClusterFacts(
            exo_version=version("exo"),
            namespace=namespace,
            node_id=node_id,
            boot_id="doctor",
            name=f"exo doctor on {socket.gethostname()}",
            cluster_address=HostPort(socket.gethostname(), CLUSTER_PORT),
            cluster_id=None,
            incarnation=0,
            term=0,
            index=0,
            master_node_id=None,
            master_address=None,
            member_count=0,
            instance_count=0,
        )
        return Myself(facts, transport, is_running=False)
    nodes = {one["node_id"]: one for one in state["topology"]["nodes"]}
    master = nodes.get(state["master_node_id"])
    facts = ClusterFacts(
        exo_version=node["exo_version"],
        namespace=namespace,
        node_id=node_id,
        boot_id=node["boot_id"],
        name=node["name"],
        cluster_address=_address(node["cluster_address"]),
        cluster_id=ClusterId(state["cluster_id"]) if state["cluster_id"] else None,
        incarnation=1,
        term=state["term"],
        index=state["index"],
        master_node_id=NodeId(master["node_id"]) if master is not None else None,
        master_address=_address(master["cluster_address"]) if master is not None else None,
        member_count=len(nodes),
        instance_count=len(state["instances"]),
    )
    return Myself(facts, transport, is_running=True)


def _ask_node(
    open_client: Callable[[], NodeClient], findings: list[Finding]
) -> tuple[Json | None, list[Json]]:
    try:
        with open_client() as client:
            state, peers = client.get("/state"), client.get("/peers")["peers"]
    except ExoError as error:
        step = "start a node with: exo (what follows was found without one)"
        findings.append(Finding("node here", "note", error.message, step))
        return None, []
    count = len(state["topology"]["nodes"])
    text = (
        f"{client.url} is of the cluster {state['cluster_id'] or '-'} in the namespace {state['namespace']!r}, "
        f"with {count} {'node' if count == 1 else 'nodes'}"
    )
    if state["master_node_id"] is None:
        findings.append(
            Finding("node here", "note", f"{text} and no master", "start the others again: exo status")
        )
    else:
        findings.append(Finding("node here", "ok", text))
    _warn_of_loopback(state, findings)
    return state, peers


def _warn_of_loopback(state: Json, findings: list[Finding]) -> None:
    own = _own_node(state)
    if own is not None and is_loopback(own["cluster_address"]["host"]):
        text = f"it listens at {_address(own['cluster_address'])}: nodes of other hosts cannot reach it"
        step = "to let them in, make a token: exo token create"
        findings.append(Finding("reach", "note", text, step))


def _own_node(state: Json) -> Json | None:
    nodes: list[Json] = state["topology"]["nodes"]
    return next((one for one in nodes if one["node_id"] == state["node_id"]), None)


def _beacon_keys(home: Path, own_node_id: str | None, secret: bytes | None) -> list[bytes]:
    """Return the keys of beacons that the node of this data directory can read."""
    try:
        identity = KeyStore(home).load_identity(NodeId(own_node_id or _kept_node_id(home)))
    except ConfigurationError:  # Told where an address is tried, with what to do.
        identity = None
    return ([] if identity is None else beacon_keys(identity, b"")[:1]) + ([] if secret is None else [secret])


def _secret(findings: list[Finding]) -> bytes | None:
    """Return the host secret without making one."""
    path = secret_file()
    if not path.exists():
        text = f"there is no host secret {path} yet: no node has run here"
        findings.append(Finding("host secret", "note", text, "the first start makes it: exo"))
        return None
    try:
        return load_host_secret(path)
    except ConfigurationError as error:
        findings.append(Finding("host secret", "broken", error.message, "mend the file, or move it away"))
        return None


def _kept_node_id(home: Path) -> str:
    try:
        return (home / "node_id").read_text(encoding="utf-8").strip() or "doctor"
    except (OSError, ValueError):
        return "doctor"


def _address(view: Json) -> HostPort:
    return HostPort(view["host"], view["port"])


def _port(variable: str, usual: int) -> int:
    text = os.environ.get(variable) or ""
    return int(text) if text.isdecimal() and 0 < int(text) < 65536 else usual
