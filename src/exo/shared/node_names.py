"""What people call nodes of one cluster: by name, and where several have the same name by the start of the id, too."""

from collections import Counter
from collections.abc import Mapping

_ID_SHOWN = 4
"""Characters of an id, as many as the dashboard shows."""


def distinct_names(names: Mapping[str, str]) -> dict[str, str]:
    """Return what to call each node, by its id: `oak`, or `oak 7c1f` where another one is called so.

    Args:
        names: Their names by their ids.
    """
    times = Counter(names.values())
    return {
        node_id: f"{name} {node_id[:_ID_SHOWN]}" if times[name] > 1 else name
        for node_id, name in names.items()
    }
