"""A device to heat: two thermal nodes, delays, bursts and a poor sensor, all unlike the controller's model."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import cos, pi
from typing import Protocol

from exo.gpu.reading import DeviceReading
from exo.gpu.thermal.advice import ThermalAdvice
from exo.gpu.thermal.advising import advise
from exo.gpu.thermal.device_class import PRIORS, DeviceClass
from exo.gpu.thermal.observing import observe
from exo.gpu.thermal.policy import ThermalPolicy
from exo.gpu.thermal.record import new_record

STEP_S = 0.25
"""Of the integration (Euler): an eighth of the shortest time constant that is drawn."""


@dataclass(frozen=True, kw_only=True)
class PlantConstants:
    """What one device is made of. Watts, J/C, W/C, Celsius, seconds."""

    full_watts: float
    idle_watts: float
    die_j_per_c: float
    sink_j_per_c: float
    die_to_sink_w_per_c: float
    sink_to_air_w_per_c: float
    limit_c: float
    ambient_c: float
    start_above_ambient_c: float = 0.0
    ambient_swing_c: float = 0.0
    """Half of the way between the warmest and the coolest; a cosine of `ambient_period_s`."""
    ambient_period_s: float = 600.0
    ambient_phase: float = 0.0
    burst_share: float = 0.0
    """Bursts take up to this much more power for the same work."""
    burst_mean_gap_s: float = 40.0
    burst_max_s: float = 10.0
    has_idle_gaps: bool = False
    """Work comes and goes: about 90 s of it, then 5 to 60 s of none."""
    has_fan_curve: bool = False
    """The sink gives off 0.75 of its heat below 50 degrees of the sink, and all from 70 on."""
    leakage_per_c: float = 0.0
    """Share of the power that is added for each degree above 50."""
    command_delay_s: float = 0.5
    sensor_delay_s: float = 1.0
    batch_steps: int = 2
    """Work is done in batches of this many steps; the advice is looked at between two of them."""
    sample_min_s: float = 1.0
    sample_max_s: float = 3.0
    lost_share: float = 0.03
    """Of the readings."""
    outage_s: float = 0.0
    """No reading at all for so long, from `OUTAGE_AT_S` on."""
    noise_c: float = 0.5
    quantum_c: float = 1.0
    power_noise_share: float = 0.03
    power_quantum_watts: float = 1.0

    @property
    def full_load_c(self) -> float:
        """Where full work would end without a limit (no bursts, no leakage, fan at full)."""
        return self.ambient_c + self.full_watts * (
            1 / self.die_to_sink_w_per_c + 1 / self.sink_to_air_w_per_c
        )


NOMINAL: dict[DeviceClass, PlantConstants] = {
    "datacenter": PlantConstants(
        full_watts=700, idle_watts=75, die_j_per_c=130, sink_j_per_c=1500, die_to_sink_w_per_c=30,
        sink_to_air_w_per_c=13, limit_c=87, ambient_c=28,
    ),
    "desktop": PlantConstants(
        full_watts=450, idle_watts=30, die_j_per_c=90, sink_j_per_c=900, die_to_sink_w_per_c=22,
        sink_to_air_w_per_c=8, limit_c=85, ambient_c=26,
    ),
    "laptop": PlantConstants(
        full_watts=90, idle_watts=8, die_j_per_c=22, sink_j_per_c=260, die_to_sink_w_per_c=4.5,
        sink_to_air_w_per_c=1.5, limit_c=90, ambient_c=26,
    ),
    "embedded": PlantConstants(
        full_watts=40, idle_watts=6, die_j_per_c=12, sink_j_per_c=300, die_to_sink_w_per_c=2.5,
        sink_to_air_w_per_c=0.6, limit_c=90, ambient_c=28, power_quantum_watts=0.1,
    ),
    "phone": PlantConstants(
        full_watts=9, idle_watts=1, die_j_per_c=2.6, sink_j_per_c=70, die_to_sink_w_per_c=0.5,
        sink_to_air_w_per_c=0.16, limit_c=75, ambient_c=25, power_quantum_watts=0.05,
    ),
}  # fmt: skip
"""The middle of each class, as the priors have it too; drawn plants are up to 40 % off."""

OFF_SHARE = 0.4
OUTAGE_AT_S = 500.0


def draw_plant(kind: DeviceClass, seed: int) -> PlantConstants:
    """Return a plant whose constants are each up to 40 % off the middle of its class, in a changing room."""
    randomness = random.Random(f"{kind} {seed}")
    middle = NOMINAL[kind]

    def off(value: float, share: float = OFF_SHARE) -> float:
        return value * (1 + randomness.uniform(-share, share))

    return replace(
        middle,
        full_watts=off(middle.full_watts, 0.2),
        die_j_per_c=off(middle.die_j_per_c),
        sink_j_per_c=off(middle.sink_j_per_c),
        die_to_sink_w_per_c=off(middle.die_to_sink_w_per_c),
        sink_to_air_w_per_c=off(middle.sink_to_air_w_per_c),
        ambient_c=middle.ambient_c + randomness.uniform(-8, 8),
        start_above_ambient_c=randomness.choice([0, 0, 10, 25]),
        ambient_swing_c=randomness.uniform(0, 4),
        ambient_period_s=randomness.uniform(300, 1500),
        ambient_phase=randomness.uniform(0, 2 * pi),
        burst_share=randomness.uniform(0, 0.2),
        burst_mean_gap_s=randomness.uniform(20, 80),
        burst_max_s=randomness.uniform(3, 10),
        has_idle_gaps=randomness.random() < 0.3,
        has_fan_curve=randomness.random() < 0.4,
        leakage_per_c=randomness.choice([0.0, 0.001, 0.002]),
        command_delay_s=randomness.uniform(0, 2),
        sensor_delay_s=randomness.uniform(0, 2),
        batch_steps=randomness.randint(1, 2),
        sample_min_s=randomness.uniform(0.5, 1.5),
        sample_max_s=randomness.uniform(1.5, 3),
    )  # fmt: skip


def draw_corner(kind: DeviceClass, seed: int) -> PlantConstants:
    """Return a plant with every constant at one end of what `draw_plant` gives, and some that stop telling anything."""
    randomness = random.Random(f"c{seed}")
    middle = NOMINAL[kind]

    def off(value: float, share: float = OFF_SHARE) -> float:
        return value * randomness.choice([1 - share, 1 + share])

    return replace(
        middle,
        full_watts=off(middle.full_watts, 0.2),
        die_j_per_c=off(middle.die_j_per_c),
        sink_j_per_c=off(middle.sink_j_per_c),
        die_to_sink_w_per_c=off(middle.die_to_sink_w_per_c),
        sink_to_air_w_per_c=off(middle.sink_to_air_w_per_c),
        ambient_c=middle.ambient_c + randomness.choice([-8, 8]),
        start_above_ambient_c=randomness.choice([0, 25]),
        ambient_swing_c=4,
        ambient_period_s=randomness.choice([300, 1500]),
        ambient_phase=randomness.uniform(0, 2 * pi),
        burst_share=randomness.choice([0, 0.2]),
        burst_mean_gap_s=randomness.choice([20, 80]),
        burst_max_s=randomness.choice([3, 10]),
        has_idle_gaps=randomness.random() < 0.4,
        has_fan_curve=randomness.random() < 0.5,
        leakage_per_c=randomness.choice([0, 0.002]),
        command_delay_s=randomness.choice([0, 2]),
        sensor_delay_s=randomness.choice([0, 2]),
        batch_steps=randomness.choice([1, 2]),
        sample_min_s=randomness.choice([0.5, 1.5]),
        sample_max_s=randomness.choice([1.5, 3]),
        outage_s=randomness.choice([0, 0, 0, 20, 90]),
    )  # fmt: skip


class Controller(Protocol):
    """Is told what the device tells (None: nothing came) and what was done; says which share of the time to work."""

    def __call__(self, t_s: float, reading: DeviceReading | None, busy_share: float) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of it."""

    work_s: float
    """Seconds of full work."""
    hottest_c: float
    over_limit_s: float
    pauses: int
    """How often the advice fell to nothing."""
    trace: tuple[tuple[float, float, float], ...] = ()
    """(time, true temperature of the die, share advised) at each reading, where asked for."""


