"""The server's side of asking to join: one stranger's connection from the offer to the answer."""

import asyncio
from collections.abc import Callable

import msgspec
from loguru import logger

from exo.cluster.errors import ConnectionLostError
from exo.cluster.transport.base import Connection
from exo.cluster.trust.messages import (
    ENROL_FRAME_BYTES_MAX,
    Enrol,
    EnrolAnswer,
    EnrolOffer,
    EnrolOrigin,
    EnrolRefused,
    EnrolRequest,
    EnrolWaiting,
    decode_request,
    encode_enrolment,
)
from exo.shared.errors import ExoError, NoMasterError


class EnrolmentLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much strangers may use."""

    at_once_max: int = 32
    at_once_per_host_max: int = 4
    request_timeout_s: float = 15.0
    """For the next request, from the offer or from the answer before."""
    decision_timeout_s: float = 20.0
    """For the cluster to decide; then the joiner is told to wait."""
    pause_s: float = 0.5
    """Between an answer and the next request."""
    connection_timeout_s: float = 900.0
    """For the whole; the joiner dials again."""


async def serve_enrolment(
    connection: Connection,
    *,
    authority_der: bytes,
    origin: EnrolOrigin,
    enrol: Enrol,
    limits: EnrolmentLimits,
    on_malformed: Callable[[], None],
) -> None:
    """Answer the requests of one stranger until there is a decision, then hang up.

    Args:
        connection: To the stranger, who has seen this node's certificate and shown none.
        authority_der: What the stranger compares with its token.
        origin: Where the stranger is.
        enrol: Decides.
        limits: How much the stranger may use.
        on_malformed: Told of a request that cannot be read.
    """
    reason = "the enrolment is over"
    try:
        async with asyncio.timeout(limits.connection_timeout_s):
            await connection.send(encode_enrolment(EnrolOffer(authority=authority_der)))
            while True:
                answer = await _answer(connection, origin, enrol, limits)
                if isinstance(answer, EnrolRefused) and answer.code == "malformed":
                    on_malformed()
                await connection.send(_encode(answer))
                if not isinstance(answer, EnrolWaiting):
                    break
                await asyncio.sleep(limits.pause_s)
    except ConnectionLostError:
        pass
    except TimeoutError:
        reason = "no request in time; ask again"
    except asyncio.CancelledError:
        reason = "the node is stopping"
        raise
    except Exception as error:
        reason = "something went wrong on this node; its log says what"
        logger.opt(exception=error).error("could not answer a node that asks to join")
    finally:
        connection.close(reason)


async def _answer(
    connection: Connection, origin: EnrolOrigin, enrol: Enrol, limits: EnrolmentLimits
) -> EnrolAnswer:
    async with asyncio.timeout(limits.request_timeout_s):
        data = await connection.receive()
    request = _decode(data)
    if request is None:
        return EnrolRefused(
            reason="this node does not understand the request; run the same release of exo on both",
            code="malformed",
        )
    try:
        async with asyncio.timeout(limits.decision_timeout_s):
            return await enrol(request, origin)
    except TimeoutError:
        return EnrolWaiting(text="the cluster did not decide in time; it will be asked again")
    except NoMasterError as error:
        return EnrolWaiting(text=f"the cluster cannot decide now: {error.message}; it will be asked again")
    except ExoError as error:
        return EnrolRefused(reason=error.message, code="failed")


def _decode(data: bytes) -> EnrolRequest | None:
    try:
        return decode_request(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _encode(answer: EnrolAnswer) -> bytes:
    data = encode_enrolment(answer)
    if len(data) <= ENROL_FRAME_BYTES_MAX:
        return data
    return encode_enrolment(EnrolRefused(reason="the answer is too long to be sent", code="failed"))
