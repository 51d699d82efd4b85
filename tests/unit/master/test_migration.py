"""When a healthy instance is moved: it pays, it has lasted, and it is not done too often. Whole years are played."""

import math
import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from exo.master.migration import (
    DAY_S,
    LOOK_S,
    START_S,
    Habits,
    Life,
    Offer,
    Record,
    decide_migration,
    habits_from,
    lasting_s,
    load_s_of,
    moved,
)
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest, Plan, StagePlan, StageState
from support.states import card

HABITS = Habits()
BUSY = Life(age_s=DAY_S, tokens_per_s=20.0, is_quiet=True)
TWICE = Offer(present_ms=20.0, next_ms=10.0, is_calibrated=True, load_s=30.0)
YEAR_S = 365 * DAY_S


def looked(offer: Offer | None, life: Life, *, until_s: float, every_s: float = 15.0) -> float | None:
    """Return when an instance is moved that is looked at again and again; None: not until then."""
    record, now_s = Record(), 0.0
    while now_s <= until_s:
        record, step = decide_migration(record, offer, life, now_s, HABITS)
        if step == "move":
            return now_s
        now_s += every_s
    return None


def test_a_better_place_is_taken_once_it_has_stood_for_a_minute() -> None:
    assert looked(TWICE, BUSY, until_s=600) == 120.0  # What staying costs by then is what moving costs.
    lasts_s = lasting_s(TWICE, BUSY, HABITS)
    assert lasts_s == (20.0 * 30.0 + HABITS.cost_tokens) / (20.0 * 0.5) == 110.0
    quick = replace(TWICE, load_s=2.0)
    assert looked(quick, BUSY, until_s=600) == HABITS.stands_s
    assert looked(None, BUSY, until_s=DAY_S) is None


def test_a_small_gain_and_one_that_nothing_was_measured_of_move_nothing() -> None:
    for gain in (-1.0, 0.0, 0.149):
        offer = replace(TWICE, next_ms=20.0 * (1 - gain))
        assert lasting_s(offer, BUSY, HABITS) is None
    assert lasting_s(replace(TWICE, next_ms=16.9), BUSY, HABITS) is not None
    unknown = replace(TWICE, is_calibrated=False)
    assert lasting_s(replace(unknown, next_ms=10.1), BUSY, HABITS) is None
    assert lasting_s(unknown, BUSY, HABITS) is not None
    assert lasting_s(replace(TWICE, present_ms=0.0), BUSY, HABITS) is None


def test_what_has_not_lived_long_enough_to_pay_for_the_move_stays() -> None:
    """It gains 10 tokens a second and the move costs 1,100: it has to have 110 s before it."""
    assert lasting_s(TWICE, replace(BUSY, age_s=110.0), HABITS) is None
    assert lasting_s(TWICE, replace(BUSY, age_s=111.0), HABITS) is not None
    long = replace(TWICE, load_s=3600.0)
    assert lasting_s(long, replace(BUSY, age_s=7200.0), HABITS) is None
    assert lasting_s(long, BUSY, HABITS) == pytest.approx((20 * 3600 + HABITS.cost_tokens) / 10)
    # One that nobody uses gains nothing for a long time.
    idle = replace(BUSY, tokens_per_s=0.0, age_s=3600.0)
    assert lasting_s(TWICE, idle, HABITS) is None


def test_a_gain_that_was_gone_for_a_moment_has_to_stand_anew() -> None:
    record, step = decide_migration(Record(), TWICE, BUSY, 0.0, HABITS)
    assert step == "wait"
    record, step = decide_migration(record, replace(TWICE, next_ms=19.0), BUSY, 100.0, HABITS)
    assert (record.pays_since_s, step) == (None, "stay")
    record, step = decide_migration(record, TWICE, BUSY, 111.0, HABITS)
    assert (record.pays_since_s, step) == (111.0, "wait")
    assert decide_migration(record, TWICE, BUSY, 220.9, HABITS)[1] == "wait"
    assert decide_migration(record, TWICE, BUSY, 221.0, HABITS)[1] == "move"


