"""``diskcast tokens``: API tokens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.errors import ConfigurationError, StorageError
from sender.console.options import api_command, checked_room, list_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output

ROLES = ("view", "operate", "enrol", "boot")
"""The values of ``Role``, so that ``--help`` needs no import; a test compares them."""


@click.group()
def tokens() -> None:
    """Manage API tokens.

    A token has a role. view: see everything. operate: see and change everything. enrol: for agents; enrol the machines
    of one room or of all, nothing else. boot: for a boot service; ask for the systems that machines boot, nothing else.

    \b
    Examples:
      diskcast tokens create anna --role operate --expires 90d --output anna.token
      diskcast tokens list
      diskcast tokens revoke anna
    """  # noqa: D301


@tokens.command("list")
@list_options
@api_command
def list_tokens(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List tokens, without their secrets.

    \b
    Examples:
      diskcast tokens list
      diskcast tokens list --json
    """  # noqa: D301
    from sender.console.output import Column, local_time
    from sender.store.records.access import Token

    columns: list[Column[Token]] = [
        Column("token", lambda token: token.name, cut=True),
        Column("role", lambda token: token.role.value),
        Column("room", lambda token: token.room_id or ""),
        Column("created", lambda token: local_time(token.created_at)),
        Column("by", lambda token: token.created_by, cut=True),
        Column("expires", lambda token: local_time(token.expires_at) or "never"),
        Column("last used", lambda token: local_time(token.last_used_at)),
    ]
    output.listed(
        "token",
        client.listed("/tokens", Token),
        columns,
        limit=None if everything else limit,
        nothing="no tokens: create one with `diskcast tokens create NAME --role operate`",
    )


@tokens.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="Role of the token.")
@click.option(
    "--room", "room_id", metavar="ROOM", callback=checked_room, help="Room of a token of role enrol or boot."
)
@click.option(
    "--expires",
    metavar="TIME",
    show_default="never; 30d for the role enrol",
    help="Time until the token expires, such as 90d or 12h.",
)
@click.option(
    "--output",
    "secret_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    show_default="stdout",
    help="Write the secret to a new file that only you can read.",
)
@api_command
def create(
    client: Client,
    output: Output,
    name: str,
    *,
    role: str,
    room_id: str | None,
    expires: str | None,
    secret_path: Path | None,
) -> None:
    """Create a token.

    Its secret is shown this once.

    \b
    Examples:
      diskcast tokens create anna --role operate --expires 90d --output ~/.config/diskcast/token
      diskcast tokens create lab-agents --role enrol --room lab-1 --expires 8h --output agents.token
      diskcast tokens create boot-server --role boot --output boot.token
    """  # noqa: D301
    from sender.console.time_parsing import parse_in
    from sender.store.records.access import NewToken

    expires_at = None if expires is None else parse_in(expires, datetime.now(UTC))
    body = {
        "name": name,
        "role": role,
        "room_id": room_id,
        "expires_at": None if expires_at is None else expires_at.isoformat(),
    }
    if secret_path is None:
        from sender.console.output import print_message

        created = client.create("/tokens", NewToken, body)
        if output.json_lines:
            output.done("", created.token, secret=created.secret)
            return
        print_message(
            f"token {created.token.name} ({created.token.role.value}); its secret is shown only this once:"
        )
        click.echo(created.secret)
        return
    with _new_secret_file(secret_path) as write:  # first: don't create a token whose secret can't be saved
        created = client.create("/tokens", NewToken, body)
        write(created.secret)
    output.done(
        f"token {created.token.name} ({created.token.role.value}): its secret is in {secret_path}",
        created.token,
        path=str(secret_path),
    )


@tokens.command()
@click.argument("token")
@api_command
def revoke(client: Client, output: Output, token: str) -> None:
    """Revoke a token, by its name or id: it stops working within seconds.

    \b
    Examples:
      diskcast tokens revoke anna
      diskcast tokens revoke 1a2b3c4d --json
    """  # noqa: D301
    from sender.console.lookup import find_token, path

    found = find_token(client, token)
    client.remove(path("tokens", found.token_id))
    output.done(f"revoked token {found.name}", token_id=found.token_id)


@contextlib.contextmanager
def _new_secret_file(path: Path) -> Iterator[Callable[[str], None]]:
    """Open a new file of mode 0600; remove it if anything fails before the secret is written.

    Raises:
        ConfigurationError: the file exists, or can't be created.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigurationError(f"cannot create --output {path}: it exists; choose a new file") from error
    except OSError as error:
        raise ConfigurationError(f"cannot create --output {path}: {error.strerror or error}") from error
    try:
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123  a descriptor, not a path

            def write(secret: str) -> None:
                try:
                    file.write(secret + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise StorageError(
                        f"cannot write the secret to {path}: {error.strerror or error}; the secret is lost: revoke the "
                        "token and create another"
                    ) from error

            yield write
    except BaseException:
        path.unlink(missing_ok=True)
        raise
