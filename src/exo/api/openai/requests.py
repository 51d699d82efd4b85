"""OpenAI's requests as internal values; what is not supported yet is refused, never passed over in silence."""

from typing import Any

from exo.api.errors import ApiError
from exo.api.schemas.openai import ChatCompletionWish, CompletionWish, GenerationWish, Message
from exo.dataplane.generation import GenerationRequest
from exo.shared.types.generation import ChatMessage, Sampling
from exo.shared.types.ids import RequestId
from exo.shared.types.instances import Instance

STOPS_MAX = 4

_ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "echo": (False,),
    "suffix": ("",),
}
"""Values, besides null, with which a field that is not supported changes nothing."""


def chat_request(wish: ChatCompletionWish, instance: Instance, request_id: RequestId) -> GenerationRequest:
    """Return a chat as the data plane takes it.

    Raises:
        ApiError: It asks for something that is not supported.
    """
    limit = wish.max_completion_tokens if wish.max_completion_tokens is not None else wish.max_tokens
    return GenerationRequest(
        request_id=request_id,
        instance_id=instance.instance_id,
        generation=instance.generation,
        node_ids=tuple(stage.node_id for stage in instance.plan.stages),
        messages=tuple(_message(position, message) for position, message in enumerate(wish.messages)),
        max_tokens=limit,
        stop=_stops(wish),
        ignore_end=bool(wish.ignore_eos),
        sampling=_sampling(wish),
    )


def completion_request(wish: CompletionWish, instance: Instance, request_id: RequestId) -> GenerationRequest:
    """Return a plain completion as the data plane takes it.

    Raises:
        ApiError: It asks for something that is not supported.
    """
    prompt = wish.prompt
    token_ids: tuple[int, ...] | None = None
    if isinstance(prompt, list):
        texts = [part for part in prompt if isinstance(part, str)]
        token_ids = tuple(part for part in prompt if isinstance(part, int))
        if texts and (len(texts) > 1 or token_ids):
            raise ApiError(
                400,
                "unsupported_value",
                "several prompts in one request are not supported; send them one by one",
                param="prompt",
            )
        if not texts and not token_ids:
            raise ApiError(400, "invalid_request", "prompt: it is empty", param="prompt")
        prompt, token_ids = (texts[0], None) if texts else (None, token_ids)
    return GenerationRequest(
        request_id=request_id,
        instance_id=instance.instance_id,
        generation=instance.generation,
        node_ids=tuple(stage.node_id for stage in instance.plan.stages),
        prompt=prompt,
        prompt_token_ids=token_ids,
        max_tokens=wish.max_tokens if wish.max_tokens is not None else 16,
        stop=_stops(wish),
        ignore_end=bool(wish.ignore_eos),
        sampling=_sampling(wish),
    )


def require_supported(wish: GenerationWish) -> None:
    """Check everything that does not depend on the instance, before one is placed or waited for.

    Raises:
        ApiError: The request asks for something that is not supported.
    """
    for field, harmless in _ASKS_FOR_NOTHING.items():
        value = getattr(wish, field, None)
        if value is not None and value not in harmless:
            hint = f"leave it out or set it to {harmless[0]!r}" if harmless else "leave it out"
            raise ApiError(400, "unsupported_parameter", f"{field} is not supported yet; {hint}", param=field)
    _stops(wish)
    if isinstance(wish, ChatCompletionWish):
        for position, message in enumerate(wish.messages):
            _message(position, message)


def _message(position: int, message: Message) -> ChatMessage:
    field = f"messages.{position}"
    if message.role in ("tool", "function"):
        raise ApiError(
            400,
            "unsupported_value",
            f"{field}.role: {message.role} messages are not supported yet",
            param=f"{field}.role",
        )
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if content is None:
        raise ApiError(400, "invalid_request", f"{field}.content: it is missing", param=f"{field}.content")
    if isinstance(content, str):
        return ChatMessage(role=role, content=content)
    texts: list[str] = []
    for number, part in enumerate(content):
        where = f"{field}.content.{number}"
        if part.type != "text":
            raise ApiError(
                400,
                "unsupported_value",
                f"{where}: parts of type {part.type!r} are not supported, only text",
                param=where,
            )
        if part.text is None:
            raise ApiError(400, "invalid_request", f"{where}.text: it is missing", param=f"{where}.text")
        texts.append(part.text)
    return ChatMessage(role=role, content="".join(texts))


def _stops(wish: GenerationWish) -> tuple[str, ...]:
    if wish.stop is None:
        return ()
    stops = (wish.stop,) if isinstance(wish.stop, str) else tuple(wish.stop)
    if len(stops) > STOPS_MAX:
        raise ApiError(
            400, "invalid_request", f"stop: at most {STOPS_MAX} strings, not {len(stops)}", param="stop"
        )
    if "" in stops:
        raise ApiError(400, "invalid_request", "stop: an empty string would stop at once", param="stop")
    return stops


def _sampling(wish: GenerationWish) -> Sampling:
    usual = Sampling()
    return Sampling(
        temperature=usual.temperature if wish.temperature is None else wish.temperature,
        top_p=usual.top_p if wish.top_p is None else wish.top_p,
        top_k=usual.top_k if wish.top_k is None else wish.top_k,
        min_p=usual.min_p if wish.min_p is None else wish.min_p,
        seed=wish.seed,
    )
