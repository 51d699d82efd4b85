"""`exo audit`: who had what done on a node, and whether the record is whole."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from exo.cli.commands import AsJson, Url, Verbose, home_given, open_node

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

POLL_S = 1.0


def audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="How many lines.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check that no line was changed or taken out; exit code 1 if one was."),
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
    _verbose: Verbose = 0,
) -> None:
    """Show who had what done on a node: commands, and requests that were refused."""
    from exo.cli.client import noted_url
    from exo.settings import default_home

    home = home_given(context)
    folder = (home or default_home()).expanduser()
    if url is None and noted_url(folder) is None and (folder / "audit").is_dir() and not follow:
        # The node does not run: its record can be read all the same.
        _show_files(folder / "audit", limit=limit, is_verifying=verify, as_json=as_json)
        return
    with open_node(context, url) as client:
        if verify:
            _show_verification(client.get("/audit/verification", timeout_s=600), as_json=as_json)
            return
        entries: list[Json] = client.get("/audit", {"limit": limit})["entries"]
        _show(entries, as_json=as_json, has_header=True)
        last = entries[-1]["seq"] if entries else 0
        while follow:
            import time

            entries = client.get("/audit", {"after": last, "limit": 1000})["entries"]
            _show(entries, as_json=as_json, has_header=False)
            last = entries[-1]["seq"] if entries else last
            if not entries:
                time.sleep(POLL_S)


def _show_files(folder: "Path", *, limit: int, is_verifying: bool, as_json: bool) -> None:
    import msgspec

    from exo.api.access_audit import read_lines, verify

    if is_verifying:
        found = verify(folder)
        _show_verification({**msgspec.to_builtins(found), "is_whole": not found.problems}, as_json=as_json)
        return
    _show(
        [msgspec.to_builtins(line) for line in read_lines(folder, limit=limit)],
        as_json=as_json,
        has_header=True,
    )


def _show(entries: list[Json], *, as_json: bool, has_header: bool) -> None:
    import json
    import sys

    from exo.cli.output import answers, plain, table

    if as_json:
        # A line each, so that they can be kept elsewhere as they are.
        for entry in entries:
            print(json.dumps(entry))
        sys.stdout.flush()
        return
    if not entries:
        if has_header:
            answers().print("nothing has been noted yet")
        return
    made = table("AT", "WHO", "FROM", "WHAT", "RESULT", "DETAILS")
    made.show_header = has_header
    for entry in entries:
        result = entry["result"] + (f": {entry['code']}" if entry["code"] else "")
        if entry["index"] is not None:
            result += f" ({entry['index']})"
        details = ", ".join(
            f"{key}={value}" for key, value in entry["details"].items() if value not in ("", None)
        )
        made.add_row(
            *(plain(entry[key]) for key in ("at", "who", "address", "what")), plain(result), plain(details)
        )
    answers().print(made)


def _show_verification(found: Json, *, as_json: bool) -> None:
    from exo.cli.output import print_json

    if as_json:
        print_json(found)
    elif found["is_whole"]:
        older = (
            f"; the {found['first_seq'] - 1} before were dropped with their files"
            if (found["first_seq"] or 1) > 1
            else ""
        )
        print(f"all {found['line_count']} lines follow each other{older}")
    else:
        for problem in found["problems"]:
            print(problem)
    if not found["is_whole"]:
        raise typer.Exit(1)
