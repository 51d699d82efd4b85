"""What `exo doctor --peers` hears by itself: whether multicast works on each interface, and who announces itself."""

import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from exo.cli.checks import Finding
from exo.cluster.discovery.addresses import address_at, with_scope
from exo.cluster.discovery.beacon import (
    BEACON_BYTES_MAX,
    TEST_MAGIC,
    BeaconHead,
    Heard,
    Stranger,
    decode_beacon,
)
from exo.cluster.discovery.groups import GROUP_V4, GROUP_V6, aim, join, open_receiver
from exo.cluster.discovery.interfaces import Interface, scope_name
from exo.shared.types.nodes import HostPort

LISTEN_S = 2.5
"""Long enough for every node to have spoken twice, unless hundreds are within hearing."""
CLOCK_DIFFERENCE_MAX_S = 30.0
_PAUSE_S = 0.3
_HEARD_MAX = 256
_FAMILIES = ((socket.AF_INET, "IPv4", GROUP_V4), (socket.AF_INET6, "IPv6", GROUP_V6))
_CLOCK_STEP = "let both hosts keep their time by NTP, such as: timedatectl set-ntp true"


@dataclass
class SelfTest:
    """One interface and family: whether what was sent to the group there came back."""

    interface: str
    family: str
    word: bytes
    is_loopback: bool
    is_heard: bool = False
    problem: str = ""


@dataclass
class Announced:
    """A node that announces itself."""

    head: BeaconHead
    address: HostPort
    is_known: bool
    """Its beacon is made with a key that was given."""
    fault: str
    clock_difference_s: float


@dataclass
class Listened:
    """All that was heard."""

    tests: list[SelfTest] = field(default_factory=list[SelfTest])
    announced: dict[str, Announced] = field(default_factory=dict[str, Announced])
    """By node id."""
    problem: str = ""
    """Why nothing could be heard at all."""


def listen(
    port: int,
    keys: Sequence[bytes],
    interfaces: Sequence[Interface],
    *,
    seconds: float = LISTEN_S,
) -> Listened:
    """Take part in the multicast for a moment, and send to oneself on every interface what nodes pass over."""
    found = Listened()
    receivers: list[socket.socket] = []
    senders: list[tuple[SelfTest, socket.socket, tuple[str, int] | tuple[str, int, int, int]]] = []
    try:
        for family, name, group in _FAMILIES:
            try:
                receiver = open_receiver(family, group, port)
            except OSError as error:
                found.problem = f"{name}: {error.strerror or error}"
                continue
            receivers.append(receiver)
            for interface in interfaces:
                addresses = interface.v6 if family == socket.AF_INET6 else interface.v4
                if not addresses:
                    continue
                test = SelfTest(interface.name, name, os.urandom(16), interface.is_loopback)
                found.tests.append(test)
                key = (interface.index, str(addresses[0].ip))
                sender = socket.socket(family, socket.SOCK_DGRAM)
                try:
                    join(receiver, family, group, *key)
                    aim(sender, family, *key)
                except OSError as error:
                    test.problem = error.strerror or str(error)
                    sender.close()
                    continue
                to = (group, port, 0, interface.index) if family == socket.AF_INET6 else (group, port)
                senders.append((test, sender, to))
        if receivers:
            found.problem = ""
            _talk(receivers, senders, found, keys, seconds)
    finally:
        for one in (*receivers, *(sender for _, sender, _ in senders)):
            one.close()
    return found


def _talk(
    receivers: list[socket.socket],
    senders: list[tuple[SelfTest, socket.socket, tuple[str, int] | tuple[str, int, int, int]]],
    found: Listened,
    keys: Sequence[bytes],
    seconds: float,
) -> None:
    until_s = time.monotonic() + seconds
    next_s = 0.0
    while (now_s := time.monotonic()) < until_s:
        if now_s >= next_s:
            next_s = now_s + _PAUSE_S
            for test, sender, to in senders:
                if not test.is_heard:
                    try:
                        # As long as a beacon: a path that drops what is long drops this, too.
                        sender.sendto((TEST_MAGIC + test.word).ljust(600, b"\0"), to)
                    except OSError as error:
                        test.problem = error.strerror or str(error)
        ready, _, _ = select.select(receivers, [], [], max(0.0, min(until_s, next_s) - now_s))
        for receiver in ready:
            try:
                data, source = receiver.recvfrom(BEACON_BYTES_MAX + 1)
            except OSError:
                continue
            if data.startswith(TEST_MAGIC):
                for test, _, _ in senders:
                    test.is_heard = test.is_heard or data[4:20] == test.word
            else:
                scope = scope_name(source[3]) if len(source) == 4 and source[3] else None
                _note(found, data, with_scope(source[0].partition("%")[0], scope), keys)


