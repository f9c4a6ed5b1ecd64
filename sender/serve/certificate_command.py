"""``diskcast certificate``: show and rotate the certificates by which agents recognise this machine's programs."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from protocol.errors import ConfigurationError
from sender.identity.certificate import Certificate, find_certificate, next_certificate, prepare_next, rotate
from sender.identity.directories import user_directory

_CONFIG_DEFAULT: Final = Path("/etc/diskcast/diskcast.toml")

_SERVER = click.option("--server", is_flag=True, help="The daemon's certificate, not that of diskcast send.")
_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default=f"{_CONFIG_DEFAULT} if it exists",
    help="With --server: configuration file of the daemon.",
)
_STATE_DIRECTORY = click.option(
    "--state-directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --server: the daemon's state directory.",
)
_JSON = click.option("--json", "json_lines", is_flag=True, help="Print one JSON object per line.")


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """The place of a program's certificate.

    Attributes:
        program: the program, as shown.
        name: common name of a new certificate.
        directory: directory of its certificates.
        fixed: the certificate that a configuration names; None for one of the program's own.
    """

    program: str
    name: str
    directory: Path
    fixed: Certificate | None = None

    def current(self) -> Certificate:
        """Return the certificate in use.

        Raises:
            ConfigurationError: there is none yet, or it can't be read.
        """
        found = self.fixed or find_certificate(self.directory)
        if found is None:
            raise ConfigurationError(
                f"{self.program} has no certificate yet: it makes one in {self.directory} at its first start"
            )
        return found


@click.group()
def certificate() -> None:
    """Show and rotate the certificate by which agents recognise a sender or a daemon.

    Without --server these commands are about the certificate of diskcast send, which belongs to the user.

    \b
    Examples:
      diskcast certificate show
      diskcast certificate show --server
      diskcast certificate rotate --server --prepare
    """  # noqa: D301  \b is click's


@certificate.command()
@_SERVER
@_CONFIG
@_STATE_DIRECTORY
@_JSON
def show(server: bool, config_path: Path | None, state_directory: Path | None, json_lines: bool) -> None:
    """Show pin and expiry of the certificate, and of the next one if it is prepared.

    \b
    Examples:
      diskcast certificate show
      diskcast certificate show --server --config /etc/diskcast/diskcast.toml
    """  # noqa: D301  \b is click's
    place = _place(server, config_path, state_directory)
    _print(place, place.current(), _next(place), json_lines=json_lines)


@certificate.command("rotate")
@_SERVER
@_CONFIG
@_STATE_DIRECTORY
@click.option(
    "--prepare", is_flag=True, help="Only make the next certificate, so that agents can learn its pin."
)
@_JSON
def rotate_command(
    server: bool, config_path: Path | None, state_directory: Path | None, prepare: bool, json_lines: bool
) -> None:
    """Replace the certificate by the next one, in two steps.

    First run it with --prepare, and give the agents the next pin too (--pin may be repeated, and DISKCAST_PIN may hold
    several). When all have it, run it without --prepare, and restart the program: casts resume.

    \b
    Examples:
      diskcast certificate rotate --server --prepare
      diskcast certificate rotate --server
    """  # noqa: D301  \b is click's
    place = _place(server, config_path, state_directory)
    if place.fixed is not None:
        raise ConfigurationError(
            f"the configuration names the certificate {place.fixed.certificate_file}: replace that file and its key, "
            "then restart the daemon"
        )
    current = place.current()
    if prepare:
        _print(
            place,
            current,
            prepare_next(place.directory, place.name, datetime.now(UTC)),
            json_lines=json_lines,
        )
        return
    _print(place, rotate(place.directory), None, json_lines=json_lines)
    if server and not json_lines:
        click.echo("restart the daemon to use it: systemctl restart diskcast", err=True)


def _place(server: bool, config_path: Path | None, state_directory: Path | None) -> _Place:
    import socket

    if not server:
        if config_path is not None or state_directory is not None:
            raise click.UsageError("--config and --state-directory need --server")
        return _Place("diskcast send", socket.gethostname(), user_directory())
    from sender.config.config_file import load_config
    from sender.config.daemon_certificate import daemon_certificate

    if config_path is None and _CONFIG_DEFAULT.exists():
        config_path = _CONFIG_DEFAULT
    section = load_config(config_path, {"server.state_directory": state_directory}).server
    fixed = None if section.certificate is None else daemon_certificate(section, datetime.now(UTC))
    return _Place("diskcast serve", section.name, section.state_directory, fixed)


def _next(place: _Place) -> Certificate | None:
    return None if place.fixed is not None else next_certificate(place.directory)


def _print(place: _Place, current: Certificate, prepared: Certificate | None, *, json_lines: bool) -> None:
    if json_lines:
        fields = {
            "event": "result",
            "ok": True,
            "file": str(current.certificate_file),
            "pin": current.pin,
            "not_after": current.not_after.isoformat(),
            "next_pin": None if prepared is None else prepared.pin,
            "next_not_after": None if prepared is None else prepared.not_after.isoformat(),
        }
        click.echo(json.dumps(fields))
        return
    click.echo(f"certificate of {place.program}: {current.certificate_file}")
    click.echo(f"  pin      {current.pin}")
    click.echo(f"  expires  {current.not_after:%Y-%m-%d}")
    if prepared is not None:
        click.echo(f"next certificate: {prepared.certificate_file}")
        click.echo(f"  pin      {prepared.pin}")
        click.echo(f"  expires  {prepared.not_after:%Y-%m-%d}")
