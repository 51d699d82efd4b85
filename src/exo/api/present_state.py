"""`GET /state` as bytes, put together from pieces that are kept: what has not changed is not encoded again.

With 1,000 nodes of 8 devices it is 8 MB, and telemetry of some nodes comes many times a second. States are immutable
and share what did not change, so the same object has the same bytes.
"""

from collections.abc import Sequence
from operator import is_
from typing import Any

import msgspec

from exo.api import present
from exo.shared import topology
from exo.shared.types.devices import DeviceGPUState, NodePerformanceProfile
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.nodes import DeviceLink, Link, Node
from exo.shared.types.state import State


class _NodePiece(msgspec.Struct, frozen=True):
    node: Node
    profile: NodePerformanceProfile | None
    encoded: msgspec.Raw


class _DevicesPiece(msgspec.Struct, frozen=True):
    devices: dict[DeviceId, DeviceGPUState]
    encoded: bytes
    """Without the braces around it; empty without devices."""


class StateCache:
    """The newest state as bytes: encoded once per state, however many ask for it."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._state: State | None = None
        self._master: NodeId | None = None
        self._encoded = b""
        self._nodes: dict[NodeId, _NodePiece] = {}
        self._devices: dict[NodeId, _DevicesPiece] = {}
        self._linked: tuple[dict[NodeId, Node], list[dict[NodeId, Link]]] = ({}, [])
        """What `_links` and `_metrics` were made of."""
        self._links = self._metrics = msgspec.Raw()
        self._linked_devices: tuple[dict[NodeId, Node], list[dict[str, DeviceLink]]] = ({}, [])
        """What `_device_links` was made of."""
        self._device_links = msgspec.Raw(b"[]")

    def encode(self, state: State, master: NodeId | None) -> bytes:
        """Return the JSON of `GET /state`, of the shape `ClusterStateView`.

        Args:
            state: The newest state.
            master: Who leads, as far as this node can reach anyone; None without a master.
        """
        if state is not self._state or master != self._master:
            self._update_links(state)
            self._encoded = msgspec.json.encode(
                {
                    "cluster_id": state.cluster_id,
                    "namespace": state.namespace,
                    "node_id": self._node_id,
                    "index": state.index,
                    "term": state.term,
                    "incarnation": state.incarnation,
                    "voters": state.voters,
                    "master_node_id": master,
                    "topology": {
                        "nodes": self._encode_nodes(state),
                        "links": self._links,
                        "device_links": self._device_links,
                        "metrics": self._metrics,
                    },
                    "instances": {
                        key: present.instance(state, value) for key, value in sorted(state.instances.items())
                    },
                    "gpu_device_state": self._encode_devices(state),
                }
            )
            self._state, self._master = state, master
        return self._encoded

    def _encode_nodes(self, state: State) -> list[msgspec.Raw]:
        """Return the members sorted by id."""
        pieces: dict[NodeId, _NodePiece] = {}
        for node_id in sorted(state.nodes):
            node, live = state.nodes[node_id], state.live.get(node_id)
            profile = live.profile if live is not None else None
            piece = self._nodes.get(node_id)
            if piece is None or piece.node is not node or piece.profile is not profile:
                piece = _NodePiece(node, profile, _raw(present.node(node, profile)))
            pieces[node_id] = piece
        self._nodes = pieces
        return [piece.encoded for piece in pieces.values()]

    def _encode_devices(self, state: State) -> msgspec.Raw:
        """Return all devices' telemetry, sorted by node, then by id."""
        pieces: dict[NodeId, _DevicesPiece] = {}
        for node_id in sorted(state.live):
            devices = state.live[node_id].devices
            piece = self._devices.get(node_id)
            if piece is None or piece.devices is not devices:
                piece = _DevicesPiece(devices, msgspec.json.encode(devices, order="deterministic")[1:-1])
            pieces[node_id] = piece
        self._devices = pieces
        inner = b",".join([piece.encoded for piece in pieces.values() if piece.encoded])
        return msgspec.Raw(b"{%b}" % inner)

    def _update_links(self, state: State) -> None:
        """See to it that the links and what is computed of them are those of `state`."""
        nodes, links = self._linked
        links_now = [latest.links for latest in state.live.values()]
        if state.nodes is not nodes or not _are_same(links, links_now):
            self._linked = (state.nodes, links_now)
            self._links, self._metrics = _raw(topology.links(state)), _raw(topology.metrics(state))
        nodes, device_links = self._linked_devices
        device_links_now = [latest.device_links for latest in state.live.values()]
        if state.nodes is not nodes or not _are_same(device_links, device_links_now):
            self._linked_devices = (state.nodes, device_links_now)
            self._device_links = _raw(topology.device_links(state))


def _are_same(before: Sequence[object], now: Sequence[object]) -> bool:
    """Say whether these are the same objects."""
    return len(before) == len(now) and all(map(is_, before, now))


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
