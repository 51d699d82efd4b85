"""What a master believes of a follower's commands: no more than its own connection proves."""

import pytest

from exo.cluster.believing import believed
from exo.shared.types.commands import DeleteInstance, EnrolNode
from exo.shared.types.ids import CommandId, InstanceId, NodeId


def claim(node_id: str, proof: str, *, is_proven: bool = True) -> EnrolNode:
    return EnrolNode(
        command_id=CommandId("c"),
        node_id=NodeId(node_id),
        name="",
        request_der=b"",
        fingerprint="",
        address="",
        proof=proof,  # type: ignore[arg-type]
        is_proven=is_proven,
    )


@pytest.mark.parametrize(
    ("node_id", "proof", "is_certified", "is_believed"),
    [
        ("x", "certificate", True, True),
        ("x", "host_secret", False, True),
        ("x", "certificate", False, False),
        ("x", "host_secret", True, False),
        ("y", "certificate", True, False),
        ("y", "host_secret", False, False),
        # Checked by the member that the stranger reached, which has the connection to it.
        ("y", "token", True, True),
    ],
)
def test_a_follower_proves_itself_and_nobody_else(
    node_id: str, proof: str, is_certified: bool, is_believed: bool
) -> None:
    found = believed(claim(node_id, proof), NodeId("x"), is_certified=is_certified)
    assert isinstance(found, EnrolNode) and found.is_proven is is_believed
    unproven = believed(claim(node_id, proof, is_proven=False), NodeId("x"), is_certified=is_certified)
    assert isinstance(unproven, EnrolNode) and not unproven.is_proven


def test_other_commands_are_as_they_came() -> None:
    command = DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i"))
    assert believed(command, NodeId("x"), is_certified=False) is command