class Disturbances:
    """The room and the bursts of one run: the same for every controller, whatever it does."""

    def __init__(self, plant: PlantConstants, seed: int, duration_s: float) -> None:
        randomness = random.Random(f"disturbances {seed}")
        steps = int(duration_s / STEP_S)
        self.power_factor = [1.0] * steps
        at = 0.0
        while plant.burst_share > 0:
            at += randomness.expovariate(1 / plant.burst_mean_gap_s)
            if at >= duration_s:
                break
            length_s = randomness.uniform(1, plant.burst_max_s)
            factor = 1 + plant.burst_share * randomness.uniform(0.5, 1)
            for step in range(int(at / STEP_S), min(steps, int((at + length_s) / STEP_S))):
                self.power_factor[step] = factor
            at += length_s
        self.has_work = [True] * steps
        at = randomness.expovariate(1 / 90)
        while plant.has_idle_gaps and at < duration_s:
            length_s = randomness.uniform(5, 60)
            for step in range(int(at / STEP_S), min(steps, int((at + length_s) / STEP_S))):
                self.has_work[step] = False
            at += length_s + randomness.expovariate(1 / 90)
        self.ambient_c = [
            plant.ambient_c
            + plant.ambient_swing_c
            * cos(2 * pi * step * STEP_S / plant.ambient_period_s + plant.ambient_phase)
            for step in range(steps)
        ]


