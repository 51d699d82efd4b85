"""What travels between API nodes and stages: small msgpack headers, each with an optional raw payload.

The way of a request: the API node dials the first stage and sends `Generate`, and in it where it takes tokens. The
first stage answers `Accepted` or `Rejected` on that connection, and opens the request on the stages behind it. Every
stage sends `Activation` to the next one; the last stage samples, sends `TokenChunk` straight to the API node and
`Sampled` back to the first stage. The API node says what its client has taken with `Consumed`; the first stage stops
producing when the client falls too far behind.

The way of a measurement: a node dials another one where that takes tokens, and sends a `Probe` with its `ProbeData`;
the other one answers each with `ProbeTaken` or `ProbeRefused`.
"""

import msgspec

from exo.shared.types.generation import ChatMessage, FinishReason, Sampling
from exo.shared.types.ids import InstanceId, NodeId, RequestId
from exo.shared.types.nodes import HostPort


class ReplyTo(msgspec.Struct, frozen=True):
    """Where tokens go."""

    address: HostPort
    node_id: NodeId
    """Who has to be there."""

    def __str__(self) -> str:
        return str(self.address)


class _Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag=True, omit_defaults=True):
    pass


class Generate(_Frame, frozen=True, kw_only=True):
    """API node to first stage: begin a request. Exactly one of `messages`, `prompt` and `prompt_token_ids` is set."""

    request_id: RequestId
    instance_id: InstanceId
    generation: int
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    """None: as many as the context has room for."""
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    """Go on past the model's end-of-text token (benchmarks)."""
    sampling: Sampling
    reply_to: ReplyTo


class Accepted(_Frame, frozen=True, kw_only=True):
    request_id: RequestId
    prompt_tokens: int


class Rejected(_Frame, frozen=True, kw_only=True):
    """Nothing was generated. `status` is the HTTP status that says why."""

    request_id: RequestId
    status: int
    code: str
    message: str


class Cancel(_Frame, frozen=True, kw_only=True):
    """API node to first stage, then down the pipeline: the client is gone."""

    request_id: RequestId


class Consumed(_Frame, frozen=True, kw_only=True):
    """API node to first stage: how many chunks the client has taken so far."""

    request_id: RequestId
    count: int


class Open(_Frame, frozen=True, kw_only=True):
    """First stage, down the pipeline: a request's activations will follow."""

    request_id: RequestId
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...]
    ignore_end: bool
    sampling: Sampling
    reply_to: ReplyTo


class Activation(_Frame, frozen=True, kw_only=True):
    """Stage to next stage: hidden values for the positions from `position` on; the payload holds them."""

    request_id: RequestId
    position: int
    shape: tuple[int, ...]
    dtype: str
    wants_token: bool
    """False for all but the last chunk of a prompt."""
    computed_s: float | None = None
    """How long the stages behind the first one have computed for this token so far; None where one cannot say, or is
    slowed down."""


class Pace(_Frame, frozen=True, kw_only=True):
    """Stage to next stage, from the second one round to the first: how much of a prompt the stages so far can take
    at a time. Sent once they are linked, and again when one of them has become slower."""

    prefill_tokens_max: int


class Sampled(_Frame, frozen=True, kw_only=True):
    """Last stage to first stage: the token to continue with."""

    request_id: RequestId
    token_id: int
    is_finished: bool
    computed_s: float | None = None
    """As in `Activation`, of all stages behind the first one: what is left of the round are its hops."""


class Close(_Frame, frozen=True, kw_only=True):
    """First stage, down the pipeline: forget the request."""

    request_id: RequestId


class TokenChunk(_Frame, frozen=True, kw_only=True):
    """Last stage to API node: one token, and the text it completes (often a word, sometimes none)."""

    request_id: RequestId
    index: int
    token_id: int
    text: str
    finish_reason: FinishReason | None = None
    """Set on the last chunk only."""


class Failed(_Frame, frozen=True, kw_only=True):
    """The request ends here with an error, after it was accepted."""

    request_id: RequestId
    code: str
    message: str
    is_retriable: bool = True


class Probe(_Frame, frozen=True, kw_only=True):
    """To another node, to measure the way there: so many bytes follow in `ProbeData`. None follow for 0."""

    number: int
    size_bytes: int


class ProbeData(_Frame, frozen=True, kw_only=True):
    """A part of a transfer that is measured; what the payload says is of no use."""

    number: int


class ProbeTaken(_Frame, frozen=True, kw_only=True):
    """All of a transfer has come."""

    number: int
    size_bytes: int
    """Without the first part: the time began when that was there."""
    duration_s: float


class ProbeRefused(_Frame, frozen=True, kw_only=True):
    """Not now, or not any more: this node has better things to do."""

    number: int
    message: str


class Hello(_Frame, frozen=True, kw_only=True):
    """First frame of a dialled connection."""

    version: int
    purpose: str
    nonce: bytes
    sender: str


class Challenge(_Frame, frozen=True, kw_only=True):
    """The listener's answer: its own nonce, and its proof of the shared secret."""

    nonce: bytes
    proof: bytes


class Proof(_Frame, frozen=True, kw_only=True):
    """The dialler's proof; frames may follow at once."""

    proof: bytes


class Welcome(_Frame, frozen=True, kw_only=True):
    """In TLS, the listener's answer to `Hello`: the dialler's certificate is good, frames may follow."""


class Refused(_Frame, frozen=True, kw_only=True):
    """In TLS, the listener's answer where it is not; then it closes."""

    message: str


class Ping(_Frame, frozen=True, kw_only=True):
    """Either side, while it has nothing else to say: so that there is something for the other host to acknowledge."""


Frame = (
    Generate
    | Accepted
    | Rejected
    | Cancel
    | Consumed
    | Open
    | Activation
    | Pace
    | Sampled
    | Close
    | TokenChunk
    | Failed
    | Probe
    | ProbeData
    | ProbeTaken
    | ProbeRefused
    | Hello
    | Challenge
    | Proof
    | Welcome
    | Refused
    | Ping
)
