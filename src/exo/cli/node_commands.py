"""`exo node`: who is a member, who wants to be one, and who is no more."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from exo.cli.commands import AsJson, Url, Verbose, open_node

if TYPE_CHECKING:
    from exo.cli.client import NodeClient

Json = dict[str, Any]
Node = Annotated[str, typer.Argument(metavar="NODE", help="Its id, the start of it, or its name.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="Shown to the node.")]

app = typer.Typer(name="node", help="List, approve, decline and remove nodes.", no_args_is_help=True)


@app.command("list")
def list_nodes(
    context: typer.Context, url: Url = None, as_json: AsJson = False, _verbose: Verbose = 0
) -> None:
    """List the members, and the nodes that want to join."""
    from exo.cli.output import answers, plain, print_json, table

    with open_node(context, url) as client:
        found = client.get("/nodes")
    if as_json:
        print_json(found)
        return
    made = table("NODE", "ID", "ADDRESS", "", "CERTIFICATE UNTIL")
    for node in found["nodes"]:
        parts = ["master"] if node["is_master"] else []
        parts += ["votes"] if node["is_voter"] else []
        if not node["is_connected"]:
            parts.append(f"[red]away: {plain(node['left_reason'])}[/red]")
        address = f"{node['cluster_address']['host']}:{node['cluster_address']['port']}"
        until = node["certificate_expires_at"] or "-"
        made.add_row(
            plain(node["name"]), plain(node["node_id"]), plain(address), ", ".join(parts), plain(until)
        )
    console = answers()
    console.print(made)
    if not found["wishes"]:
        return
    console.print()
    made = table("WANTS TO JOIN", "ID", "FROM", "KEY", "SINCE")
    for wish in found["wishes"]:
        made.add_row(
            plain(wish["name"] or "?"),
            plain(wish["node_id"]),
            plain(wish["address"]),
            plain(fingerprint(wish["fingerprint"])),
            plain(wish["asked_at"]),
        )
    console.print(made)
    console.print("let one in with: exo node approve ID; the other way: exo node decline ID")


@app.command()
def approve(context: typer.Context, node: Node, url: Url = None, _verbose: Verbose = 0) -> None:
    """Let a node join that wants to."""
    with open_node(context, url) as client:
        wish = _wish(client, node)
        client.post(f"/nodes/{wish['node_id']}/approve", {"fingerprint": wish["fingerprint"]})
    print(f"{wish['node_id']} at {wish['address']} with the key {fingerprint(wish['fingerprint'])} may join")


@app.command()
def decline(
    context: typer.Context, node: Node, reason: Reason = "", url: Url = None, _verbose: Verbose = 0
) -> None:
    """Refuse a node that wants to join; for an hour it is not shown again."""
    with open_node(context, url) as client:
        wish = _wish(client, node)
        client.post(f"/nodes/{wish['node_id']}/decline", {"reason": reason})
    print(f"declined {wish['node_id']} at {wish['address']}")


@app.command()
def remove(
    context: typer.Context, node: Node, reason: Reason = "", url: Url = None, _verbose: Verbose = 0
) -> None:
    """End a node's membership and revoke its certificates. It comes back only when somebody lets it."""
    from urllib.parse import quote

    with open_node(context, url) as client:
        found = client.get("/nodes")["nodes"]
        # One that has a certificate and never came is no member; its id is taken as it is.
        matches = _matching(found, node)
        node_id = _only(matches, node)["node_id"] if matches else node
        client.delete(f"/nodes/{quote(node_id, safe='')}?reason={quote(reason)}")
    print(f"removed {node_id}")


@app.command()
def forget(
    context: typer.Context,
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="Every voter that is lost for good.")],
    yes: Annotated[bool, typer.Option("--yes", help="Yes, what only they had may be lost.")] = False,
    url: Url = None,
    _verbose: Verbose = 0,
) -> None:
    """Go on without voters that are lost for good, where no master can be elected without them.

    Run it on the node that is to go on.
    """
    from exo.shared.errors import ConfigurationError

    with open_node(context, url) as client:
        found = client.get("/nodes")["nodes"]
        ids = [
            _only(_matching(found, node), node)["node_id"] if _matching(found, node) else node
            for node in nodes
        ]
        names = ", ".join(ids)
        if not yes:
            raise ConfigurationError(
                f"to forget {names} is for nodes that never come back: decisions that only they had are lost, "
                "instances placed on them fail, and if one of them is alive after all it has to join as a newcomer "
                f"and two histories may have begun; if that is so: exo node forget {' '.join(ids)} --yes"
            )
        client.post("/nodes/forget", {"node_ids": ids, "is_loss_accepted": True})
    print(f"this node goes on without {names}")


def fingerprint(text: str) -> str:
    """Return the start of a key's hash in groups, as people compare it."""
    return " ".join(text[start : start + 4] for start in range(0, 32, 4))


def _wish(client: "NodeClient", node: str) -> Json:
    wishes: list[Json] = client.get("/nodes")["wishes"]
    return _only(
        _matching(wishes, node), node, what="node that wants to join", hint="; on that one: exo join"
    )


def _matching(rows: list[Json], text: str) -> list[Json]:
    """Return the rows that are meant: by the whole id, else by name, else by the start of the id."""
    for is_meant in (
        [row for row in rows if row["node_id"] == text],
        [row for row in rows if row["name"] == text],
        [row for row in rows if text and row["node_id"].startswith(text)],
    ):
        if is_meant:
            return is_meant
    return []


def _only(rows: list[Json], text: str, *, what: str = "node", hint: str = "") -> Json:
    from exo.shared.errors import ConfigurationError

    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise ConfigurationError(f"there is no {what} {text!r}; `exo node list` shows those there are{hint}")
    ids = ", ".join(row["node_id"] for row in rows)
    raise ConfigurationError(f"{text!r} may be any of {ids}; give the whole id")
