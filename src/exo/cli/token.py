"""`exo token`: what lets other machines join."""

from typing import Annotated

import typer

from exo.cli.commands import AsJson, Url, Verbose, open_node

app = typer.Typer(
    name="token", help="Make, list and delete tokens with which other machines join.", no_args_is_help=True
)


@app.command()
def create(
    context: typer.Context,
    expires: Annotated[
        str, typer.Option(metavar="TIME", help="How long it may be used, such as 15m, 1h or 7d.")
    ] = "1h",
    uses: Annotated[int, typer.Option(metavar="N", min=1, help="How many nodes may join with it.")] = 1,
    url: Url = None,
    as_json: AsJson = False,
    _verbose: Verbose = 0,
) -> None:
    """Make a token and print it. It is shown this once; on the other machine: exo join TOKEN."""
    from exo.cli.durations import parse_duration_s
    from exo.cli.output import plain, print_json, remarks

    lifetime_s = parse_duration_s(expires, "--expires")
    with open_node(context, url) as client:
        made = client.post("/tokens", {"lifetime_s": lifetime_s, "uses": uses})
    if as_json:
        print_json(made)
        return
    print(made["token"])
    nodes = "one node" if uses == 1 else f"{uses} nodes"
    remarks().print(
        f"for {nodes} until {plain(made['expires_at'])}, shown this once; on the other machine: exo join TOKEN"
    )


@app.command("list")
def list_tokens(
    context: typer.Context, url: Url = None, as_json: AsJson = False, _verbose: Verbose = 0
) -> None:
    """List the tokens: their ids, never the tokens themselves."""
    from exo.cli.output import answers, plain, print_json, table

    with open_node(context, url) as client:
        found = client.get("/tokens")
    if as_json:
        print_json(found)
        return
    if not found["tokens"]:
        answers().print("there are no tokens; make one with: exo token create")
        return
    made = table("TOKEN", "USES LEFT", "EXPIRES", "CREATED BY", "USED BY", "", right=("USES LEFT",))
    for token in found["tokens"]:
        note = "[red]locked after wrong tries[/red]" if token["is_locked"] else ""
        made.add_row(
            plain(token["token_id"]),
            str(token["uses_left"]),
            plain(token["expires_at"]),
            plain(token["created_by"]),
            plain(", ".join(token["used_by"]) or "-"),
            note,
        )
    answers().print(made)


@app.command()
def delete(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="ID", help="One of `exo token list`.")],
    url: Url = None,
    _verbose: Verbose = 0,
) -> None:
    """Delete a token: nobody joins with it any more. Nodes that did stay."""
    from urllib.parse import quote

    with open_node(context, url) as client:
        client.delete(f"/tokens/{quote(token, safe='')}")
    print(f"deleted {token}")
