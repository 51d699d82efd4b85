"""`exo key`: what lets programs on other machines use the API."""

from typing import Annotated

import typer

from exo.cli.commands import AsJson, Url, Verbose, open_node

app = typer.Typer(name="key", help="Make, list and delete keys of the API.", no_args_is_help=True)


@app.command()
def create(
    context: typer.Context,
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="SCOPE",
            help="read (look at the cluster), infer (use models), operate (place and delete them; includes read "
            "and infer) or admin (everything); may be repeated.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="For people.")] = "",
    expires: Annotated[
        str, typer.Option(metavar="TIME", show_default="never", help="How long it lasts, such as 12h or 30d.")
    ] = "",
    url: Url = None,
    as_json: AsJson = False,
    _verbose: Verbose = 0,
) -> None:
    """Make an API key and print it. It is shown this once."""
    from exo.cli.durations import parse_duration_s
    from exo.cli.output import plain, print_json, remarks

    lifetime_s = parse_duration_s(expires, "--expires") if expires else None
    with open_node(context, url) as client:
        made = client.post("/keys", {"scopes": scope, "name": name, "lifetime_s": lifetime_s})
    if as_json:
        print_json(made)
        return
    print(made["key"])
    until = f"until {made['expires_at']}" if made["expires_at"] else "until it is deleted"
    remarks().print(
        f"for {', '.join(made['scopes'])}, {plain(until)}, shown this once; "
        "send it as `Authorization: Bearer KEY` or `x-api-key: KEY`, or set EXO_API_KEY for exo's own commands"
    )


@app.command("list")
def list_keys(
    context: typer.Context, url: Url = None, as_json: AsJson = False, _verbose: Verbose = 0
) -> None:
    """List the keys: their ids, never the keys themselves."""
    from exo.cli.output import answers, plain, print_json, table

    with open_node(context, url) as client:
        found = client.get("/keys")
    if as_json:
        print_json(found)
        return
    if not found["keys"]:
        answers().print(
            "there are no keys, so that only this machine is answered; make one with: exo key create --scope infer"
        )
        return
    made = table("KEY", "NAME", "SCOPES", "CREATED", "EXPIRES", "CREATED BY")
    for key in found["keys"]:
        expires = plain(key["expires_at"] or "never")
        made.add_row(
            plain(key["key_id"]),
            plain(key["name"] or "-"),
            ", ".join(key["scopes"]),
            plain(key["created_at"]),
            f"[red]{expires}[/red]" if key["is_expired"] else expires,
            plain(key["created_by"]),
        )
    answers().print(made)


@app.command()
def delete(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="ID", help="One of `exo key list`.")],
    url: Url = None,
    _verbose: Verbose = 0,
) -> None:
    """Delete a key: it lets nobody in any more."""
    from urllib.parse import quote

    with open_node(context, url) as client:
        client.delete(f"/keys/{quote(key, safe='')}")
    print(f"deleted {key}")
