"""``diskcast dashboard``: a link that logs a browser in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sender.console.options import api_command

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output


@click.command()
@api_command
def dashboard(client: Client, output: Output) -> None:
    """Print a link that opens the dashboard without a login: once, within ten minutes.

    \b
    Examples:
      diskcast dashboard
      diskcast dashboard --server https://10.0.0.1:7400 --token-file anna.token
    """  # noqa: D301
    link = login_link(client)
    if output.json_lines:
        output.done("", url=link)
    else:
        click.echo(link)


def login_link(client: Client) -> str:
    """Return the address of a daemon's dashboard with a one-time code for the client's token."""
    code = client.order("/session/codes", dict[str, str])["code"]
    return f"{client.server}/#login={code}"
