"""`exo join`: have this machine's node join the cluster that a token is for, or ask one to let it in."""

from pathlib import Path
from typing import Annotated

import typer

from exo.cli.commands import Verbose, home_given, is_typed


def join(
    context: typer.Context,
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKEN",
            help="From `exo token create` on a node of the cluster; -: read it. Without one the node asks, and waits "
            "until somebody there approves it.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Cluster port of one of its nodes, where discovery does not reach."
        ),
    ] = None,
    home: Annotated[
        Path | None, typer.Option(envvar="EXO_HOME", help="The data directory whose node is to join.")
    ] = None,
    _verbose: Verbose = 0,
) -> None:
    """Join a cluster, with a token or when approved there: at once if the node runs, else when it starts."""
    import sys

    from exo.api.access_join import PendingJoin, write_pending_join
    from exo.cli.client import NodeClient, noted_url
    from exo.cli.output import remarks
    from exo.cluster.trust.token import parse_token
    from exo.settings import CLUSTER_PORT, default_home, prepare_home
    from exo.shared.errors import ConfigurationError
    from exo.shared.types.nodes import HostPort

    plain = parse_token(sys.stdin.readline() if token == "-" else token) if token is not None else None
    shown = plain.reveal() if plain is not None else None
    try:
        checked = None if address is None else str(HostPort.parse(address, CLUSTER_PORT))
    except ValueError as error:
        raise ConfigurationError(f"--address: {error}") from error
    given = home if is_typed(context, "home") else home_given(context) or home
    folder = (given or default_home()).expanduser().absolute()
    if noted_url(folder) is not None:
        with NodeClient.open(None, folder) as client:
            noted = client.post("/access/join", {"token": shown, "address": checked})
        is_used_now = noted["is_used_now"]
    else:
        prepare_home(folder)
        write_pending_join(folder, PendingJoin(token=shown, address=checked))
        is_used_now = False
    when = "the node asks the cluster now" if is_used_now else "the node asks the cluster when it starts next"
    if plain is None:
        print(f"{when}; let it in there: exo node list, then exo node approve ID")
    else:
        print(f"{when}; `exo status` shows when it has joined, `exo doctor --peers` why it has not")
        remarks().print(f"the cluster's authority is {plain.authority_hash}")
