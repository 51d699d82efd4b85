"""Models in a format that no engine here runs: listed, and refused in words wherever they could be placed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from exo.master.placement.place import place_instance
from exo.shared.types.commands import Refusal
from exo.shared.types.ids import ModelId
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.models import ModelCard
from exo.shared.types.state import State
from exo.worker.models.gguf_card import read_gguf_card
from support.gguf_files import GgufWriter
from support.states import card, cluster, identity


def never() -> bool:
    return False


@pytest.fixture
def gguf(tmp_path: Path) -> Iterator[ModelCard]:
    """The card of a sound GGUF file."""
    yield read_gguf_card(ModelId("llama"), GgufWriter().write(tmp_path / "llama.gguf"))


@pytest.fixture
def state(gguf: ModelCard) -> State:
    """Two nodes that have it, and a model that can be run."""
    return cluster(identity("a", models=[card("toy"), gguf]), identity("b", models=[gguf]))


@pytest.mark.parametrize("engine", ["auto", "mlx"])
def test_placing_it_is_refused_with_its_format(state: State, engine: str) -> None:
    answer = place_instance(
        state, PlacementRequest(model_id=ModelId("llama"), engine=engine), should_stop=never
    )
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code) == (422, "engine_unsuitable")
    assert answer.message == "No engine here can run gguf, the format of llama; fetch it as safetensors."


def test_its_cards_are_sent_as_they_are(gguf: ModelCard) -> None:
    import msgspec

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(gguf), type=ModelCard) == gguf


def test_people_are_told_why_it_cannot_be_run(gguf: ModelCard) -> None:
    assert gguf.problem is None
    assert gguf.hindrance == "no engine here can run gguf; fetch the model as safetensors"
    assert replace(gguf, problem="it is truncated").hindrance == "it is truncated"
    assert card("toy").hindrance is None
