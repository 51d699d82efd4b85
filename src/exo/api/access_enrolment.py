"""A stranger's request to join becomes a command, and the command's reply the answer."""

import uuid

from exo.api.access_callers import Caller
from exo.api.context import ApiContext
from exo.cluster.trust.authority import request_fingerprint
from exo.cluster.trust.certificates import to_der
from exo.cluster.trust.errors import CertificateError
from exo.cluster.trust.messages import (
    EnrolAnswer,
    EnrolGranted,
    EnrolOrigin,
    EnrolRefused,
    EnrolRequest,
    EnrolWaiting,
    verify_proof,
)
from exo.shared.types.access import TokenId
from exo.shared.types.commands import Enrolled, EnrolNode, Refusal, Waiting
from exo.shared.types.ids import ClusterId, CommandId

ENROL_TIMEOUT_S = 15.0


class EnrolmentDesk:
    """Answers nodes that ask to join; what the transport calls for them (`Enrol`).

    Args:
        context: Reaches the master, and writes down what came of it.
    """

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def __call__(self, request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
        """Have the master decide about a request. The proof is checked here, where the connection is.

        Raises:
            NoMasterError: There is no master to decide.
            CertificateError: The request for a certificate cannot be used.
        """
        state = self._context.coordinator.state
        if request.namespace != state.namespace:
            self._count("other_namespace")
            return EnrolRefused(
                code="other_namespace",
                reason=f"this cluster is of the namespace {state.namespace}; "
                f"start the node with --namespace {state.namespace}",
            )
        token = state.access.tokens.get(TokenId(request.token_id)) if request.token_id is not None else None
        is_proven = token is not None and verify_proof(
            bytes.fromhex(token.verifier), request, origin.server_certificate_sha256
        )
        try:
            fingerprint = request_fingerprint(request.csr, request.node_id)
        except CertificateError:
            self._count("request_malformed")
            raise
        command = EnrolNode(
            command_id=CommandId(uuid.uuid4().hex),
            node_id=request.node_id,
            name=request.name,
            request_der=request.csr,
            fingerprint=fingerprint,
            address=str(origin.address),
            proof="none" if request.token_id is None else "token",
            is_proven=is_proven,
            token_id=None if request.token_id is None else TokenId(request.token_id),
        )
        caller = Caller(kind="node", name=request.node_id, address=origin.address.host)
        reply = await self._context.desk.send(command, timeout_s=ENROL_TIMEOUT_S, caller=caller)
        match reply:
            case Enrolled():
                return EnrolGranted(
                    certificate=to_der(reply.certificate_pem),
                    authority=to_der(reply.authority_pem),
                    cluster_id=state.cluster_id or ClusterId(""),
                )
            case Waiting():
                return EnrolWaiting(text=reply.message)
            case Refusal(status=503):
                return EnrolWaiting(text=reply.message)
            case Refusal():
                return EnrolRefused(code=reply.code, reason=reply.message)
            case _:
                raise RuntimeError(f"EnrolNode was answered with {type(reply).__name__}")

    def _count(self, code: str) -> None:
        """Count what is refused here; what the master refuses is counted where commands leave."""
        self._context.metrics.enrolments_refused.labels(code).inc()
