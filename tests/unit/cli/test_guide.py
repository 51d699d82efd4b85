"""The guide names every flag with its variable, and every variable that the code reads."""

import re
from pathlib import Path

import typer.main

from exo.cli.main import app

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
OF_DEVELOPERS = {"EXO_DASHBOARD_NODE", "EXO_TEST_SEEDS"}


def test_every_flag_stands_in_the_guide_with_its_variable() -> None:
    command = typer.main.get_command(app)
    rows = [line for line in GUIDE.splitlines() if line.startswith("| `-")]
    found = 0
    for parameter in command.params:
        variable = getattr(parameter, "envvar", None)
        if variable is None:
            continue
        found += 1
        flag = max(parameter.opts, key=len)
        assert any(f"`{flag}`" in row and f"`{variable}`" in row for row in rows), (flag, variable)
    assert found == len(rows)


def test_every_variable_that_is_read_stands_in_the_guide() -> None:
    files = [*(ROOT / "src").rglob("*.py"), ROOT / "hatch_build.py", ROOT / "dashboard" / "vite.config.ts"]
    quoted = re.compile(r"[\"'](EXO_[A-Z0-9_]*[A-Z0-9])[\"']")
    read = {name for file in files for name in quoted.findall(file.read_text(encoding="utf-8"))}
    assert "EXO_HOME" in read
    assert {name for name in read - OF_DEVELOPERS if f"`{name}`" not in GUIDE} == set()
    named = set(re.findall(r"`(EXO_[A-Z0-9_]+)`", GUIDE))
    assert named - read == set(), "the guide names variables that nothing reads"


def test_every_exit_code_of_an_error_stands_in_the_guide() -> None:
    codes = re.compile(r"exit_code(?:: int)? = (\d+)")
    found = {code for file in (ROOT / "src").rglob("*.py") for code in codes.findall(file.read_text("utf-8"))}
    assert found
    for code in found:
        assert re.search(rf"^\| {code} \|", GUIDE, re.MULTILINE), code
