"""The ids that name things across the cluster. All are opaque strings."""

from typing import NewType

NodeId = NewType("NodeId", str)
"""Random once, kept in the node's data directory."""

ClusterId = NewType("ClusterId", str)
"""Random once, when a cluster is formed."""

DeviceId = NewType("DeviceId", str)
"""Cluster-wide `<node_id>/<backend>:<uuid or index>`; `cuda:0` is only the local alias."""

ModelId = NewType("ModelId", str)
"""The name of a model's directory below a models folder, such as `exo-tiny` or `org/name`."""

InstanceId = NewType("InstanceId", str)
EventId = NewType("EventId", str)
CommandId = NewType("CommandId", str)
RequestId = NewType("RequestId", str)


def device_id(node_id: NodeId, local_alias: str) -> DeviceId:
    """Return the cluster-wide id of the device that `node_id` calls `local_alias` (such as `cpu:0`)."""
    return DeviceId(f"{node_id}/{local_alias}")
