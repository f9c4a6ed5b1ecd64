"""``diskcast database``: see whether the daemon's database is sound, copy it, put it together again."""

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
    help=f"The daemon's configuration file.  [default: {CONFIG_DEFAULT} if it is there]",
)
_STATE_DIRECTORY = click.option(
    "--state-directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the daemon keeps what it knows, if the configuration doesn't say it.",
)
_JSON = click.option("--json", "json_lines", is_flag=True, help="One JSON object a line on stdout.")


@click.group()
def database() -> None:
    """See whether the daemon's database is sound, copy it, put a damaged one together again.

    Run them as the daemon's user: what root writes there the daemon couldn't open.

    These commands are for SQLite, the default. PostgreSQL has tools of its own (pg_dump, pg_basebackup); `check` looks
    whether it answers.
    """


@database.command()
@_CONFIG
@_STATE_DIRECTORY
@_JSON
def check(config_path: Path | None, state_directory: Path | None, json_lines: bool) -> int:
    """Read all of the database, its backup and its journal, and say whether they are sound.

    The daemon may be running.
    """
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
    """Copy the database beside itself, as FILE.backup, and begin a new journal.

    The daemon does this itself once a day; it may be running. Copy FILE.backup and FILE.changes.* to another machine to
    be safe from the loss of the disk.
    """
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
        click.echo(f"{made.path}: {made.bytes_count} bytes, whole and checked")
    _result(json_lines)
    return 0


@database.command()
@_CONFIG
@_STATE_DIRECTORY
@_JSON
def restore(config_path: Path | None, state_directory: Path | None, json_lines: bool) -> int:
    """Put the database together again, from its backup and every change since then.

    Stop the daemon first. The damaged files are kept, as FILE.damaged-TIME.
    """
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
            click.echo(f"  what was there before is now {path}")
        if done.missing_count:
            click.echo(f"  {done.missing_count} changes are lost: the journal is damaged as well", err=True)
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
    """Files that root makes are closed to the daemon, which couldn't start any more.

    Raises:
        ConfigurationError: this is root, and the database is another user's.
    """
    from protocol.errors import ConfigurationError

    try:
        owner_id = folder.stat().st_uid
    except OSError:  # what is wrong with it is said by whoever opens the database
        return
    if os.geteuid() != 0 or owner_id == 0:
        return
    try:
        owner = pwd.getpwuid(owner_id).pw_name
    except KeyError:
        owner = str(owner_id)
    raise ConfigurationError(
        f"{folder} belongs to {owner}, and the daemon couldn't open what root writes there: run this as its owner, "
        f"runuser -u {owner} -- diskcast database"
    )


def _result(json_lines: bool) -> None:
    if json_lines:
        click.echo(json.dumps({"event": "result", "ok": True, "exit_code": 0}))
