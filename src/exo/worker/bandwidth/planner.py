"""Which way to measure next, and when: seldom, one at a time, the one that nobody has looked at for longest. Pure."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping

import msgspec

from exo.shared.types.ids import DeviceId, NodeId


class NodeWay(msgspec.Struct, frozen=True, order=True, tag=True):
    """From this node to another one."""

    dest: NodeId


class DeviceWay(msgspec.Struct, frozen=True, order=True, tag=True):
    """Between two devices of this node."""

    source: DeviceId
    dest: DeviceId


Way = NodeWay | DeviceWay


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often is measured; seconds."""

    refresh_s: float = 1800.0
    """A way is measured again after so long."""
    jitter: float = 0.2
    """Up to this part of it earlier or later, so that nodes that started together do not measure together."""
    spacing_s: float = 5.0
    """Between two measurements of a node: in a large cluster each way comes later instead."""
    retry_first_s: float = 15.0
    retry_max_s: float = 1800.0
    """After a failure, doubling."""
    settle_s: float = 3.0
    """After the start, and after the node was busy."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the last attempt at a way."""

    at_s: float
    failures: int = 0
    """In a row."""
    shift: float = 0.0
    """-1 to 1: where within the jitter its next time lies."""


class Next(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure, and from when on."""

    way: Way
    at_s: float


def due_s(tried: Tried | None, pace: Pace) -> float:
    """Return the time from which on a way should be measured; minus infinity where it never was."""
    if tried is None:
        return float("-inf")
    if tried.failures == 0:
        return tried.at_s + pace.refresh_s * (1 + pace.jitter * tried.shift)
    wait_s = pace.retry_first_s
    for _ in range(tried.failures - 1):
        if wait_s >= pace.retry_max_s:
            break
        wait_s *= 2
    return tried.at_s + min(wait_s, pace.retry_max_s) * (1 + pace.jitter * tried.shift)


def choose(
    ways: Collection[Way], history: Mapping[Way, Tried], *, last_s: float | None, pace: Pace
) -> Next | None:
    """Return the way that is due first; None: there is none.

    Of those that never were measured it takes ways between devices and ways to nodes in turn, so that neither many
    devices nor many nodes hold up the others.

    Args:
        ways: All there are.
        history: What became of them.
        last_s: When the last measurement of this node ended; None: there was none.
        pace: How often.
    """
    if not ways:
        return None
    tried = Counter(type(one) for one in history)
    way = min(ways, key=lambda one: (due_s(history.get(one), pace), tried[type(one)], _name(one)))
    earliest_s = float("-inf") if last_s is None else last_s + pace.spacing_s
    return Next(way=way, at_s=max(due_s(history.get(way), pace), earliest_s))


def noted(before: Tried | None, *, at_s: float, has_failed: bool, random: Callable[[], float]) -> Tried:
    """Return what is remembered of a way after an attempt.

    Args:
        before: What was remembered.
        at_s: Present time.
        has_failed: It came to nothing.
        random: Gives numbers from 0 to 1.
    """
    failures = (before.failures if before is not None else 0) + 1 if has_failed else 0
    return Tried(at_s=at_s, failures=failures, shift=2 * random() - 1)


def _name(way: Way) -> tuple[str, ...]:
    """Of equals devices of this node come first: they cost others nothing."""
    return ("0", way.source, way.dest) if isinstance(way, DeviceWay) else ("1", way.dest)
