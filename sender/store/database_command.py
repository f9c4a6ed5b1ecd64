"""``diskcast database``: check, back up and restore the daemon's database."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sqlalchemy import URL

CONFIG_DEFAULT = Path("/etc/diskcast/diskcast.toml")

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help=f"Configuration file.  [default: {CONFIG_DEFAULT}]",
)
_STATE_DIRECTORY = click.option(
    "--state-directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The daemon's state directory; overrides the configuration file.",
)
_JSON = click.option("--json", "json_lines", is_flag=True, help="Print one JSON object per line.")


@click.group()
def database() -> None:
    """Check, back up and restore the daemon's database.

    Run these commands as the daemon's user: the daemon couldn't open files that root creates.

    They are for SQLite, the default. PostgreSQL has its own tools (pg_dump, pg_basebackup); for PostgreSQL, `check`
    tests whether the server answers.

    \b
    Examples:
      diskcast database check
      diskcast database backup --state-directory /var/lib/diskcast
      diskcast database restore
    """  # noqa: D301


@database.command()
@_CONFIG
@_STATE_DIRECTORY
@_JSON
def check(config_path: Path | None, state_directory: Path | None, json_lines: bool) -> int:
    """Check the database, its backup and its journal.

    All of them are read. The daemon may be running.

    \b
    Examples:
      diskcast database check
      diskcast database check --json
    """  # noqa: D301
    url = _url(config_path, state_directory)
    from sender.store.backup.integrity_check import check_database

    checked = check_database(url)
    if json_lines:
        for name, text in checked:
            click.echo(json.dumps({"event": "checked", "what": name, "found": text}))
    else:
        for name, text in checked:
            click.echo(f"{name}: {text}")
    _result(json_lines)
    return 0


@database.command()
@_CONFIG
@_STATE_DIRECTORY
@_JSON
def backup(config_path: Path | None, state_directory: Path | None, json_lines: bool) -> int:
    """Back up the database, and start a new journal.

    The backup is FILE.backup beside the database. The daemon makes one once a day, and may be running. Copy FILE.backup
    and FILE.changes.* to another machine as a protection from the loss of the disk.

    \b
    Examples:
      diskcast database backup
      diskcast database backup --config /etc/diskcast/lab.toml
    """  # noqa: D301
    url = _url(config_path, state_directory, file_only=True)
    from sender.store.open_store import open_database

    store = open_database(url, upkeep=False)
    try:
        made = store.back_up()
    finally:
        store.close()
    assert made is not None
    if json_lines:
        click.echo(json.dumps({"event": "backed_up", "path": str(made.path), "bytes": made.bytes_count}))
    else:
        click.echo(f"{made.path}: {made.bytes_count} bytes, complete and checked")
    _result(json_lines)
    return 0


@database.command()
@_CONFIG
@_STATE_DIRECTORY
@_JSON
def restore(config_path: Path | None, state_directory: Path | None, json_lines: bool) -> int:
    """Restore the database from its backup and every change since then.

    Stop the daemon first. The damaged files are kept as FILE.damaged-TIME.

    \b
    Examples:
      systemctl stop diskcast && diskcast database restore
      diskcast database restore --state-directory /var/lib/diskcast
    """  # noqa: D301
    url = _url(config_path, state_directory, file_only=True)
    from datetime import UTC, datetime

    from sender.store.backup.restore import restore as restore_file
    from sender.store.database.errors import Place

    done = restore_file(
        Place(url), datetime.now(UTC), lambda text: None if json_lines else click.echo(text, err=True)
    )
    if json_lines:
        kept = [str(path) for path in done.kept]
        line = {"event": "restored", "path": str(done.path), "changes": done.changes_count, "kept": kept}
        click.echo(json.dumps({**line, "missing": done.missing_count}))
    else:
        click.echo(f"{done.path}: restored, with {done.changes_count} changes since the backup")
        for path in done.kept:
            click.echo(f"  the damaged file is kept as {path}")
        if done.missing_count:
            click.echo(f"  {done.missing_count} changes are lost: the journal is damaged too", err=True)
    _result(json_lines)
    return 0


def _url(config_path: Path | None, state_directory: Path | None, *, file_only: bool = False) -> URL:
    from protocol.errors import ConfigurationError
    from sender.config.config_file import load_config
    from sender.store.open_store import database_url

    if config_path is None and CONFIG_DEFAULT.exists():
        config_path = CONFIG_DEFAULT
    url = database_url(load_config(config_path, {"server.state_directory": state_directory}))
    if file_only and url.get_backend_name() != "sqlite":
        raise ConfigurationError(
            "this database is PostgreSQL: back it up and restore it with PostgreSQL's own tools (pg_dump, "
            "pg_restore, pg_basebackup)"
        )
    if url.get_backend_name() == "sqlite" and url.database:
        _refuse_root_where_others_write(Path(url.database).parent)
    return url


def _refuse_root_where_others_write(folder: Path) -> None:
    """Raise ``ConfigurationError`` for root if the database belongs to another user, who couldn't open root's files."""
    from protocol.errors import ConfigurationError

    try:
        owner_id = folder.stat().st_uid
    except OSError:  # opening the database reports the error
        return
    if os.geteuid() != 0 or owner_id == 0:
        return
    try:
        owner = pwd.getpwuid(owner_id).pw_name
    except KeyError:
        owner = str(owner_id)
    raise ConfigurationError(
        f"{folder} belongs to {owner}, and the daemon couldn't open files that root creates there: run this as its "
        f"owner, runuser -u {owner} -- diskcast database"
    )


def _result(json_lines: bool) -> None:
    if json_lines:
        click.echo(json.dumps({"event": "result", "ok": True, "exit_code": 0}))
