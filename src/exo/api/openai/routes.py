"""The routes under /v1."""

import time
import uuid
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from exo.api import present
from exo.api.access_callers import present_caller
from exo.api.context import ApiContext, Context
from exo.api.disconnect import CLIENT_GONE_STATUS, ClientGoneError, while_connected
from exo.api.errors import ApiError
from exo.api.generation import RunningGeneration, start_stream
from exo.api.openai.chunks import ChunkEncoder
from exo.api.openai.requests import chat_request, completion_request, require_supported
from exo.api.openai.stream import TokenStreamResponse
from exo.api.request_log import RequestRecord
from exo.api.routes.answers import Responses, json_answer, openai_errors
from exo.api.schemas.openai import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionWish,
    Completion,
    CompletionWish,
    GenerationWish,
    OpenAIModel,
    OpenAIModelList,
)
from exo.api.serving import ready_instance, unknown_model
from exo.dataplane.generation import GenerationRequest
from exo.shared.errors import NoMasterError
from exo.shared.serving import instance_status
from exo.shared.types.ids import ModelId, RequestId
from exo.shared.types.instances import Instance
from exo.shared.types.models import ModelCard
from exo.shared.types.state import State

router = APIRouter(prefix="/v1", tags=["openai"])

MakeRequest = Callable[[Instance, RequestId], GenerationRequest]

_GENERATION_ERRORS = openai_errors(400, 403, 404, 409, 422, 429, 503)


def _streams(model: type[ChatCompletionChunk] | type[Completion]) -> Responses:
    """Describe the streamed form of an answer beside the whole one."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    stream = {
        "schema": {"type": "string", "contentMediaType": "application/json", "contentSchema": reference}
    }
    return {200: {"description": "The answer, or its stream", "content": {"text/event-stream": stream}}}


@router.post(
    "/chat/completions",
    operation_id="create_chat_completion",
    response_model=ChatCompletion,
    responses=_GENERATION_ERRORS | _streams(ChatCompletionChunk),
)
async def create_chat_completion(wish: ChatCompletionWish, request: Request, context: Context) -> Response:
    """Answer a chat. Greedy unless a temperature is asked for. A model that is not placed yet is placed first."""
    return await _generate(
        context,
        request,
        wish,
        lambda instance, request_id: chat_request(wish, instance, request_id),
        is_chat=True,
    )


@router.post(
    "/completions",
    operation_id="create_completion",
    response_model=Completion,
    responses=_GENERATION_ERRORS | _streams(Completion),
)
async def create_completion(wish: CompletionWish, request: Request, context: Context) -> Response:
    """Continue a text as it is, without a chat's template."""
    return await _generate(
        context,
        request,
        wish,
        lambda instance, request_id: completion_request(wish, instance, request_id),
        is_chat=False,
    )


@router.get("/models", operation_id="list_openai_models", response_model=OpenAIModelList)
async def list_openai_models(context: Context) -> Response:
    """Every model the cluster can serve, placed or not."""
    state = context.coordinator.state
    cards = present.known_cards(state)
    data = [_model(state, card) for _, card in sorted(cards.items()) if card.hindrance is None]
    return json_answer({"object": "list", "data": data})


@router.get(
    "/models/{model_id:path}",
    operation_id="get_openai_model",
    response_model=OpenAIModel,
    responses=openai_errors(404),
)
async def get_openai_model(model_id: str, context: Context) -> Response:
    """One model."""
    state = context.coordinator.state
    cards = present.known_cards(state)
    card = cards.get(ModelId(model_id))
    if card is None:
        raise unknown_model(model_id, sorted(cards))
    return json_answer(_model(state, card))


def _model(state: State, card: ModelCard) -> dict[str, Any]:
    ready = [
        value
        for value in state.instances.values()
        if value.model.model_id == card.model_id and instance_status(state, value)[0] == "ready"
    ]
    return {
        "id": card.model_id,
        "object": "model",
        "created": 0,
        "owned_by": "exo",
        "name": card.name,
        "description": card.description,
        "context_length": max(
            (value.plan.context_length for value in ready), default=card.context_length_max
        ),
        "total_bytes": card.total_bytes,
        "is_ready": bool(ready),
    }


async def _generate(
    context: ApiContext, request: Request, wish: GenerationWish, make_request: MakeRequest, *, is_chat: bool
) -> Response:
    record = RequestRecord(
        context.metrics,
        context.requests_in_flight,
        request.url.path,
        wish.model,
        context.actions.note_busy,
    )
    prefix = "chatcmpl" if is_chat else "cmpl"
    request_id = RequestId(f"{prefix}-{uuid.uuid4().hex}")
    created_s = int(time.time())

    async def start() -> RunningGeneration:
        spending = context.meter.admit(present_caller())
        instance = await ready_instance(context, ModelId(wish.model), present_caller())
        record.assign(instance.instance_id)
        address = instance.stages[0].address
        if address is None:
            raise ApiError(503, "stage_unreachable", "the model's first stage has no address yet; try again")
        generation_request = make_request(instance, request_id)
        stream = await start_stream(context.generation_client, address, generation_request)
        record.accepted()
        return RunningGeneration(stream, instance.instance_id, record.arrived_s, spending)

    try:
        require_supported(wish)
        if wish.stream:
            running = await while_connected(request.receive, context.closing, start)
            return _stream(context, wish, running, record, request_id, created_s, is_chat=is_chat)

        async def answer() -> tuple[str, str, RunningGeneration]:
            running = await start()
            try:
                return *(await _collect(running)), running
            finally:
                await running.cancel()

        text, finish_reason, running = await while_connected(request.receive, context.closing, answer)
    except ApiError as error:
        record.close(error.status)
        raise
    except NoMasterError:
        record.close(503)
        raise
    except ClientGoneError:
        record.close(CLIENT_GONE_STATUS)
        return Response(status_code=CLIENT_GONE_STATUS)
    except BaseException:
        record.close(500)
        raise
    record.close(200, running)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    if is_chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return json_answer(
        {
            "id": request_id,
            "object": "chat.completion" if is_chat else "text_completion",
            "created": created_s,
            "model": wish.model,
            "choices": [choice],
            "usage": running.usage(),
            "exo": running.timings(),
        }
    )


async def _collect(running: RunningGeneration) -> tuple[str, str]:
    """Return the whole text and the finish reason."""
    texts: list[str] = []
    finish_reason: str | None = None
    while batch := await running.next_batch():
        texts.extend(chunk.text for chunk in batch)
        finish_reason = batch[-1].finish_reason
    return "".join(texts), finish_reason or "stop"


def _stream(
    context: ApiContext,
    wish: GenerationWish,
    running: RunningGeneration,
    record: RequestRecord,
    request_id: RequestId,
    created_s: int,
    *,
    is_chat: bool,
) -> Response:
    has_usage = bool(wish.stream_options is not None and wish.stream_options.include_usage)
    head = {
        "id": request_id,
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": created_s,
        "model": wish.model,
    }
    return TokenStreamResponse(
        running,
        ChunkEncoder(head, is_chat=is_chat, has_usage=has_usage),
        has_usage=has_usage,
        record=record,
        closing=context.closing,
    )