class _Body:
    """The two nodes."""

    def __init__(self, plant: PlantConstants, ambient_c: float) -> None:
        self._plant = plant
        self.die_c = self.sink_c = ambient_c + plant.start_above_ambient_c

    def power_watts(self, work: float, factor: float) -> float:
        plant = self._plant
        leakage = 1 + plant.leakage_per_c * max(0.0, self.die_c - 50)
        return (plant.idle_watts + work * (plant.full_watts - plant.idle_watts) * factor) * leakage

    def step(self, power_watts: float, ambient_c: float) -> None:
        plant = self._plant
        loss = plant.sink_to_air_w_per_c
        if plant.has_fan_curve:
            loss *= 0.75 + 0.25 * min(1.0, max(0.0, (self.sink_c - 50) / 20))
        through = plant.die_to_sink_w_per_c * (self.die_c - self.sink_c)
        self.die_c += STEP_S * (power_watts - through) / plant.die_j_per_c
        self.sink_c += STEP_S * (through - loss * (self.sink_c - ambient_c)) / plant.sink_j_per_c


def play(
    plant: PlantConstants,
    controller: Controller,
    *,
    seed: int,
    duration_s: float = 1200.0,
    tells_power: bool = True,
    keeps_trace: bool = False,
) -> Run:
    """Run a controller against a plant for `duration_s` of virtual time."""
    steps = int(duration_s / STEP_S)
    outside = Disturbances(plant, seed, duration_s)
    readings = _Sensor(plant, seed, tells_power=tells_power)
    body = _Body(plant, outside.ambient_c[0])
    commands: deque[float] = deque([0.0] * (1 + int(plant.command_delay_s / STEP_S)))
    share = 0.0
    credit = work = 0.0
    batch_left = 0
    over = 0
    hottest = -273.0
    pauses = 0
    trace: list[tuple[float, float, float]] = []
    for step in range(steps):
        taken = readings.take(step, body.die_c)
        if taken is not None:
            reading, busy_share = taken
            before, share = share, controller(step * STEP_S, reading, busy_share)
            pauses += share == 0.0 and before > 0.0
            if keeps_trace:
                trace.append((step * STEP_S, body.die_c, share))
        commands.append(share)
        ordered = commands.popleft()
        # A batch is begun when the pauses have made up for those before, and is then carried to its end.
        if batch_left == 0 and ordered > 0 and credit >= -1e-9 and outside.has_work[step]:
            batch_left = plant.batch_steps
        working = 1.0 if batch_left > 0 else 0.0
        batch_left -= batch_left > 0
        credit = min(ordered, credit + ordered - working)
        power = body.power_watts(working, outside.power_factor[step])
        body.step(power, outside.ambient_c[step])
        readings.note(power, working, body.die_c)
        work += working * STEP_S
        hottest = max(hottest, body.die_c)
        over += body.die_c > plant.limit_c
    return Run(work_s=work, hottest_c=hottest, over_limit_s=over * STEP_S, pauses=pauses, trace=tuple(trace))


