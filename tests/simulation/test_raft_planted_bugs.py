"""The mutation gate: each bug that agreement may have is planted, and something that CI runs has to notice it.

A table of bugs and their catchers: the simulated schedules that CI runs, or a directed test. Only a broken promise
counts as noticed; a plant that does not fit the code any more, or code that fails otherwise, is an error.
"""

from collections.abc import Callable

import pytest

from exo.cluster.outbox import Outbox
from exo.cluster.raft import election, following, plausible, proposing, quorum, replication, requests
from exo.cluster.raft import leader as leader_module
from exo.cluster.raft.admission import Admission
from exo.cluster.raft.core import Core
from exo.cluster.raft.leader import Leader
from exo.cluster.raft.log_window import LogWindow
from exo.cluster.raft.output import Output
from exo.cluster.raft.progress import Progress
from exo.cluster.raft.state import CoreState
from exo_sim.disk import Disk
from exo_sim.schedule import run_schedule
from simulation.test_raft_schedules import SEEDS
from support.planting import UnfitPlantError, plant
from unit.cluster import test_outbox as outbox
from unit.cluster import test_raft_elections as elections
from unit.cluster import test_raft_figures as figures
from unit.cluster import test_raft_membership as membership
from unit.cluster import test_raft_pitfalls as pitfalls
from unit.cluster import test_raft_proposals as proposals
from unit.cluster import test_raft_quorum as counting
from unit.cluster import test_raft_reads_and_force as reads_and_force

Plant = Callable[[pytest.MonkeyPatch], None]
Catcher = Callable[[], None]


def schedules() -> Catcher:
    """The schedules that CI runs."""

    def catch() -> None:
        for seed in SEEDS:
            outcome = run_schedule(seed)
            if outcome.broken is not None:
                if outcome.is_defect:
                    raise RuntimeError(f"seed {seed}: {outcome.broken}")
                raise AssertionError(f"seed {seed}: {outcome.broken}")

    return catch


BUGS: dict[str, tuple[Plant, Catcher]] = {}


def bug(catcher: Catcher) -> Callable[[Plant], Plant]:
    def note(planting: Plant) -> Plant:
        BUGS[planting.__name__.replace("_", " ")] = (planting, catcher)
        return planting

    return note


# --- exactly once ----------------------------------------------------------------------------------------------------


@bug(schedules())
def no_dedupe(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Admission, "admit", "elif last <= before:", "elif False:")
    refused = "elif message.after_seq != before or message.first_seq <= before:"
    plant(monkeypatch, Admission, "admit", refused, "elif False:")


@bug(schedules())
def no_dedupe_and_new_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        Admission,
        "admit",
        "before = self.last_seq(message.origin)",
        "before = self.last_seq(message.origin)\n"
        "    if message.first_seq:\n"
        "        message = __import__('msgspec').structs.replace(message, first_seq=before + 1, after_seq=before)",
    )


@bug(schedules())
def a_new_leader_forgets_what_was_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Admission, "begin", "for entry in uncommitted:", "for entry in ():")


@bug(proposals.test_a_proposal_is_never_cut_in_two)
def a_proposal_is_cut_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, LogWindow, "end_of_proposal", "self._entries[position].more", "0")


@bug(schedules())
def a_leaders_decision_takes_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Outbox, "take", "if proposal.fence is None:", "if True:")


@bug(lambda: proposals.test_nobody_is_told_that_a_proposal_is_done_when_another_is(False))
def a_number_of_an_earlier_boot_is_taken_for_the_own(monkeypatch: pytest.MonkeyPatch) -> None:
    is_own = "if event_id in (None, one.proposal.events[-1].event_id):"
    plant(monkeypatch, Outbox, "committed", is_own, "if True:")


@bug(outbox.test_a_number_stays_bound_though_those_before_it_are_gone)
def what_is_sent_again_gets_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = "Numbered(again.first_seq, again.proposal, self._last_seq)"
    plant(monkeypatch, Outbox, "take", bound, "Numbered(self._last_seq + 1, again.proposal, self._last_seq)")


@bug(outbox.test_a_start_uses_no_number_of_an_earlier_one)
def every_start_counts_from_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Outbox, "__init__", "self._highest = numbers_behind", "self._highest = 0")


