"""Which instance, node or device a person means, or what there is instead."""

from collections.abc import Sequence
from typing import Any

from exo.shared.errors import ConfigurationError
from exo.shared.near_matches import near_matches

Json = dict[str, Any]

_PREFIX_MIN = 3
_LISTED_MAX = 8


def find_instance(instances: Sequence[Json], text: str) -> Json:
    """Return the instance with this id, this start of an id, or of this model.

    Raises:
        ConfigurationError: None fits, or several do.
    """
    for one in instances:
        if one["instance_id"] == text:
            return one
    fitting = [one for one in instances if one["model_id"] == text]
    if not fitting and len(text) >= _PREFIX_MIN:
        fitting = [one for one in instances if one["instance_id"].startswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        ids = ", ".join(one["instance_id"] for one in fitting)
        raise ConfigurationError(f"{text!r} may be any of {ids}; give one id")
    if not instances:
        raise ConfigurationError(
            f"there is no instance {text!r}; nothing is placed: exo place MODEL places one"
        )
    listed = [f"{one['instance_id']} ({one['model_id']})" for one in instances]
    names = [name for one in instances for name in (one["instance_id"], one["model_id"])]
    raise ConfigurationError(f"there is no instance {text!r}; {hint(text, names, listed)}")


def find_node(nodes: Sequence[Json], text: str) -> str:
    """Return the id of the node with this id, this name, or this start of an id.

    Raises:
        ConfigurationError: None fits, or several do.
    """
    if any(node["node_id"] == text for node in nodes):
        return text
    fitting = [node for node in nodes if node["name"] == text]
    if not fitting and len(text) >= _PREFIX_MIN:
        fitting = [node for node in nodes if node["node_id"].startswith(text)]
    if len(fitting) == 1:
        return str(fitting[0]["node_id"])
    listed = [f"{node['name']} ({node['node_id']})" for node in (fitting or nodes)]
    if fitting:
        raise ConfigurationError(f"the node {text!r} may be any of {', '.join(listed)}; give an id")
    names = [name for node in nodes for name in (node["name"], node["node_id"])]
    raise ConfigurationError(f"there is no node {text!r}; {hint(text, names, listed)}")


def find_device(nodes: Sequence[Json], text: str) -> str:
    """Return the id of the device `NODE/ALIAS`, whose node may be given as in `find_node`.

    Raises:
        ConfigurationError: None fits, or several do.
    """
    known = {device["device_id"]: device for node in nodes for device in node["devices"]}
    listed = [f"{node['name']}/{one['local_alias']}" for node in nodes for one in node["devices"]]
    if text in known:
        return text
    node_text, separator, alias = text.partition("/")
    if separator:
        node_id = find_node(nodes, node_text)
        for device_id, device in known.items():
            if device_id.startswith(f"{node_id}/") and device["local_alias"] == alias:
                return str(device_id)
    raise ConfigurationError(f"there is no device {text!r}; {hint(text, listed, listed)}")


def find_node_or_device(nodes: Sequence[Json], text: str) -> str:
    """Return the id of a node, or of a device `NODE/ALIAS`; raises as these do."""
    return find_device(nodes, text) if "/" in text else find_node(nodes, text)


def hint(text: str, names: Sequence[str], listed: Sequence[str]) -> str:
    """Return what a name may have meant, and what there is: of many the first, and where the others are found."""
    near = near_matches(text, names)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    more = len(listed) - _LISTED_MAX
    told = ", ".join(listed[:_LISTED_MAX]) + (f" and {more} more (exo status)" if more > 0 else "")
    there = "there is" if len(listed) == 1 else "there are"
    return f"{meant}{there} {told}" if listed else f"{meant}there is none"
