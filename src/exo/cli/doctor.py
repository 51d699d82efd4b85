"""`exo doctor`: what works on this machine, what is missing, and the next step for each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exo.cli import checks
from exo.cli.checks import Finding
from exo.cli.output import answers, plain, print_json, table

if TYPE_CHECKING:
    from exo.cli.client import NodeClient

_MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "broken": "[red]broken[/red]"}


def run(home: Path | None, *, as_json: bool) -> int:
    """Check everything, print it, and return the exit code: 1 when something is broken."""
    return report(examine(home), as_json=as_json)


def run_peers(
    open_client: "Callable[[], NodeClient]", home: Path | None, target: str | None, *, as_json: bool
) -> int:
    """Say why each noticed peer is or is not of the cluster, and try `target`; return the exit code.

    Raises:
        ConfigurationError: `target` is no address.
    """
    from exo.cli.peers import examine_peers

    return report(examine_peers(open_client, home=home, target=target), as_json=as_json)


def report(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings and return the exit code: 1 when something is broken."""
    is_broken = any(finding.status == "broken" for finding in findings)
    if as_json:
        print_json({"is_healthy": not is_broken, "checks": [finding.as_dict() for finding in findings]})
        return int(is_broken)
    made = table("", "WHAT", "")
    for finding in findings:
        text = plain(finding.text)
        if finding.next_step:
            text += f"\n[bold]→ {plain(finding.next_step)}[/bold]"
        made.add_row(_MARKS[finding.status], plain(finding.name), text)
    answers().print(made)
    return int(is_broken)


def examine(home: Path | None) -> list[Finding]:
    """Run every check. A check that fails in a way nobody thought of is a finding, too."""
    folder = checks.home_folder(home)
    wanted: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", checks.check_python),
        ("machine", checks.check_machine),
        ("devices", checks.check_devices),
        ("nvidia", checks.check_nvidia),
        ("engines", checks.check_engines),
        ("mlx", checks.check_mlx),
        ("openblas", checks.check_openblas),
        ("data directory", lambda: checks.check_home(folder)),
        ("models", lambda: checks.check_models(folder)),
        ("ports", checks.check_ports),
        ("multicast", checks.check_multicast),
        ("dashboard", checks.check_dashboard),
    ]
    findings: list[Finding] = []
    for name, check in wanted:
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding(name, "broken", f"cannot be checked: {type(error).__name__}: {error}"))
    return findings