# --- votes -----------------------------------------------------------------------------------------------------------


@bug(schedules())
def vote_without_log_check(monkeypatch: pytest.MonkeyPatch) -> None:
    check = " and core.log.is_behind(message.last_index, message.last_term)"
    plant(monkeypatch, election, "vote_requested", check, "")


@bug(schedules())
def vote_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, election, "vote_requested", "or core.hard_state.voted_for == source", "or True")


@bug(elections.test_a_vote_is_given_once_in_a_term)
def vote_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, election, "vote_requested", "or core.hard_state.voted_for == source", "or True")


@bug(schedules())
def vote_not_persisted(monkeypatch: pytest.MonkeyPatch) -> None:
    vote = "core.remember(core.term, source)"
    plant(
        monkeypatch,
        election,
        "vote_requested",
        vote,
        "core.hard_state = type(core.hard_state)(term=core.term, voted_for=source)",
    )


@bug(elections.test_a_vote_is_said_only_once_it_is_on_disk)
def vote_told_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "core.output.send_when_durable(source, _answer(core, message, is_granted=True))"
    plant(monkeypatch, election, "vote_requested", answer, answer.replace("_when_durable", ""))


@bug(schedules())
def own_vote_counted_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        election,
        "stand",
        "core.output.vote_when_durable(SelfVote(core.term))",
        "count_vote(core, core.node_id, is_granted=True)",
    )


@bug(schedules())
def who_lost_its_log_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, election, "vote_requested", "is_granted = core.has_vote and", "is_granted =")


@bug(schedules())
def term_not_persisted(monkeypatch: pytest.MonkeyPatch) -> None:
    term = "self.remember(term)"
    plant(monkeypatch, CoreState, "become_follower", term, "self.hard_state = HardState(term=term)")


@bug(pitfalls.test_a_vote_is_not_taken_for_one_in_a_later_term)
def a_vote_is_carried_into_a_later_term(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        CoreState,
        "__init__",
        "voted_for=node_id, is_level",
        "voted_for=hard_state.voted_for, is_level",
    )


@bug(pitfalls.test_a_candidate_whose_disk_is_slow_waits_for_its_own_vote)
def a_candidate_that_does_not_wait_for_its_own_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Core, "_tick", "if not election.is_own_vote_due(self):", "if True:")


# --- who has forgotten what it promised ------------------------------------------------------------------------------


@bug(lambda: pitfalls.test_who_is_sent_the_log_from_its_beginning_does_not_act_on_the_half_of_it(False))
def half_of_a_log_is_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedules find it too: --seed 392, when this was written."""
    monkeypatch.setattr(CoreState, "has_vote", property(lambda core: core.may_vote))


@bug(lambda: pitfalls.test_who_is_sent_the_log_from_its_beginning_does_not_act_on_the_half_of_it(True))
def half_of_a_log_is_acted_on_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    level = "is_level=may_vote and hard_state.is_level"
    plant(monkeypatch, CoreState, "__init__", level, "is_level=may_vote")


@bug(pitfalls.test_half_of_a_log_is_known_by_what_the_leader_called_committed)
def caught_up_with_any_entry_of_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk = "self.heard_commit_index <= index <= self.durable_index"
    plant(monkeypatch, CoreState, "note_level", on_disk, "index <= self.durable_index")


@bug(pitfalls.test_everything_is_on_disk_before_a_newcomer_may_vote)
def caught_up_in_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk = "self.heard_commit_index <= index <= self.durable_index"
    plant(monkeypatch, CoreState, "note_level", on_disk, "self.heard_commit_index <= index")


@bug(pitfalls.test_who_could_not_vote_is_made_no_voter)
def a_voter_that_cannot_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    cannot = "if progress is not None and not progress.is_level:"
    plant(monkeypatch, proposing, "voters_fault", cannot, "if False:")


@bug(pitfalls.test_who_has_forgotten_its_term_confirms_no_read)
def who_has_forgotten_its_term_confirms_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, following, "leader_said", "message.read_id if is_level else 0", "message.read_id")


# --- what counts -----------------------------------------------------------------------------------------------------


@bug(schedules())
def commit_on_a_minority(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        quorum,
        "agreed_index",
        "reached[voters.majority - 1]",
        "reached[max(0, voters.majority - 2)]",
        everywhere=(leader_module,),
    )


@bug(schedules())
def acknowledge_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "core.output.send_when_durable(source, _answer(core, last_index, is_accepted=True))"
    plant(monkeypatch, following, "_append_received", answer, answer.replace("_when_durable", ""))


@bug(schedules())
def count_the_own_copy_before_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        replication,
        "advance_commit",
        "leading.committed_index(core.durable_index)",
        "leading.committed_index(core.log.last_index)",
    )


@bug(figures.test_figure_8_an_old_entry_is_not_committed_by_counting_its_copies)
def commit_of_an_old_terms_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        Leader,
        "committed_index",
        "return agreed if agreed >= self.first_index else 0",
        "return agreed",
    )


@bug(membership.test_a_learner_gets_everything_and_counts_for_nothing)
def a_learners_copy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        Leader,
        "committed_index",
        "agreed = agreed_index(self.voters, index_at)",
        "reached = sorted((p.match_index for p in self.progress.values()), reverse=True)\n"
        "    agreed = min(durable_index, reached[self.voters.majority - 2])",
    )


@bug(pitfalls.test_only_what_was_compared_is_committed)
def a_follower_commits_what_was_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind what the leader sent may stand what another leader left."""
    index = "min(message.commit_index, last_index)"
    plant(monkeypatch, following, "_append_received", index, "min(message.commit_index, log.last_index)")