def _note(found: Listened, data: bytes, host: str, keys: Sequence[bytes]) -> None:
    heard = decode_beacon(keys, data)
    if isinstance(heard, str):
        return
    if isinstance(heard, Heard):
        facts = heard.facts
        head = BeaconHead(
            namespace=facts.namespace,
            node_id=facts.node_id,
            name=facts.name,
            cluster_address=facts.cluster_address,
            cluster_id=facts.cluster_id,
            exo_version=facts.exo_version,
            sent_at_s=heard.sent_at_s,
        )
    else:
        head = heard.head
    if head.node_id in found.announced or len(found.announced) < _HEARD_MAX:
        found.announced[head.node_id] = Announced(
            head=head,
            address=address_at(head.cluster_address, host),
            is_known=isinstance(heard, Heard),
            fault=heard.fault if isinstance(heard, Stranger) else "",
            clock_difference_s=head.sent_at_s - time.time(),
        )


# --- in words, pure ------------------------------------------------------------------------------------------------


def explain_multicast(found: Listened, port: int) -> list[Finding]:
    """Say on which interfaces multicast works, and what to look for where it does not."""
    if found.problem:
        step = f"end what uses UDP {port}, or name the other nodes: exo --peer HOST:PORT"
        return [Finding("multicast", "broken", f"UDP {port} cannot be heard: {found.problem}", step)]
    heard = [test for test in found.tests if test.is_heard]
    findings: list[Finding] = []
    if heard:
        listed = ", ".join(f"{test.interface} {test.family}" for test in heard)
        findings.append(Finding("multicast", "ok", f"what is sent to the group comes back on {listed}"))
    for test in found.tests:
        # One family is enough; and not every system has IPv6's multicast on its loopback interface.
        is_covered = any(one.is_heard and one.interface == test.interface for one in found.tests)
        if test.is_heard or is_covered:
            continue
        reason = f"it cannot be sent: {test.problem}" if test.problem else "nothing came back"
        step = (
            f"let UDP {port} through this host's firewall; in a virtual machine or container use the host's network; "
            "or name the other nodes: exo --peer HOST:PORT"
        )
        findings.append(Finding("multicast", "note", f"{test.interface} {test.family}: {reason}", step))
    if not found.tests:
        findings.append(
            Finding(
                "multicast", "note", "no network interface has an address", "connect this host to a network"
            )
        )
    return findings


def explain_announced(found: Listened, *, own_node_id: str | None, namespace: str) -> list[Finding]:
    """Say who announces itself here, whether its beacon can be believed, and whose clock is wrong."""
    findings: list[Finding] = []
    for one in sorted(found.announced.values(), key=lambda one: one.head.node_id):
        head = one.head
        if head.node_id == own_node_id:
            continue
        text = f"{head.name} ({head.node_id}) at {one.address}, exo {head.exo_version}, announces itself"
        if one.fault == "other_version":
            step = "run the same release of exo on both"
            findings.append(Finding("heard", "note", f"{text} with beacons of another release", step))
        elif head.namespace != namespace:
            step = f"start both with the same namespace, such as: exo --namespace {namespace}"
            text += f", in the namespace {head.namespace!r}; this is {namespace!r}"
            findings.append(Finding("heard", "note", text, step))
        elif not one.is_known:
            step = (
                "if it is yours: exo join TOKEN (there), or exo join (there) and "
                f"exo node approve {head.node_id} (here); "
                "a node of this user on this host needs the same EXO_HOST_SECRET_FILE"
            )
            findings.append(
                Finding("heard", "note", f"{text} under a key that this host does not have", step)
            )
        else:
            findings.append(Finding("heard", "ok", f"{text} under a key of this host or its cluster"))
        findings += explain_clock(one.clock_difference_s, head.name, is_told_when_right=False)
    return findings


def explain_clock(difference_s: float, name: str, *, is_told_when_right: bool) -> list[Finding]:
    """Compare clocks: certificates and joining fail where they are far apart.

    Args:
        difference_s: The other's clock less this host's.
        is_told_when_right: Say so, too.
    """
    if abs(difference_s) > CLOCK_DIFFERENCE_MAX_S:
        way = "ahead of" if difference_s > 0 else "behind"
        text = f"the clock of {name} is {_duration(abs(difference_s))} {way} this host's"
        return [Finding("clock", "broken", text, _CLOCK_STEP)]
    if is_told_when_right:
        return [Finding("clock", "ok", f"the clock of {name} agrees with this host's")]
    return []


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
