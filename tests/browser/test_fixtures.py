"""The recorded answers have exactly the API's shapes, so that the page is tested against what nodes say."""

import json

import pytest
from pydantic import BaseModel

from browser.gpu_machines import state_with_gpus
from browser.scripted_node import ScriptedNode, fixture, stage_of
from exo.api.schemas.access import Decided, NodeList
from exo.api.schemas.cluster import ClusterStateView
from exo.api.schemas.instances import InstancePlaced, InstanceView, PreviewList, StageView
from exo.api.schemas.models import ModelList
from exo.api.schemas.openai import ChatCompletionChunk
from exo.api.schemas.planning import KnownDeviceList, PlannedView, WhyView

SHAPES: dict[str, type[BaseModel]] = {
    "state": ClusterStateView,
    "nodes": NodeList,
    "previews": PreviewList,
    "why": WhyView,
    "planned": PlannedView,
    "planned_refused": PlannedView,
    "planned_without": PlannedView,
    "known": KnownDeviceList,
    "models": ModelList,
    "instance": InstanceView,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_fixture_has_the_shape_of_the_api(name: str) -> None:
    recorded = fixture(name)
    shaped = SHAPES[name].model_validate_json(json.dumps(recorded))
    assert shaped.model_dump(mode="json") == recorded


def test_what_the_script_makes_up_has_the_shape_of_the_api(tmp_path) -> None:
    node = ScriptedNode(tmp_path)
    placed = node.place(node.previews["previews"][2]["request"])
    assert InstancePlaced.model_validate(placed).model_dump(mode="json") == placed
    node.set_stages("failed", ["ready", "failed", "loading"], [3, 0, 0], "out of memory")
    for value in node.state["instances"].values():
        assert InstanceView.model_validate(value).model_dump(mode="json") == value
    stage = stage_of(placed["plan"]["stages"][0], "ready", 3)
    assert StageView.model_validate(stage).model_dump(mode="json") == stage
    node.chat_tokens = ["4", "2"]
    node.chat_gate.release(2)
    chunks = list(node.chat_chunks({"model": "exo-tiny"}))
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks[:2]] == ["4", "2"]
    for chunk in chunks:
        shaped = ChatCompletionChunk.model_validate(chunk)
        assert shaped.model_dump(mode="json", exclude_unset=True) == chunk


def test_the_scripted_decisions_on_nodes_have_the_shape_of_the_api(tmp_path) -> None:
    node = ScriptedNode(tmp_path)
    birch, nameless = node.nodes["wishes"]
    decided = node.decide_on_wish(birch["node_id"])
    assert Decided.model_validate(decided).model_dump(mode="json") == decided
    assert node.nodes["wishes"] == [nameless]
    node.remove_member(node.nodes["nodes"][1]["node_id"])
    assert NodeList.model_validate(node.nodes).model_dump(mode="json") == node.nodes
    assert ClusterStateView.model_validate(node.state).model_dump(mode="json") == node.state


def test_the_machines_with_gpus_have_the_shape_of_the_api() -> None:
    made_up = state_with_gpus()
    shaped = ClusterStateView.model_validate_json(json.dumps(made_up))
    assert shaped.model_dump(mode="json") == made_up