def test_a_quiet_moment_is_waited_for_and_not_for_ever() -> None:
    used = replace(BUSY, is_quiet=False)
    record = Record(pays_since_s=0.0)
    assert decide_migration(record, TWICE, used, 200.0, HABITS)[1] == "wait"
    assert decide_migration(record, TWICE, BUSY, 200.0, HABITS)[1] == "move"
    assert decide_migration(record, TWICE, used, 110.0 + HABITS.quiet_wait_s, HABITS)[1] == "move"


def test_after_a_move_nothing_moves_for_a_while_and_for_longer_with_each_one_of_a_day() -> None:
    record, now_s, gaps = Record(), 0.0, list[float]()
    while len(gaps) < 8:
        at_s = now_s
        while True:
            record, step = decide_migration(record, TWICE, BUSY, now_s, HABITS)
            if step == "move":
                break
            now_s += 15
        gaps.append(now_s - at_s)
        record = moved(record, now_s)
    assert gaps[1:] == [600, 1200, 2400, 4800, 9600, 14400, 14400]
    # A day later they are forgotten.
    record, _ = decide_migration(record, TWICE, BUSY, now_s + 2 * DAY_S, HABITS)
    assert len(moved(record, now_s + 2 * DAY_S).moved_s) == 1


class Played:
    """An instance on one of two devices, whose times per token are functions of the time."""

    def __init__(
        self,
        times_ms: tuple[Callable[[float], float], Callable[[float], float]],
        *,
        seed: int = 0,
        noise: float = 0.0,
        load_s: float = 30.0,
        tokens_per_s: float = 20.0,
        look_s: float = 120.0,
    ) -> None:
        self.times_ms = times_ms
        self.chance = random.Random(seed)
        self.noise = noise
        self.load_s = load_s
        self.tokens_per_s = tokens_per_s
        self.look_s = look_s
        self.at = 0
        self.moves_s: list[float] = []
        self.lost_s = 0.0
        """Seconds of waiting for tokens beyond those of the better device, loads included."""

    def seen_ms(self, device: int, now_s: float) -> float:
        return self.times_ms[device](now_s) * math.exp(self.chance.gauss(0, self.noise))

    def play(self, until_s: float) -> "Played":
        record, now_s = Record(), 0.0
        while now_s < until_s:
            offer = Offer(
                present_ms=self.seen_ms(self.at, now_s),
                next_ms=self.seen_ms(1 - self.at, now_s),
                is_calibrated=True,
                load_s=self.load_s,
            )
            life = Life(age_s=now_s, tokens_per_s=self.tokens_per_s, is_quiet=True)
            record, step = decide_migration(record, offer, life, now_s, HABITS)
            true_ms = [one(now_s) for one in self.times_ms]
            self.lost_s += self.look_s * (1 - min(true_ms) / true_ms[self.at])
            if step == "move":
                record = moved(record, now_s)
                self.at = 1 - self.at
                self.moves_s.append(now_s)
                self.lost_s += self.load_s
            now_s += self.look_s
        return self


def test_a_year_of_trembling_telemetry_moves_nothing_to_and_fro() -> None:
    """Two equal devices, each seen 7 % off now and then: by chance alone one seems 15 % faster each third minute."""
    played = Played((lambda _: 10.0, lambda _: 10.0), seed=1, noise=0.07).play(YEAR_S)
    assert len(played.moves_s) <= 2


def test_a_device_that_is_twice_as_fast_is_moved_to_once_in_a_year_and_not_left_again() -> None:
    joined_s = 10 * DAY_S
    faster = Played(
        (lambda _: 20.0, lambda now_s: 10.0 if now_s >= joined_s else 30.0), seed=2, noise=0.05
    ).play(YEAR_S)
    (moved_s,) = faster.moves_s
    assert 0 < moved_s - joined_s <= 600


