"""A model in a format that no engine here runs: it is no choice for a chat, and a chat with it says why."""

from pathlib import Path

from msgspec.structs import replace

from exo.api.schemas.models import ModelList
from exo.api.schemas.openai import OpenAIModelList
from exo.api.schemas.problems import OpenAIError
from exo.master.placement.place import place_instance
from exo.shared.types.commands import Command, PlaceInstance, Refusal, Reply
from support.api_world import World, client_of, parse
from support.states import card, cluster, identity


async def test_a_model_that_no_engine_runs_is_no_choice_and_a_chat_with_it_says_why(tmp_path: Path) -> None:
    gguf = replace(card("org/gguf"), format="gguf")
    world = World(cluster(identity("a", models=(card("toy"), gguf))), tmp_path)

    async def decide(command: Command) -> Reply:
        assert isinstance(command, PlaceInstance)
        answer = place_instance(world.coordinator.state, command.request, should_stop=lambda: False)
        assert isinstance(answer, Refusal)
        return answer

    world.coordinator.set_command_handler(decide)
    async with client_of(world.app()) as http:
        models = parse(OpenAIModelList, (await http.get("/v1/models")).content).data
        assert [model.id for model in models] == ["toy"]
        listed = {
            model.model_id: model.problem
            for model in parse(ModelList, (await http.get("/models")).content).models
        }
        assert listed["toy"] is None and "can run gguf" in (listed["org/gguf"] or "")
        chat = {"model": "org/gguf", "messages": [{"role": "user", "content": "Hi"}]}
        response = await http.post("/v1/chat/completions", json=chat)
    assert response.status_code == 422
    error = OpenAIError.model_validate_json(response.content).error
    assert error.code == "engine_unsuitable" and "gguf" in error.message
