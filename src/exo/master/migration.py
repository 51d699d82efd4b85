"""Whether a healthy instance should go on elsewhere: when what it gains pays for the move, and not before. Pure.

It would be simple to move whenever a plan is predicted to be faster, and wrong: predictions tremble, loads come and
go, and each move costs a load of the model. Three things are asked for instead, all of them at once:

- *It pays.* The tokens gained over the instance's expected life are more than those lost by moving. Nobody knows how
  long an instance lives; one that has lived for a while lives as long again in the median, whatever it is (J. R.
  Gott, "Implications of the Copernican principle for our future prospects", Nature 363, 1993).
- *It has lasted.* The better place has been there on end for a minute, and for so long that staying has cost as much
  as moving does. So a change that goes away again costs about twice what somebody would have paid who knew the future
  (A. Karlin, M. Manasse, L. Rudolph, D. Sleator, "Competitive snoopy caching", Algorithmica 3, 1988).
- *It is not done too often.* After a move nothing moves for ten minutes, and for twice as long with each one of a day.

Where an instance had to give something up that was asked for, as when a node was lost, it goes back to that once it
can be had again: that need not pay, but has to last, and is not done too often either.
"""

import math
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from exo.shared.environment import is_off, number_from
from exo.shared.types.instances import Instance, Plan

DAY_S = 86_400.0
START_S = 5.0
"""For starting the processes of an instance, libraries included, where no load was seen yet."""
READ_BYTES_PER_S = 500e6
"""How fast weights are read where no load was seen yet: what a good SATA disk does."""
IDLE_TOKENS_PER_S = 0.01
"""What is expected of an instance that nobody uses now: somebody may."""
LOOK_S = 15.0
"""How often each instance is looked at; oftener where a better place has to stand for less than a minute."""
_LOOKS_WHILE_IT_STANDS = 4


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """When a healthy instance is moved."""

    gain_least: float = 0.15
    """Share of a token's time that has to be saved."""
    gain_least_uncalibrated: float = 0.5
    """The same where measured tokens/s have not confirmed the predictions: they may be off by a factor."""
    stands_s: float = 60.0
    """For how long on end that has to be so at least."""
    pause_s: float = 600.0
    """Between two migrations of an instance; doubles with each one of the last day."""
    pause_max_s: float = 4 * 3600.0
    quiet_wait_s: float = 120.0
    """How long a moment without requests is waited for, once it is time."""
    cost_tokens: float = 500.0
    """What a move costs besides the load: the answer that is cut off, if there is one, has to be made anew."""
    held_back_below: float = 0.7
    """A device that heat leaves less than this of its work for good is told of as a reason."""

    @property
    def look_s(self) -> float:
        """How often each instance is looked at."""
        return min(LOOK_S, self.stands_s / _LOOKS_WHILE_IT_STANDS)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Another plan for an instance, beside where it is, both by today's figures."""

    present_ms: float
    """What a token takes where it is."""
    next_ms: float
    """What it would take there."""
    is_calibrated: bool
    """Whether both were confirmed by measured tokens/s."""
    load_s: float
    """How long the move takes the instance out of service."""
    owed: str | None = None
    """What the present place does not keep of what was asked for, and this plan does: then no gain is asked for."""

    @property
    def gain(self) -> float:
        """The share of a token's time that is saved; negative where it is slower there."""
        return 1 - self.next_ms / self.present_ms if self.present_ms > 0 else 0.0


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of how an instance lives."""

    age_s: float
    """How long the present master has known it."""
    tokens_per_s: float
    """What it is used for, on average of late."""
    is_quiet: bool
    """Nobody uses it at the moment."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an instance from one look to the next."""

    pays_since_s: float | None = None
    """Since when on end moving has paid; None: it does not."""
    moved_s: tuple[float, ...] = ()
    """When it was migrated within the last day."""


Step = Literal["stay", "wait", "move"]


def is_worth_a_look(offer: Offer, habits: Habits) -> bool:
    """Say whether an offer saves so much that it may pay one day; less never does, however long it lasts."""
    least = habits.gain_least if offer.is_calibrated else habits.gain_least_uncalibrated
    return offer.owed is not None or offer.gain >= least