def test_a_load_by_day_is_avoided_by_day_when_that_pays_and_borne_when_it_does_not() -> None:
    def by_day(now_s: float) -> float:
        return 30.0 if 9 <= now_s % DAY_S / 3600 < 17 else 10.0

    thirty_days_s = 30 * DAY_S
    pays = Played((by_day, lambda _: 15.0), load_s=60.0).play(thirty_days_s)
    assert 50 <= len(pays.moves_s) <= 60, "there in the morning, and back in the evening"
    stays = Played((by_day, lambda _: 15.0), load_s=6 * 3600.0).play(thirty_days_s)
    assert stays.moves_s == []


@pytest.mark.parametrize("period_s", [240, 600, 1800, 7200, 6 * 3600])
@pytest.mark.parametrize("load_s", [10.0, 120.0, 900.0])
def test_whatever_the_world_does_it_costs_little_more_than_staying_and_mostly_less(
    period_s: float, load_s: float
) -> None:
    """The faster of two devices changes all the time, which is the worst that there is."""

    def first(now_s: float) -> float:
        return 10.0 if now_s // period_s % 2 else 20.0

    def second(now_s: float) -> float:
        return 20.0 if now_s // period_s % 2 else 10.0

    days = 20
    played = Played((first, second), load_s=load_s, look_s=60.0).play(days * DAY_S)
    staying_s = 0.25 * days * DAY_S  # Half of the time it is on the slower one, and loses half of it.
    assert played.lost_s <= 1.3 * staying_s
    gaps = [later - earlier for earlier, later in zip(played.moves_s, played.moves_s[1:], strict=False)]
    assert all(gap >= HABITS.pause_s for gap in gaps)
    assert len(played.moves_s) <= 13 * days
    if period_s >= 20 * max(load_s, 60.0) and period_s >= HABITS.pause_max_s:
        assert played.lost_s <= 0.4 * staying_s


def plan(*sizes: int) -> Plan:
    return Plan(
        stages=tuple(
            StagePlan(
                rank=rank,
                node_id=NodeId("a"),
                device_ids=(DeviceId(f"a/cuda:{rank}"),),
                start_layer=rank,
                end_layer=rank + 1,
                memory_bytes=size,
            )
            for rank, size in enumerate(sizes)
        ),
        sharding="pipeline",
        engine="mlx",
        context_length=16,
        concurrency=1,
        method="test",
    )


def test_how_long_a_load_takes_is_what_the_last_one_took_for_a_byte() -> None:
    instance = Instance(
        instance_id=InstanceId("i"),
        model=card(),
        plan=plan(4_000_000_000, 1_000_000_000),
        request=PlacementRequest(model_id=ModelId("toy")),
        stages=(StageState(), StageState()),
        created_by=CommandId("c"),
    )
    assert load_s_of(plan(8_000_000_000), instance, 20.0) == 40.0
    assert load_s_of(plan(1_000_000_000), instance, 20.0) == 20.0, (
        "starting takes its time however little there is"
    )
    assert load_s_of(plan(1_000_000_000), instance, None) == START_S + 2.0


def test_the_environment_can_forbid_it() -> None:
    assert habits_from({}) == Habits() == habits_from({"EXO_MIGRATION": "1"})
    for text in ("0", "false", " NO ", "off"):
        assert habits_from({"EXO_MIGRATION": text}) is None


def test_the_environment_says_how_soon_and_how_often() -> None:
    told = habits_from(
        {
            "EXO_MIGRATION_STANDS": "2",
            "EXO_MIGRATION_PAUSE": "20000",
            "EXO_MIGRATION_QUIET_WAIT": "0",
            "EXO_MIGRATION_COST_TOKENS": "0",
        }
    )
    assert told == Habits(
        stands_s=2.0, pause_s=20000.0, pause_max_s=20000.0, quiet_wait_s=0.0, cost_tokens=0.0
    )
    assert told.look_s == 0.5 and Habits().look_s == LOOK_S
    for name, text in (("STANDS", "0"), ("PAUSE", "long"), ("QUIET_WAIT", "-1"), ("COST_TOKENS", "nan")):
        with pytest.raises(ConfigurationError, match=f"EXO_MIGRATION_{name} is '{text}'; set it to a number"):
            habits_from({f"EXO_MIGRATION_{name}": text})
