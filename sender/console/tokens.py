"""``diskcast tokens``: who may do what."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.errors import ConfigurationError, StorageError
from sender.console.options import api_command, list_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output

ROLES = ("view", "operate", "enrol")
"""As :class:`sender.store.records.access.Role`; a test compares."""


@click.group()
def tokens() -> None:
    """Tokens: who may do what.

    Roles: view sees everything, operate changes it too, enrol is for agents and lets a machine check in, no more.
    """


@tokens.command("list")
@list_options
@api_command
def list_tokens(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List tokens; nobody can show their secrets again."""
    from sender.console.output import Column, local_time
    from sender.store.records.access import Token

    columns: list[Column[Token]] = [
        Column("token", lambda token: token.name, cut=True),
        Column("role", lambda token: token.role.value),
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
        nothing="no tokens: `diskcast tokens create NAME --role operate` makes one",
    )


@tokens.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What its owner may do.")
@click.option(
    "--expires", metavar="TIME", help="It ends after this time, for example 90d or 12h.  [default: never]"
)
@click.option(
    "--output",
    "secret_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the secret to a new file that only you can read, instead of to stdout.",
)
@api_command
def create(
    client: Client, output: Output, name: str, *, role: str, expires: str | None, secret_path: Path | None
) -> None:
    """Create a token. Its secret is shown this once.

    \b
    Examples:
      diskcast tokens create anna --role operate --expires 90d --output ~/.config/diskcast/token
      diskcast tokens create lab-agents --role enrol --output agents.token
    """  # noqa: D301
    from sender.console.live_records import CreatedToken
    from sender.console.output import say
    from sender.console.time_parsing import parse_in

    expires_at = None if expires is None else parse_in(expires, datetime.now(UTC))
    body = {"name": name, "role": role, "expires_at": None if expires_at is None else expires_at.isoformat()}
    if secret_path is None:
        created = client.create("/tokens", CreatedToken, body)
        if output.json_lines:
            output.done("", created.token, secret=created.secret)
            return
        say(f"token {created.token.name} ({created.token.role.value}); its secret, shown this once:")
        click.echo(created.secret)
        return
    with _new_secret_file(secret_path) as write:  # first: a secret that can't be kept isn't asked for
        created = client.create("/tokens", CreatedToken, body)
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
    """Revoke TOKEN, a name or an id: from now on nobody gets in by it."""
    from sender.console.lookup import find_token, path

    found = find_token(client, token)
    client.remove(path("tokens", found.token_id))
    output.done(f"token {found.name} is revoked", token_id=found.token_id)


@contextlib.contextmanager
def _new_secret_file(path: Path) -> Iterator[Callable[[str], None]]:
    """A new file of mode 0600, removed again if anything fails before it is written.

    Raises:
        ConfigurationError: it exists, or can't be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigurationError(f"--output {path} exists: choose a new file") from error
    except OSError as error:
        raise ConfigurationError(f"--output {path} can't be made: {error.strerror or error}") from error
    try:
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123  a descriptor, not a path

            def write(secret: str) -> None:
                try:
                    file.write(secret + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise StorageError(
                        f"{path} can't be written ({error.strerror or error}), and the secret with it is lost: revoke "
                        "the token and create another"
                    ) from error

            yield write
    except BaseException:
        path.unlink(missing_ok=True)
        raise
