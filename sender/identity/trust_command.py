"""The commands ``diskcast trust``: the trusted keys of a machine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from protocol.errors import ConfigurationError
from protocol.program.trusted_keys_directory import (
    KEY_FILE_SUFFIX,
    TRUSTED_KEYS_DIRECTORY,
    read_trusted_key,
    trusted_key_paths,
)
from protocol.trust.statement import format_time
from protocol.trust.trusted_keys import TrustedKey
from sender.identity.key_options import parse_time_option, read_public_key

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
"""Names of files without surprises."""

_directory_option = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=TRUSTED_KEYS_DIRECTORY,
    show_default=True,
    metavar="DIR",
    help="Directory of the trusted keys.",
)
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line to stdout."
)


@click.group()
def trust() -> None:
    """Manage the keys that a machine trusts: whose images it accepts.

    They are files of minisign's public keys in a directory, one key a file. An agent reads them when it starts, and
    before each cast.

    \b
    Examples:
      diskcast trust add lab.pub
      diskcast trust list
      diskcast trust revoke lab --reason "laptop stolen"
    """  # noqa: D301


@trust.command("list")
@_directory_option
@_json_option
def list_keys(directory: Path, *, as_json: bool) -> None:
    """List the trusted keys.

    \b
    Examples:
      diskcast trust list
      diskcast trust list --directory ./live-system/etc/diskcast/trusted-keys.d --json
    """  # noqa: D301
    keys = [read_trusted_key(path) for path in trusted_key_paths(directory)]
    for key in keys:
        _print_key(key, as_json=as_json)
    if not keys and not as_json:
        click.echo(f"no keys in {directory}: agents accept no image; add one with `diskcast trust add`")


@trust.command()
@click.argument("name")
@_directory_option
@_json_option
def show(name: str, directory: Path, *, as_json: bool) -> None:
    """Show a trusted key, as options and kernel command lines take it.

    \b
    Examples:
      diskcast trust show lab
      diskcast trust show lab --json
    """  # noqa: D301
    key = read_trusted_key(_existing(directory, name))
    _print_key(key, as_json=as_json)
    if not as_json:
        click.echo(f"option      --trust-key {key.key.text}")
        click.echo(f"kernel      diskcast.trust={key.key.text}")


@trust.command()
@click.argument("key")
@click.option("--name", metavar="NAME", show_default="file name of KEY", help="Name of the key.")
@click.option("--not-after", metavar="TIME", help="Time from which its signatures no longer count.")
@_directory_option
@_json_option
def add(key: str, name: str | None, not_after: str | None, directory: Path, *, as_json: bool) -> None:
    """Trust KEY: a file of a public key, or its line that starts with RW.

    \b
    Examples:
      diskcast trust add lab.pub
      diskcast trust add lab.pub --name lab-2027 --not-after 2028-01-31
      diskcast trust add RWQAAAAAAAAA… --name lab
    """  # noqa: D301
    public, found_name = read_public_key(key)
    trusted = TrustedKey(public, name or found_name or f"key-{public.id_text}", parse_time_option(not_after))
    path = _path(directory, trusted.name)
    if os.path.lexists(path):
        raise ConfigurationError(
            f"{path} exists: choose another --name, or remove it with `diskcast trust remove`"
        )
    _write(path, trusted)
    _print_key(trusted, as_json=as_json)


@trust.command()
@click.argument("name")
@click.option("--reason", default="revoked by the operator", show_default=True, help="Reason, for people.")
@_directory_option
@_json_option
def revoke(name: str, reason: str, directory: Path, *, as_json: bool) -> None:
    """Stop trusting a key, wherever else this machine finds it.

    The file stays: without it, a kernel command line that still names the key would be enough.

    \b
    Examples:
      diskcast trust revoke lab
      diskcast trust revoke lab --reason "laptop stolen"
    """  # noqa: D301
    path = _existing(directory, name)
    if not reason.isprintable() or not reason:
        raise ConfigurationError("--reason must be one printable line")
    revoked = dataclasses.replace(read_trusted_key(path), revoked=reason)
    _write(path, revoked)
    _print_key(revoked, as_json=as_json)


@trust.command()
@click.argument("name")
@_directory_option
def remove(name: str, directory: Path) -> None:
    """Remove a key from the directory; use `revoke` for one that may have been stolen.

    \b
    Examples:
      diskcast trust remove lab
      diskcast trust remove lab --directory ./live-system/etc/diskcast/trusted-keys.d
    """  # noqa: D301
    path = _existing(directory, name)
    _translate_errors(path, path.unlink)
    click.echo(f"removed {path}")


def _path(directory: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} can't be the name of a key: use letters, digits, dots, dashes, underscores"
        )
    return directory / f"{name}{KEY_FILE_SUFFIX}"


def _existing(directory: Path, name: str) -> Path:
    path = _path(directory, name)
    if not os.path.lexists(path):
        names = ", ".join(found.stem for found in trusted_key_paths(directory)) or "no keys"
        raise ConfigurationError(f"there is no key {name!r} in {directory}: it has {names}")
    return path


def _write(path: Path, key: TrustedKey) -> None:
    """Write a key file whole or not at all: an agent may be reading it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")

    def write() -> None:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(key.file_text())
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)

    try:
        _translate_errors(path, write)
    finally:
        temporary.unlink(missing_ok=True)


def _translate_errors(path: Path, call: Callable[[], object]) -> None:
    try:
        call()
    except OSError as error:
        raise ConfigurationError(
            f"can't change {path}: {error.strerror}; run this command as root, or name your own --directory"
        ) from error


def _print_key(key: TrustedKey, *, as_json: bool) -> None:
    if as_json:
        record: dict[str, Any] = {
            "event": "key",
            "name": key.name,
            "key_id": key.key.id_text,
            "public_key": key.key.text,
            "not_after": None if key.not_after is None else format_time(key.not_after),
            "revoked": key.revoked,
        }
        click.echo(json.dumps(record))
        return
    state = f"revoked: {key.revoked}" if key.revoked else f"expires {format_time(key.not_after)}"
    click.echo(f"{key.name}  {key.key.id_text}  {state}")