class _Sensor:
    """Late, noisy, rounded to whole degrees, at irregular times, now and then silent."""

    def __init__(self, plant: PlantConstants, seed: int, *, tells_power: bool) -> None:
        self._plant = plant
        self._randomness = random.Random(f"sensor {seed}")
        self._tells_power = tells_power
        self._next_s = 0.0
        self._late: deque[float] = deque(maxlen=1 + int(plant.sensor_delay_s / STEP_S))
        self._powers: deque[float] = deque(maxlen=round(1 / STEP_S))
        self._busy = 0.0
        self._steps = 0

    def note(self, power_watts: float, working: float, die_c: float) -> None:
        self._powers.append(power_watts)
        self._late.append(die_c)
        self._busy += working
        self._steps += 1

    def take(self, step: int, die_c: float) -> tuple[DeviceReading | None, float] | None:
        """Return a reading and the share of the time since the last one that was worked, where one is due."""
        now_s = step * STEP_S
        if now_s < self._next_s:
            return None
        plant, randomness = self._plant, self._randomness
        self._next_s = now_s + randomness.uniform(plant.sample_min_s, plant.sample_max_s)
        noise = randomness.gauss(0, plant.noise_c), randomness.gauss(1, plant.power_noise_share)
        is_lost = randomness.random() < plant.lost_share
        is_out = plant.outage_s > 0 and OUTAGE_AT_S <= now_s < OUTAGE_AT_S + plant.outage_s
        if is_lost or is_out:
            return None, 0.0
        late = self._late[0] if self._late else die_c
        busy, self._busy, self._steps = self._busy / max(1, self._steps), 0.0, 0
        power = None
        if self._tells_power and self._powers:
            mean = sum(self._powers) / len(self._powers) * noise[1]
            power = round(mean / plant.power_quantum_watts) * plant.power_quantum_watts
        reading = DeviceReading(
            temperature_c=round((late + noise[0]) / plant.quantum_c) * plant.quantum_c,
            throttle_threshold_c=plant.limit_c,
            power_watts=power,
            compute_utilization_percent=100 * busy,
        )
        return reading, busy


def play_oracle(
    plant: PlantConstants, *, seed: int, duration_s: float = 1200.0, keep_below_c: float = 0.0
) -> Run:
    """Return the run of one who knows the plant, the room and every burst, and rides on the limit.

    Without delay and in parts of a batch: each step takes the most work after which the die is not above the limit
    (less `keep_below_c`). A hotter die gives off more heat from then on, so that nothing is gained by staying
    below: no constant share and no switching does more work, but for what bursts and leakage make of it.
    """
    steps = int(duration_s / STEP_S)
    outside = Disturbances(plant, seed, duration_s)
    body = _Body(plant, outside.ambient_c[0])
    limit_c = plant.limit_c - keep_below_c
    work = 0.0
    hottest = -273.0
    for step in range(steps):
        factor = outside.power_factor[step]
        idle, full = body.power_watts(0, factor), body.power_watts(1, factor)
        through = plant.die_to_sink_w_per_c * (body.die_c - body.sink_c)
        allowed = through + (limit_c - body.die_c) * plant.die_j_per_c / STEP_S
        working = min(1.0, max(0.0, (allowed - idle) / (full - idle))) * outside.has_work[step]
        body.step(body.power_watts(working, factor), outside.ambient_c[step])
        work += working * STEP_S
        hottest = max(hottest, body.die_c)
    return Run(work_s=work, hottest_c=hottest, over_limit_s=0.0, pauses=0)


