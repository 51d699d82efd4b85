"""What `exo doctor --peers` found out, in sentences with the next step in them. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from exo.cli.checks import Finding
from exo.cluster.facts import PROTOCOL_VERSION, ClusterFacts, PeerStatus
from exo.cluster.judging import judge
from exo.shared.types.nodes import HostPort

Outcome = Literal["open", "refused", "silent", "unreachable", "failed"]


class Knocked(NamedTuple):
    """What became of one TCP connection."""

    address: HostPort
    outcome: Outcome
    reason: str = ""


def explain_unresolved(target: HostPort, reason: str) -> Finding:
    """Say that a name leads nowhere."""
    return Finding(
        "name",
        "broken",
        f"{target.host!r} is not found: {reason}",
        f"give its address instead: exo doctor --peers ADDRESS:{target.port} (its own `exo status` shows it)",
    )


def explain_knock(knocked: Knocked, *, is_other_open: bool) -> Finding:
    """Say what a connection that failed means. It weighs less where another address of the host is open."""
    address, status = knocked.address, "note" if is_other_open else "broken"
    match knocked.outcome:
        case "open":
            return Finding("port", "ok", f"something listens at {address}")
        case "refused":
            return Finding(
                "port",
                status,
                f"{address} refuses: the host answers, but nothing listens there for others",
                "start exo there; if it runs, compare its --cluster-port, and let others in: exo token create "
                "(without a token a node listens on its own host only)",
            )
        case "silent":
            return Finding(
                "port",
                status,
                f"{address} gives no answer ({knocked.reason}): a firewall drops it, or the host is off",
                f"open TCP {address.port} in the firewall of {address.host}, and of what lies between",
            )
        case "unreachable":
            return Finding(
                "port",
                status,
                f"no way leads to {address}: {knocked.reason}",
                "connect both hosts to one network, or to one VPN such as Tailscale",
            )
        case "failed":
            return Finding(
                "port", status, f"cannot connect to {address}: {knocked.reason}", "check the address"
            )


def explain_sniffed(address: HostPort, sniffed: str) -> Finding | None:
    """Say what listens when it is no cluster port of exo; None when it is one."""
    match sniffed:
        case "exo":
            return None
        case "http":
            return Finding(
                "node",
                "broken",
                f"a web server answers at {address}: perhaps exo's API, which is not for other nodes",
                "give the cluster port, by default 52416; `exo status` there shows it",
            )
        case "tls":
            text = f"{address} speaks TLS, but not exo's"
        case "silent":
            text = f"what listens at {address} says nothing to a node of exo"
        case _:
            text = f"another program listens at {address}: it says {sniffed}"
    return Finding(
        "node", "broken", text, "give the cluster port, by default 52416; `exo status` there shows it"
    )


_JOIN = (
    "let it in: exo join TOKEN on the one that is to join, with a token from: exo token create on the other"
)
_SAME_RELEASE = "run the same release of exo on both"
_CLOCKS = (
    "compare the clocks (date -u on both); if they agree: exo join TOKEN on the node whose certificate it is"
)
_NEXT: dict[str, str] = {
    "other_secret": f"nodes of one user on one host: the same EXO_HOST_SECRET_FILE for both; otherwise {_JOIN}",
    "other_protocol": _SAME_RELEASE,
    "early_certificate": _CLOCKS,
    "expired_certificate": _CLOCKS,
    "revoked_certificate": "it was put out of the cluster; to take it in again: exo join TOKEN",
    "foreign_certificate": _JOIN,
    "too_many": "too many connections at once there; try again",
    "too_slow": "the way to it is slow or loses packets; try again, and look at the network",
}


def explain_refusal(address: HostPort, code: str | None, message: str) -> Finding:
    """Say why a node of exo and this host do not believe each other."""
    return Finding("node", "broken", message, _NEXT.get(code or "", _JOIN))


def explain_facts(
    address: HostPort, theirs: ClusterFacts, own: ClusterFacts, *, is_running: bool
) -> list[Finding]:
    """Say who answers, and why it is or is not of this node's cluster.

    Args:
        is_running: A node runs here, and `own` are its facts.
    """
    text = f"{theirs.name} ({theirs.node_id}) answers at {address}: exo {theirs.exo_version}"
    if theirs.node_id == own.node_id and theirs.cluster_address == own.cluster_address:
        return [Finding("node", "ok", f"{text}; it is the node that runs here")]
    findings = [Finding("node", "ok", f"{text}, and knows this host's key or certificate")]
    if theirs.version != PROTOCOL_VERSION:
        text = f"it speaks protocol {theirs.version}, this host {PROTOCOL_VERSION}"
        return [*findings, Finding("protocol", "broken", text, _SAME_RELEASE)]
    if theirs.exo_version != own.exo_version:
        text = f"it runs exo {theirs.exo_version}, this host {own.exo_version}"
        findings.append(Finding("release", "note", text, _SAME_RELEASE))
    if theirs.namespace != own.namespace:
        text = f"it belongs to the namespace {theirs.namespace!r}, this host to {own.namespace!r}"
        step = f"start both with the same one, such as: exo --namespace {own.namespace}"
        return [*findings, Finding("namespace", "broken", text, step)]
    if not is_running:
        text = f"no node runs here that could join it; its cluster has {theirs.member_count} nodes"
        return [*findings, Finding("cluster", "ok", text, f"exo --peer {address}")]
    judgement = judge(own, theirs, is_waiting=True)
    return [
        *findings,
        explain_status("cluster", judgement.status, f"{theirs.name}: {judgement.detail}", address),
    ]


_OK: Sequence[PeerStatus] = ("member", "joining")
_BROKEN: Sequence[PeerStatus] = ("same_node_id", "two_masters")
_STEPS: dict[PeerStatus, str] = {
    "other_cluster": "it joins when its cluster has no instances and its master sees this one's; see there: exo status",
    "other_namespace": "start both with the same --namespace to join them",
    "other_secret": _NEXT["other_secret"],
    "other_version": _SAME_RELEASE,
    "both_have_instances": "delete what one of them has (exo delete ID, exo key delete ID), and it joins the other; "
    "one that made a token or key has an authority, too: start its node with a new data directory (EXO_HOME)",
    "no_master": "start the node that was its master again, or see there: exo status",
    "removed": "to join it again: exo token create on one of its nodes, then here: exo join TOKEN",
    "same_node_id": "delete the file node_id in the data directory that is the copy, and start that node again",
    "two_masters": "stop the node whose data directory is the copy",
    "malformed": "another program uses the discovery port; choose another with --discovery-port on all nodes",
}


def explain_status(name: str, status: PeerStatus, text: str, address: HostPort | None) -> Finding:
    """Say what became of a peer that was noticed, with what to do."""
    if status in _OK:
        return Finding(name, "ok", text)
    step = _STEPS.get(status) or (f"exo doctor --peers {address}" if address else "see the log of both nodes")
    return Finding(name, "broken" if status in _BROKEN else "note", text, step)