@bug(schedules())
def a_heartbeat_commits_what_was_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    index = "min(core.commit_index, progress.match_index)"
    plant(monkeypatch, replication, "send_heartbeats", index, "core.commit_index")


@bug(schedules())
def answers_of_an_earlier_term_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Core, "_received", "elif message.term < self.term:", "elif False:")


@bug(counting.test_the_place_that_is_asked_about_next_is_never_too_early)
def a_hint_that_skips_where_logs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, LogWindow, "agreement_hint", "or 0) > term:", "or 0) >= term:")


@bug(pitfalls.test_several_messages_in_one_step_lead_to_the_same_disk)
def a_step_that_writes_what_it_has_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Output, "truncate_after", "if self._appended and", "if False and")
    plant(monkeypatch, Output, "truncate_after", "self._appended = []", "pass")


@bug(schedules())
def conflicting_entries_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        LogWindow,
        "first_conflict",
        "if self.term_at(entry.index) != entry.term:",
        "if self.term_at(entry.index) is None:",
    )


@bug(schedules())
def a_snapshot_restored_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        following,
        "_snapshot_received",
        "if snapshot.index > core.commit_index:\n        if core.log.term_at(snapshot.index) == snapshot.term:",
        "if True:\n        if False:",
    )


# --- leaders that are left in peace, and those that are not ----------------------------------------------------------


@bug(elections.test_a_node_that_was_cut_off_comes_back_without_deposing_the_leader)
def no_prevote(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        Core,
        "_tick",
        "election.stand(self, is_trial=not self.is_only_voter)",
        "election.stand(self, is_trial=False)",
    )


@bug(elections.test_a_leader_that_is_cut_off_from_the_majority_steps_down_and_says_so)
def no_checkquorum(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Core, "_tick", "not leading.take_attendance()", "False")


@bug(elections.test_who_does_not_hear_the_leader_cannot_depose_it)
def no_stickiness(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, election, "vote_requested", "if is_sticky and not message.is_hand_over:", "if False:")


@bug(pitfalls.test_a_connection_that_ends_and_begins_anew_is_no_absence)
def a_lost_connection_is_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Progress, "lost", "self.is_lost = True", "self.is_active = False")


@bug(lambda: [pitfalls.test_a_snapshot_that_takes_long_is_no_absence(ticks) for ticks in range(20, 30)])
def a_snapshot_that_is_tried_again_is_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Progress, "ask_again", "self._become", "self.is_active = False\n    self._become")


@bug(pitfalls.test_a_follower_whose_disk_is_slow_is_no_absence)
def a_slow_disk_is_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, following, "leader_said", "send_when_term_durable", "send_when_durable")