def reactive(limit_c: float, margin_c: float = 5.0, hysteresis_c: float = 10.0) -> Controller:
    """Return the controller to beat: off at the limit less the margin, on again `hysteresis_c` below that."""
    off_c = limit_c - margin_c
    is_on = True

    def control(t_s: float, reading: DeviceReading | None, busy_share: float) -> float:
        nonlocal is_on
        if reading is None or reading.temperature_c is None:
            return float(is_on)
        is_on = reading.temperature_c < off_c if is_on else reading.temperature_c <= off_c - hysteresis_c
        return float(is_on)

    return control


class Supervised:
    """The controller under test: a thermal record that is fed and asked. Keeps every advice."""

    def __init__(self, kind: DeviceClass, policy: ThermalPolicy | None = None) -> None:
        self.record = new_record(PRIORS[kind], policy)
        self.advice: list[ThermalAdvice] = []

    def __call__(self, t_s: float, reading: DeviceReading | None, busy_share: float) -> float:
        if reading is not None:
            self.record = observe(self.record, t_s, reading, busy_share)
        self.record, advice = advise(self.record, t_s)
        self.advice.append(advice)
        return advice.work_fraction


def constant(share: float) -> Controller:
    """Return a controller that always says the same."""

    def control(t_s: float, reading: DeviceReading | None, busy_share: float) -> float:
        return share

    return control


def plants(
    seeds: Iterable[int], draw: Callable[[DeviceClass, int], PlantConstants] = draw_plant
) -> Iterator[tuple[DeviceClass, int, PlantConstants]]:
    """Yield plants of all classes in turn, one for each seed."""
    kinds = list(NOMINAL)
    for seed in seeds:
        kind = kinds[seed % len(kinds)]
        yield kind, seed, draw(kind, seed)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One plant under the controller that is tested, beside the oracles and the reactive one."""

    kind: DeviceClass
    seed: int
    plant: PlantConstants
    ours: Run
    oracle: Run
    """Rides `keep_below_c` under the limit, knowing all."""
    bold_oracle: Run
    """Rides on the limit itself."""
    reactive: Run
    controller: Supervised

    @property
    def share_of_oracle(self) -> float:
        """Of its work, what ours does."""
        return self.ours.work_s / self.oracle.work_s

    @property
    def share_of_bold_oracle(self) -> float:
        """Of its work, what ours does."""
        return self.ours.work_s / self.bold_oracle.work_s

    @property
    def gain(self) -> float:
        """Our work over the reactive controller's."""
        return self.ours.work_s / max(1.0, self.reactive.work_s)


def compare(
    kind: DeviceClass,
    seed: int,
    plant: PlantConstants,
    *,
    tells_power: bool = True,
    keep_below_c: float = 5.0,
) -> Comparison:
    """Run all four against the same plant, room and bursts."""
    controller = Supervised(kind)
    return Comparison(
        kind=kind,
        seed=seed,
        plant=plant,
        ours=play(plant, controller, seed=seed, tells_power=tells_power),
        oracle=play_oracle(plant, seed=seed, keep_below_c=keep_below_c),
        bold_oracle=play_oracle(plant, seed=seed),
        reactive=play(plant, reactive(plant.limit_c), seed=seed),
        controller=controller,
    )
