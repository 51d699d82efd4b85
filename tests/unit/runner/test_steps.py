"""Times of decoding steps: what counts as one, what a round is made of, and when nothing is to be said."""

import msgspec
import pytest

from exo.dataplane import frames as f
from exo.dataplane.codec import FrameDecoder, encode
from exo.shared.types.ids import RequestId
from exo.worker.runner.steps import STEPS_KEPT_MAX, StepLedger, usual_mean
from unit.runner.test_roles import World

STEP_S = (0.5, 0.25, 2.0)
HOP_S = 0.125


class TimedWorld(World):
    """A pipeline whose stages take their time, and whose frames do."""

    def __init__(self, count: int, **fields: object) -> None:
        super().__init__(count, **fields)  # pyright: ignore[reportArgumentType]
        for rank, stage in enumerate(self.stages):
            stage.on_step = lambda positions, rank=rank: self.pass_s(STEP_S[rank] * positions)
        for role in self.roles:
            role.ledger.take()

    def pass_s(self, seconds: float) -> None:
        self.now += seconds

    def turn(self) -> bool:
        """Move one frame or run one step, so that time passes for one thing at a time."""
        for role, wire in zip(self.roles, self.wires, strict=True):
            if wire.inbox and not wire.is_held:
                frame, payload = wire.inbox.popleft()
                if isinstance(frame, f.Activation | f.Sampled):
                    self.pass_s(HOP_S)
                role.from_previous(frame, payload)
                return True
        for role in self.roles:
            if role.has_work:
                role.step()
                return True
        return False


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_stage_knows_its_steps_and_the_first_one_the_round(count: int) -> None:
    world = TimedWorld(count)
    world.ask(prompt="hello", max_tokens=20)
    world.run()
    for rank, role in enumerate(world.roles):
        window = role.ledger.take()
        assert window is not None
        # The prompt was run in a step of its own, which is none of these.
        assert window.step_count == 20
        assert window.step_s == pytest.approx(STEP_S[rank])
        assert window.position == pytest.approx(5 + 9.5, abs=0.6)
        if rank:
            assert (window.round_count, window.round_s, window.hop_s) == (0, None, None)
            continue
        # The first token waited for its prompt.
        assert window.round_count == 19
        expected_s = sum(STEP_S[:count]) + (HOP_S * count if count > 1 else 0.0)
        assert window.round_s == pytest.approx(expected_s)
        assert window.hop_s == (pytest.approx(HOP_S) if count > 1 else None)
        assert role.ledger.take() is None


@pytest.mark.parametrize("count", [1, 2])
def test_tokens_that_wait_for_each_other_are_no_rounds(count: int) -> None:
    world = TimedWorld(count)
    world.ask("one", max_tokens=10)
    world.ask("two", max_tokens=10)
    world.run()
    window = world.first.ledger.take()
    assert window is not None and (window.step_count, window.step_s) == (20, STEP_S[0])
    # When one has ended, the other's last token is alone.
    assert window.round_count <= 1


def test_a_stage_that_is_slowed_down_says_nothing_and_has_the_round_say_nothing() -> None:
    world = TimedWorld(3)
    world.roles[1].ledger.is_open = False
    world.ask(max_tokens=10)
    world.run()
    assert world.roles[1].ledger.take() is None
    first, last = world.first.ledger.take(), world.roles[2].ledger.take()
    assert first is not None and first.step_count == 10 and first.round_count == 0
    assert last is not None and last.step_count == 10


def test_a_first_stage_that_is_slowed_down_begins_no_round() -> None:
    world = TimedWorld(2)
    world.first.ledger.is_open = False
    world.ask(max_tokens=10)
    world.run()
    assert world.first.ledger.take() is None
    world.first.ledger.is_open = True
    assert world.first.ledger.take() is None


def test_frames_of_a_peer_that_does_not_time_its_steps_are_read() -> None:
    """As a release without these fields sends them; and one without them reads ours."""
    sampled = f.Sampled(request_id=RequestId("r"), token_id=1, is_finished=False)
    assert b"computed_s" not in encode(sampled)
    timed = msgspec.structs.replace(sampled, computed_s=0.5)
    ((frame, _),) = FrameDecoder().feed(encode(timed))
    assert frame == timed

    class Older(msgspec.Struct, tag_field="t", tag="Sampled"):
        request_id: str
        token_id: int
        is_finished: bool

    header = encode(timed)[8:]
    assert msgspec.msgpack.decode(header, type=Older) == Older(request_id="r", token_id=1, is_finished=False)


def test_a_round_without_the_times_of_others_is_none() -> None:
    world = TimedWorld(2)
    world.ask(max_tokens=4)
    while world.turn():
        for position, (frame, payload) in enumerate(world.wires[0].inbox):
            if isinstance(frame, f.Sampled):
                world.wires[0].inbox[position] = msgspec.structs.replace(frame, computed_s=None), payload
    window = world.first.ledger.take()
    assert window is not None and window.step_count == 4 and window.round_count == 0


def test_the_mean_leaves_out_what_stands_out() -> None:
    assert usual_mean([3.0]) == 3.0
    assert usual_mean([1.0] * 18 + [100.0, 0.0]) == 1.0
    assert usual_mean([1.0, 1.1], [3.0, 1.0]) == pytest.approx(1.025)
    # A tail belongs to it: tokens/s are made of all steps.
    spread = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.6, 3.0]
    assert usual_mean(spread) == pytest.approx(sum(spread) / len(spread))


def test_a_ledger_keeps_no_more_than_fits() -> None:
    ledger = StepLedger()
    for number in range(STEPS_KEPT_MAX + 10):
        ledger.step_took(1.0, number)
    window = ledger.take()
    assert window is not None and window.step_count == STEPS_KEPT_MAX