@bug(pitfalls.test_a_term_that_is_not_on_disk_is_told_to_nobody_as_heard)
def a_heartbeat_answered_before_its_term_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, following, "leader_said", "output.send_when_term_durable", "output.send")


@bug(lambda: elections.test_those_who_are_left_stand_one_after_the_other(""))
def all_stand_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Core, "_peer_lost", "TURN_TICKS * rank", "0 * rank")


@bug(elections.test_the_heir_is_given_everything_first)
def an_heir_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    has_all = " and progress.match_index == core.log.last_index"
    plant(monkeypatch, replication, "ask_to_stand", has_all, "")


@bug(reads_and_force.test_a_leader_that_was_cut_off_does_not_answer_with_what_is_old)
def stale_read(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        Leader,
        "take_confirmed",
        "if has_majority(self.voters, self._reads[position].confirmed_by)",
        "if True",
    )


@bug(schedules())
def stale_read_in_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    stale_read(monkeypatch)


@bug(reads_and_force.test_a_new_leader_does_not_answer_before_it_knows_what_is_committed)
def read_before_the_term_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        Leader,
        "take_confirmed",
        "self._reads and commit_index >= self.first_index",
        "self._reads",
    )


# --- who has to agree ------------------------------------------------------------------------------------------------


@bug(schedules())
def a_volatile_in_sync_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader lets a replica go that it does not hear, and keeps that to itself."""
    plant(
        monkeypatch,
        Leader,
        "committed_index",
        "agreed = agreed_index(self.voters, index_at)",
        "silent = [n for n in self.voters.replicas if not self.progress[n].is_active]\n"
        "    voters = self.voters if not silent else Voters(voters=self.voters.voters)\n"
        "    agreed = agreed_index(voters, index_at)",
    )


@bug(membership.test_a_replica_is_let_go_once_that_is_on_the_voters_disk)
def an_in_sync_set_that_shrinks_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Leader, "committed_index", "if self._log.voters.index > durable_index:", "if False:")


@bug(schedules())
def a_membership_change_that_only_the_leader_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers put it in their logs and go on with the voters they knew."""
    plant(monkeypatch, following, "_append_received", "log.append(fresh)\n", "log._entries.extend(fresh)\n")


@bug(schedules())
def a_membership_change_that_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader changes who has to agree in memory, and what reaches the logs is some fact instead."""
    plant(
        monkeypatch,
        proposing,
        "_append_own",
        "core.output.append(entries)",
        "from exo.shared.types.events import NodeDisconnected\n"
        "    entries = [\n"
        "        entry if not isinstance(entry.event, VotersChanged)\n"
        "        else __import__('msgspec').structs.replace(\n"
        "            entry, event=NodeDisconnected(node_id=core.node_id, reason='changed'))\n"
        "        for entry in entries\n"
        "    ]\n"
        "    core.log._entries[len(core.log._entries) - len(entries):] = entries\n"
        "    core.output.append(entries)",
    )


@bug(membership.test_a_change_waits_for_the_opening_of_the_term)
def voters_change_before_the_term_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        proposing,
        "voters_fault",
        "or not core.is_term_committed:",
        ":",
    )


@bug(membership.test_a_second_change_waits_for_the_first)
def two_changes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch, proposing, "voters_fault", "if core.log.voters.index > core.commit_index:", "if False:"
    )


@bug(pitfalls.test_voters_change_once_in_a_proposal)
def two_changes_in_one_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, proposing, "_agreement_fault", "if len(changes) > 1:", "if False:")


@bug(membership.test_a_leader_that_was_removed_sees_that_through_and_leaves)
def a_removed_leader_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = "if core.node_id not in core.voters.voters and"
    plant(monkeypatch, replication, "advance_commit", removed, "if False and")


@bug(membership.test_an_uncommitted_change_is_undone_with_its_entry)
def a_change_outlives_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, LogWindow, "truncate_after", "while len(self._voters) > 1 and", "while False and")


@bug(pitfalls.test_a_newcomer_counts_once_its_disk_has_the_change_that_made_it_count)
def a_newcomer_counts_before_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    knows = "or progress.match_index < self._log.member_since(node_id)"
    plant(monkeypatch, Leader, "committed_index", knows, "")


@bug(pitfalls.test_a_new_leader_admits_nothing_behind_a_farewell_that_it_found)
def a_farewell_that_a_new_leader_does_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, election, "begin_leading", "core.leading.note_farewell(uncommitted)", "pass")


@bug(proposals.test_nothing_is_admitted_before_the_term_is_opened)
def a_term_that_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, proposing, "_fault", "if not core.is_term_opened and not is_opening:", "if False:")


@bug(lambda: pitfalls.test_what_holds_a_cluster_together_is_not_for_others_to_propose(pitfalls.FORCED))
def anybody_proposes_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        proposing,
        "_fault",
        "if sum(isinstance(event, _AGREEMENT) for event in events) == 0:",
        "if True:",
    )


@bug(schedules())
def two_voters_change_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule asks for three new voters at once, and nobody stops it."""
    from exo_sim.policy import PlainPolicy

    plant(
        monkeypatch,
        quorum,
        "change_fault",
        "if len(set(before.voters) ^ set(after.voters)) > 1:",
        "if False:",
        everywhere=(proposing,),
    )
    plant(
        monkeypatch,
        PlainPolicy,
        "_change_single",
        'return _with(voters, spare[0]), f"{spare[0]} is to vote"',
        'return Voters(voters=tuple(sorted((*voters.voters, *spare[:2])))), "all at once"',
    )


