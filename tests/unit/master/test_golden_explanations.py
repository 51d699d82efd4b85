"""Explanations and refusals as people read them: tests/golden has one page a case.

`REWRITE_GOLDEN=1 pytest tests/unit/master/test_golden_explanations.py` writes them anew; read what changed.
"""

import os

import pytest

from support.golden_cases import FOLDER, Case, cases, told

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_page_says_what_is_answered(case: Case) -> None:
    page = FOLDER / f"{case.name.replace(' ', '_')}.txt"
    now = told(case)
    if os.environ.get("REWRITE_GOLDEN"):
        page.parent.mkdir(exist_ok=True)
        page.write_text(now, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == now


def test_no_page_is_left_over() -> None:
    assert {page.stem for page in FOLDER.glob("*.txt")} == {case.name.replace(" ", "_") for case in CASES}
