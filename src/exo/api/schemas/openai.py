"""Shapes of the OpenAI dialect under /v1: chat, plain completions and models."""

from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Discriminator, Field, Tag

from exo.api.schemas.base import ClientWish, Shape, Text

NAME_CHARACTERS_MAX = 512
TOKENS_MAX = 2**31 - 1
SEED_MAX = 2**63 - 1

TokenLimit = Annotated[int, Field(ge=1, le=TOKENS_MAX)]


def _form(value: Any) -> str | None:
    """Say which form of a field this is, so that an error is about that form only."""
    if isinstance(value, str):
        return "(text)"
    if not isinstance(value, list):
        return None
    items = cast("list[Any]", value)
    return "(numbers)" if items and isinstance(items[0], int) else "(list)"


def _one_of(message: str) -> Discriminator:
    return Discriminator(_form, custom_error_type="wrong_form", custom_error_message=message)


OneText = Annotated[Text, Tag("(text)")]
Texts = Annotated[list[Text], Tag("(list)")]

FinishReasonView = Literal["stop", "length"]

Unsupported = Annotated[Any, Field(description="Not supported yet: refused unless it asks for nothing.")]


class ContentPart(ClientWish):
    """A part of a message. Only text so far."""

    type: Text
    text: Text | None = None


class Message(ClientWish):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            OneText | Annotated[list[ContentPart], Tag("(list)")],
            _one_of("Input should be a text or a list of parts"),
        ]
        | None
    ) = None


class StreamOptions(ClientWish):
    include_usage: bool | None = None


class GenerationWish(ClientWish):
    """What chat and plain completions share. A field that is null counts as absent."""

    model: Text = Field(min_length=1, max_length=NAME_CHARACTERS_MAX)
    """One of `GET /v1/models`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Absent or 0: greedy, the same answer every time."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=TOKENS_MAX)
    """0: all tokens."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=SEED_MAX)
    stop: Annotated[OneText | Texts, _one_of("Input should be a text or a list of texts")] | None = None
    """At most four strings that end the answer; they are not part of it."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=TOKENS_MAX)
    """Must be 1."""
    ignore_eos: bool | None = None
    """Go on past the model's own end of text, up to the limit (for measuring)."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Must be 0."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Must be 0."""
    logit_bias: Unsupported = None
    logprobs: Unsupported = None


class ChatCompletionWish(GenerationWish):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "exo-tiny", "messages": [{"role": "user", "content": "What is 12 + 30?"}]},
                {
                    "model": "exo-tiny",
                    "messages": [{"role": "user", "content": "Count to 12."}],
                    "stream": True,
                    "stream_options": {"include_usage": True},
                    "max_tokens": 64,
                },
            ]
        }
    )

    messages: list[Message] = Field(min_length=1)
    max_tokens: TokenLimit | None = None
    """Absent: as many as the context has room for."""
    max_completion_tokens: TokenLimit | None = None
    """The newer name of `max_tokens`; it counts where both are given."""
    top_logprobs: Unsupported = None
    response_format: Unsupported = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    modalities: Unsupported = None
    audio: Unsupported = None


class CompletionWish(GenerationWish):
    """`POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "exo-tiny", "prompt": "1, 2, 3, ", "max_tokens": 16}]}
    )

    prompt: Annotated[
        OneText | Texts | Annotated[list[Annotated[int, Field(ge=0, le=TOKENS_MAX)]], Tag("(numbers)")],
        _one_of("Input should be a text, or a list of texts or token ids"),
    ]
    """One text, or one list of token ids."""
    max_tokens: TokenLimit | None = 16
    echo: Unsupported = None
    suffix: Unsupported = None
    best_of: Unsupported = None


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(Shape):
    """An extra of exo: where the request ran and how long it took."""

    instance_id: str
    time_to_first_token_s: float | None
    """From the request's arrival here to its first token; null when there was none."""
    tokens_per_s: float | None
    """From the first token to the last; null below two tokens."""


class AssistantMessage(Shape):
    role: Literal["assistant"]
    content: str


class ChatChoice(Shape):
    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: FinishReasonView


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    """Seconds since 1970, UTC."""
    model: str
    choices: list[ChatChoice]
    usage: Usage
    exo: Timings


class ChatDelta(Shape):
    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    role: Literal["assistant"] = "assistant"
    """On the first chunk only."""
    content: str = ""
    """The text that this token completes; often a word, sometimes nothing."""


class ChatChunkChoice(Shape):
    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: FinishReasonView | None


class ChatCompletionChunk(Shape):
    """One server-sent event of a streamed answer; there is one for each token. The last event's data is `[DONE]`."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    """Only where `stream_options.include_usage` asks for it: null, and on a chunk of its own behind the last token."""
    exo: Timings | None = None
    """On the chunk with the finish reason."""


class TextChoice(Shape):
    index: int
    text: str
    logprobs: None
    finish_reason: FinishReasonView | None
    """Null on all but the last chunk of a stream."""


class Completion(Shape):
    """A plain completion, or one server-sent event of a streamed one."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    exo: Timings | None = None


class OpenAIModel(Shape):
    """A model, with some extras of exo."""

    id: str
    object: Literal["model"]
    created: int
    """Always 0: directories on several nodes have no common date."""
    owned_by: str
    name: str
    description: str
    context_length: int
    """Tokens, prompt and answer together: of a ready instance, else the model's own limit."""
    total_bytes: int
    is_ready: bool
    """An instance is ready; otherwise the first request places the model."""


class OpenAIModelList(Shape):
    object: Literal["list"]
    data: list[OpenAIModel]