@bug(membership.test_a_voter_that_restarts_without_its_replica_goes_on_alone)
def a_sole_voter_that_cannot_let_its_replica_go(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        proposing,
        "voters_fault",
        "if decides_alone and set(voters.replicas) < set(before.replicas):",
        "if False:",
    )


@bug(reads_and_force.test_nobody_hears_of_a_new_incarnation_before_it_is_on_disk)
def an_incarnation_that_is_told_before_it_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        requests,
        "force_history",
        "core.output.vote_when_durable(SelfVote(core.term, entry.index))",
        "from exo.cluster.raft import election\n    election.begin_leading(core, entry.index)",
    )


@bug(reads_and_force.test_what_is_said_in_an_older_incarnation_is_not_heard)
def another_incarnation_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Core, "_received", "if message.incarnation != self.incarnation:", "if False:")


# --- peers that say what cannot be -----------------------------------------------------------------------------------


@bug(lambda: pitfalls.test_what_cannot_be_is_not_believed(pitfalls.FAR_TERM))
def any_term_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch, plausible, "fault_of", "if not 0 <= message.term <= term + TERMS_AHEAD_MAX:", "if False:"
    )


@bug(pitfalls.test_nobody_speaks_with_this_nodes_own_name)
def its_own_name_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, plausible, "fault_of", "if source == node_id:", "if False:")


@bug(pitfalls.test_an_answer_to_a_read_that_nobody_asked_confirms_none)
def an_answer_to_no_question_confirms_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "if message.read_id > core.leading.read_id_asked:"
    plant(monkeypatch, replication, "heartbeat_answered", asked, "if False:")


# --- the simulator itself --------------------------------------------------------------------------------------------


@bug(schedules())
def a_disk_that_loses_what_it_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were this not noticed, crashes would prove nothing."""
    plant(
        monkeypatch,
        Disk,
        "lose_power",
        "self._generation += 1",
        "self._generation += 1\n    del self.synced.entries[-1:]",
    )


@bug(schedules())
def nobody_stands_for_election(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in which nobody recovers has to be noticed as well: nobody stands for election any more."""
    plant(monkeypatch, Core, "_tick", "self.silent_ticks >= self.timeout_ticks)", "False)")


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planting, catcher = BUGS[name]
    planting(monkeypatch)
    try:
        catcher()
    except AssertionError as noticed:
        print(f"{name}: {str(noticed).strip().splitlines()[0]}")
        return
    pytest.fail(f"nothing noticed: {name}")


def test_a_plant_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnfitPlantError):
        plant(monkeypatch, Core, "_tick", "what was never there", "")
    with pytest.raises(UnfitPlantError):
        plant(monkeypatch, Core, "_no_such_function", "self", "")
