"""Random states and requests through `place_instance`, each answer looked at for what must never be.

`python -m benchmarks.placement.front_faults [COUNT [FIRST]]` asks so many (10,000 unless told otherwise).
"""

import random
import sys
from collections import Counter

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.judge import faults as wrong
from benchmarks.placement.judge import has_plain_plan
from benchmarks.placement.states import Asked, permuted, random_asked, with_one_more
from benchmarks.results import Result
from exo.master.placement.place import place_instance
from exo.shared.types.commands import Refusal
from exo.shared.types.instances import Plan

KINDS = (
    "wrong by the judge: memory, layers, wishes, figures",
    "plan differs on permuted input",
    "false infeasible",
    "slower with a machine more",
    "exception",
)
_ROUNDING = 1e-9


def run(*, quick: bool) -> list[Result]:
    """100 of them; `python -m benchmarks.placement.front_faults` asks 10,000."""
    sheet = Sheet()
    count = 20 if quick else 100
    found = front_faults(count)
    for kind in KINDS:
        sheet.add(f"{count} random requests: {kind}", found[kind], "", at_most=0)
    return sheet.results


def front_faults(count: int, *, first: int = 0, is_told: bool = False) -> Counter[str]:
    """Ask so many, each also in another order and with a machine more, and count what is wrong."""
    total: Counter[str] = Counter()
    for seed in range(first, first + count):
        found = faults_of(seed)
        if is_told:
            for kind in KINDS:
                if found[kind]:
                    print(f"seed {seed}: {kind}", flush=True)
        total += found
    return total


def faults_of(seed: int) -> Counter[str]:
    """Ask one, and count what is wrong with the answers."""
    found: Counter[str] = Counter()
    asked = random_asked(seed)
    chance = random.Random(seed)
    try:
        answer, again = _placed(asked), _placed(permuted(asked, chance))
        more = with_one_more(asked, chance)
        later = _placed(more)
    except Exception:  # Whatever is raised is the fault that is looked for.
        found["exception"] += 1
        return found
    found["plans" if isinstance(answer, Plan) else f"refused: {answer.code}"] += 1
    found[KINDS[0]] += bool(wrong(asked.state, asked.request, answer))
    found[KINDS[0]] += bool(wrong(more.state, more.request, later))
    found[KINDS[1]] += answer != again
    if isinstance(answer, Refusal):
        found[KINDS[2]] += answer.code == "not_enough_memory" and has_plain_plan(
            asked.state, asked.request, chance
        )
    found[KINDS[3]] += _is_worse(answer, later)
    return found


def _placed(asked: Asked) -> Plan | Refusal:
    return place_instance(asked.state, asked.request, should_stop=lambda: False)


def _is_worse(before: Plan | Refusal, after: Plan | Refusal) -> bool:
    """Whether a machine more made it worse, beyond what the certificate of the later plan leaves open."""
    if isinstance(before, Refusal):
        return False
    if isinstance(after, Refusal):
        return True
    was = before.prediction.ms_per_token if before.prediction is not None else None
    now = after.prediction.ms_per_token if after.prediction is not None else None
    gap = after.certificate.gap_percent if after.certificate is not None else None
    if was is None or now is None:
        return False
    return now * (1 - (gap or 0.0) / 100) > was * (1 + _ROUNDING)


def main() -> None:
    """Print the counts; end with 1 when something is wrong."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    begin = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    total: Counter[str] = Counter()
    for first in range(begin, begin + count, 200):
        total += front_faults(min(200, begin + count - first), first=first, is_told=True)
        print(first + min(200, begin + count - first), dict(total), flush=True)
    sys.exit(1 if any(total[kind] for kind in KINDS) else 0)


if __name__ == "__main__":
    main()
