"""Tells the other nodes what was done here with keys that have a quota: in the event that tells the node's profile.

Of a node's profile only the last event counts. So whoever tells it speaks through here: each time it is whole, with
the newest profile and the newest counts.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from exo.shared.types.access import KeyId, KeyUsage
from exo.shared.types.events import NodeProfileUpdated, Telemetry


class ProfileVoice:
    """Speaks for one node.

    Args:
        publish: Takes the events; never waits.
    """

    def __init__(self, publish: Callable[[Sequence[Telemetry]], None]) -> None:
        self._publish = publish
        self._profile: NodeProfileUpdated | None = None
        self._key_usage: dict[KeyId, KeyUsage] = {}

    def publish(self, events: Sequence[Telemetry]) -> None:
        """Pass telemetry of the node on, its profile with the counts."""
        self._publish([self._whole(event) for event in events])

    def tell_key_usage(self, key_usage: Mapping[KeyId, KeyUsage]) -> None:
        """Tell new counts; with the first profile where there was none yet."""
        self._key_usage = dict(key_usage)
        if self._profile is not None:
            self.publish([self._profile])

    def _whole(self, event: Telemetry) -> Telemetry:
        if not isinstance(event, NodeProfileUpdated):
            return event
        self._profile = replace(event, key_usage=self._key_usage)
        return self._profile