def lasting_s(offer: Offer, life: Life, habits: Habits) -> float | None:
    """Return for how long on end an offer has to stand until it is taken; None where it does not pay at all."""
    if not is_worth_a_look(offer, habits):
        return None
    if offer.owed is not None:
        return habits.stands_s
    rate = max(life.tokens_per_s, IDLE_TOKENS_PER_S)
    cost_tokens = rate * offer.load_s + habits.cost_tokens
    gain_tokens_per_s = rate * offer.gain
    # As long again as it has lived so far.
    if gain_tokens_per_s * life.age_s <= cost_tokens:
        return None
    return max(habits.stands_s, cost_tokens / gain_tokens_per_s)


def decide_migration(
    record: Record, offer: Offer | None, life: Life, now_s: float, habits: Habits
) -> tuple[Record, Step]:
    """Take one look at an instance that is ready.

    Args:
        record: What the last look left.
        offer: The best plan there is now, where it is another one than the present.
        life: How the instance lives.
        now_s: Present time, monotonic.
        habits: When to move.

    Returns:
        What to keep for the next look, and what to do. Whoever moves it calls `moved` with the record.
    """
    lasts_s = lasting_s(offer, life, habits) if offer is not None else None
    if lasts_s is None:
        return replace(record, pays_since_s=None), "stay"
    since_s = now_s if record.pays_since_s is None else record.pays_since_s
    record = replace(record, pays_since_s=since_s)
    due_s = max(since_s + lasts_s, _paused_until_s(record, now_s, habits))
    if now_s < due_s or (not life.is_quiet and now_s < due_s + habits.quiet_wait_s):
        return record, "wait"
    return record, "move"


def moved(record: Record, now_s: float) -> Record:
    """Note that the instance is migrated now."""
    return Record(moved_s=(*(at_s for at_s in record.moved_s if now_s - at_s < DAY_S), now_s))


def _paused_until_s(record: Record, now_s: float, habits: Habits) -> float:
    recent = [at_s for at_s in record.moved_s if now_s - at_s < DAY_S]
    if not recent:
        return -math.inf
    return recent[-1] + min(habits.pause_max_s, habits.pause_s * 2 ** (len(recent) - 1))


def load_s_of(plan: Plan, instance: Instance, seen_s: float | None) -> float:
    """Return how long an instance will be out of service for a plan.

    All of its processes start anew. The largest stage decides, and takes as long for a byte as it did the last time.

    Args:
        plan: Where it would go.
        instance: As it is.
        seen_s: How long its last load took, as the master saw it; None: it saw none.
    """
    most_bytes = _largest_stage_bytes(plan)
    if seen_s is None:
        return START_S + most_bytes / READ_BYTES_PER_S
    had_bytes = _largest_stage_bytes(instance.plan)
    return seen_s * max(1.0, most_bytes / had_bytes if had_bytes else 1.0)


def _largest_stage_bytes(plan: Plan) -> int:
    return max((stage.memory_bytes for stage in plan.stages), default=0)


def habits_from(environment: Mapping[str, str]) -> Habits | None:
    """Read `EXO_MIGRATION*`.

    Args:
        environment: Usually `os.environ`.

    Returns:
        When healthy instances are moved; None where `EXO_MIGRATION=0` leaves them where they are.

    Raises:
        ConfigurationError: A value is no number, or none that makes sense; the message names it.
    """
    if is_off(environment, "EXO_MIGRATION"):
        return None
    usual = Habits()
    pause_s = number_from(environment, "EXO_MIGRATION_PAUSE", usual.pause_s, least=0, most=DAY_S)
    return Habits(
        stands_s=number_from(environment, "EXO_MIGRATION_STANDS", usual.stands_s, least=1, most=DAY_S),
        pause_s=pause_s,
        pause_max_s=max(usual.pause_max_s, pause_s),
        quiet_wait_s=number_from(
            environment, "EXO_MIGRATION_QUIET_WAIT", usual.quiet_wait_s, least=0, most=DAY_S
        ),
        cost_tokens=number_from(
            environment, "EXO_MIGRATION_COST_TOKENS", usual.cost_tokens, least=0, most=1e9
        ),
    )
