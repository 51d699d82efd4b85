"""`exo key`: what lets programs on other machines use the API."""

from typing import Annotated, Any

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
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            show_default="any number",
            help="How many chats it may begin in a minute, over all nodes.",
        ),
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            show_default="any number",
            help="How many tokens of prompts and answers it may use in a day (UTC), over all nodes.",
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE",
            show_default="all",
            help="It may use and place only what runs on this device: its id, or NODE/ALIAS such as "
            "attic/cuda:0; may be repeated.",
        ),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
    _verbose: Verbose = 0,
) -> None:
    """Make an API key and print it. It is shown this once."""
    from exo.cli.durations import parse_duration_s
    from exo.cli.naming import find_device
    from exo.cli.output import plain, print_json, remarks

    lifetime_s = parse_duration_s(expires, "--expires") if expires else None
    with open_node(context, url) as client:
        wish: dict[str, Any] = {"scopes": scope, "name": name, "lifetime_s": lifetime_s}
        wish |= {"requests_per_minute": requests_per_minute, "tokens_per_day": tokens_per_day}
        if device:
            known = client.get("/state")["topology"]["nodes"]
            wish["device_ids"] = [find_device(known, text) for text in device]
        made = client.post("/keys", wish)
    if as_json:
        print_json(made)
        return
    print(made["key"])
    until = f"until {made['expires_at']}" if made["expires_at"] else "until it is deleted"
    limits = "".join(f", {plain(text)}" for text in _limits(made))
    remarks().print(
        f"for {', '.join(made['scopes'])}{limits}, {plain(until)}, shown this once; "
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
    made = table("KEY", "NAME", "SCOPES", "LIMITS", "CREATED", "EXPIRES", "CREATED BY")
    for key in found["keys"]:
        expires = plain(key["expires_at"] or "never")
        made.add_row(
            plain(key["key_id"]),
            plain(key["name"] or "-"),
            ", ".join(key["scopes"]),
            plain(", ".join(_limits(key)) or "-"),
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


def _limits(key: dict[str, Any]) -> list[str]:
    """Return what a key is limited to, each as a person reads it."""
    limits: list[str] = []
    if key["requests_per_minute"] is not None:
        limits.append(f"{key['requests_per_minute']} requests a minute")
    if key["tokens_per_day"] is not None:
        limits.append(f"{key['tokens_per_day']} tokens a day")
    if key["device_ids"]:
        limits.append(f"only on {', '.join(key['device_ids'])}")
    return limits
