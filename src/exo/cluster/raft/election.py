"""Who leads: standing for election, giving votes and counting them; PreVote and stickiness. Pure."""

from exo.cluster.raft import replication
from exo.cluster.raft.leader import Leader
from exo.cluster.raft.messages import VoteAnswer, VoteRequest
from exo.cluster.raft.output import SelfVote
from exo.cluster.raft.quorum import has_majority
from exo.cluster.raft.state import CoreState
from exo.shared.types.ids import NodeId


def stand(core: CoreState, *, is_trial: bool, is_hand_over: bool = False) -> None:
    """Ask for votes; a trial (PreVote) first, so that a node that cannot win disturbs nobody."""
    core.role = "candidate"
    core.leader_id = None
    core.is_trial = is_trial
    core.votes = {}
    core.silent_ticks = 0
    core.draw_timeout()
    if not is_trial:
        core.remember(core.term + 1, core.node_id)
        core.output.vote_when_durable(SelfVote(core.term))
    request = VoteRequest(
        incarnation=core.incarnation,
        term=core.term + 1 if is_trial else core.term,
        is_trial=is_trial,
        last_index=core.log.last_index,
        last_term=core.log.last_term,
        is_hand_over=is_hand_over,
    )
    for node_id in core.voters.voters:
        if node_id == core.node_id:
            continue
        if is_trial:
            core.output.send(node_id, request)
        else:
            core.output.send_when_durable(node_id, request)
    if is_trial:
        count_vote(core, core.node_id, is_granted=True)


def is_own_vote_due(core: CoreState) -> bool:
    """This node stands, and its own vote is still being written: nobody else was asked yet."""
    return core.role == "candidate" and not core.is_trial and core.node_id not in core.votes


def count_vote(core: CoreState, source: NodeId, *, is_granted: bool) -> None:
    core.votes[source] = is_granted
    granted = [node_id for node_id, given in core.votes.items() if given]
    refused = [node_id for node_id, given in core.votes.items() if not given]
    if has_majority(core.voters, granted):
        if core.is_trial:
            stand(core, is_trial=False)
        else:
            lead(core)
    elif has_majority(core.voters, refused):
        core.become_follower(core.term, None)


def own_vote_written(core: CoreState, vote: SelfVote) -> None:
    """This node's vote for itself is on disk."""
    if vote.term != core.term or core.role != "candidate":
        return
    if vote.forced_index is None:
        core.silent_ticks = 0  # The others are asked now, and get a full timeout to answer.
        count_vote(core, core.node_id, is_granted=True)
    else:
        core.may_vote = True  # Nobody is left who counts on what it may have forgotten.
        begin_leading(core, vote.forced_index)


def lead(core: CoreState) -> None:
    begin_leading(core, core.log.last_index + 1)
    assert core.leading is not None
    for node_id in core.leading.peers:
        replication.send_append(core, node_id, may_be_empty=True)


def begin_leading(core: CoreState, first_index: int) -> None:
    core.role = "leader"
    core.leader_id = core.node_id
    core.votes = {}
    uncommitted = core.log.between(core.commit_index, core.log.last_index)
    core.leading = Leader(core.node_id, core.log, core.options, first_index=first_index)
    core.leading.note_farewell(uncommitted)
    core.admission.begin(uncommitted)


# --- voters ----------------------------------------------------------------------------------------------------------


def vote_requested(core: CoreState, source: NodeId, message: VoteRequest) -> None:
    is_loyal = core.leader_id is not None and core.silent_ticks < core.options.election_ticks[0]
    is_sticky = core.leading is not None or (is_loyal and source != core.leader_id)
    if is_sticky and not message.is_hand_over:
        return  # Whoever hears the leader lets nobody depose it.
    if message.term < core.term:
        core.output.send(source, _answer(core, message, is_granted=False))
        return
    if message.term > core.term and not message.is_trial:
        core.become_follower(message.term, None)
    is_free = (
        message.term > core.term  # Only a trial is still ahead here.
        or core.hard_state.voted_for == source
        or (core.hard_state.voted_for is None and core.leader_id is None)
    )
    is_granted = core.has_vote and is_free and core.log.is_behind(message.last_index, message.last_term)
    if not is_granted:
        core.output.send(source, _answer(core, message, is_granted=False))
    elif message.is_trial:
        core.output.send(source, _answer(core, message, is_granted=True))
    else:
        if core.hard_state.voted_for != source:
            core.remember(core.term, source)
        core.silent_ticks = 0
        core.draw_timeout()
        core.output.send_when_durable(source, _answer(core, message, is_granted=True))


def _answer(core: CoreState, request: VoteRequest, *, is_granted: bool) -> VoteAnswer:
    return VoteAnswer(
        incarnation=core.incarnation,
        term=request.term if is_granted else core.term,
        is_trial=request.is_trial,
        is_granted=is_granted,
    )


def vote_answered(core: CoreState, source: NodeId, message: VoteAnswer) -> None:
    asked = core.term + 1 if core.is_trial else core.term
    is_answer = core.role == "candidate" and message.is_trial == core.is_trial
    if is_answer and (not message.is_granted or message.term == asked):
        count_vote(core, source, is_granted=message.is_granted)
