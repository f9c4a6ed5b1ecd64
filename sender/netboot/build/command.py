"""The command ``diskcast netboot build``."""

from __future__ import annotations

import ipaddress
import json
import os
import time
import urllib.parse
from pathlib import Path
from typing import Final

import click

from protocol.errors import ConfigurationError
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY, load_trusted_keys
from protocol.shared.units import format_bytes
from protocol.trust.pin import parse_pin
from protocol.trust.trusted_keys import TrustedKey
from sender.config.local_endpoint import find_local_endpoint
from sender.identity.key_options import read_public_key
from sender.identity.signing_keys import default_key_path, public_key_path
from sender.netboot.build.apt_packages import this_suite
from sender.netboot.build.builder import BuildPlan, build_medium
from sender.netboot.build.root_filesystem import BakedIn
from sender.netboot.medium import BootMedium, Flavour

_EPOCH_VARIABLE: Final = "SOURCE_DATE_EPOCH"


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Directory of the boot medium; an older one in it is replaced.",
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    show_default="this machine's",
    help="URL of a daemon, for the agent; repeatable.",
)
@click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="PIN",
    show_default="of this machine's daemon",
    help="Pin of a daemon's certificate; repeatable.",
)
@click.option(
    "--trust-key",
    "key_texts",
    multiple=True,
    metavar="KEY",
    show_default="this machine's",
    help="Public key of images (file or line); repeatable.",
)
@click.option("--cloud", is_flag=True, help="Use Debian's kernel for virtual machines, which is small.")
@click.option("--no-firmware", is_flag=True, help="Leave firmware of network cards and controllers out.")
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="SOURCE",
    show_default="apt's sources",
    help="URL, line or file of apt sources; repeatable.",
)
@click.option(
    "--suite", metavar="NAME", show_default="this machine's", help="Codename of the Debian release."
)
@click.option("--quick", is_flag=True, help="Compress little: a larger medium in less time, for tests.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    show_default="~/.cache/diskcast/netboot",
    help="Directory of downloaded packages.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line to stdout.")
def build(
    output: Path,
    servers: tuple[str, ...],
    pins: tuple[str, ...],
    key_texts: tuple[str, ...],
    mirrors: tuple[str, ...],
    suite: str | None,
    cache: Path | None,
    *,
    cloud: bool,
    no_firmware: bool,
    quick: bool,
    as_json: bool,
) -> None:
    """Build the boot medium: Debian's signed kernel, and an initrd with the agent.

    Packages come from this machine's own apt sources, wheels by pip with the hashes of diskcast's lock file. Needs no
    root, and changes nothing outside of DIR and the cache. The pin of the daemon and the keys of images are built in;
    the agent then refuses all others. Two builds of the same packages are identical.

    \b
    Examples:
      diskcast netboot build -o boot
      diskcast netboot build -o boot --server https://10.0.0.5:7400 --pin mfrg-gzdf --trust-key lab.pub
      diskcast netboot build -o boot-vm --cloud --no-firmware
    """  # noqa: D301
    started_s = time.monotonic()

    def note(text: str) -> None:
        elapsed_s = time.monotonic() - started_s
        if as_json:
            click.echo(json.dumps({"event": "step", "text": text, "elapsed_s": round(elapsed_s, 1)}))
        else:
            click.echo(f"{elapsed_s:6.1f} s  {text}", err=True)

    baked_in = _baked_in(servers, pins, key_texts)
    if not baked_in.pins:
        note("no pin is built in: the agent will accept the one on the kernel command line")
    if not baked_in.keys:
        note("no key is built in: the agent will need one on the kernel command line to accept an image")
    plan = BuildPlan(
        output=output.absolute(),
        suite=suite or this_suite(),
        mirrors=mirrors,
        flavour=Flavour.CLOUD if cloud else Flavour.GENERIC,
        with_firmware=not no_firmware and not cloud,
        quick=quick,
        baked_in=baked_in,
        cache=(cache or _default_cache()).absolute(),
        time_s=_source_date(),
    )
    medium = build_medium(plan, note)
    _report(medium, time.monotonic() - started_s, as_json=as_json)


def _baked_in(servers: tuple[str, ...], pins: tuple[str, ...], key_texts: tuple[str, ...]) -> BakedIn:
    """Return the values of the options, or those of this machine's daemon and its trusted keys."""
    endpoint = find_local_endpoint()
    if endpoint is not None and not servers and not pins:
        servers = () if _is_loopback(endpoint.url) else (endpoint.url,)
        pins = (endpoint.pin,) if endpoint.pin else ()
    if key_texts:
        keys = []
        for index, text in enumerate(key_texts, 1):
            public, name = read_public_key(text)
            keys.append(TrustedKey(public, name or f"key-{index}"))
    else:
        keys = load_trusted_keys(TRUSTED_KEYS_DIRECTORY) or _own_key()
    return BakedIn(servers, tuple(parse_pin(pin) for pin in pins), tuple(keys))


def _own_key() -> list[TrustedKey]:
    """Return the public key of this user's own signing key, if there is one."""
    try:
        path = public_key_path(default_key_path())
    except ConfigurationError:  # no home directory
        return []
    if not path.exists():
        return []
    public, name = read_public_key(str(path))
    return [TrustedKey(public, name)]


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "diskcast" / "netboot"
    except RuntimeError as error:
        raise ConfigurationError(
            "this user has no home directory for downloaded packages: give --cache"
        ) from error


def _source_date() -> int | None:
    text = os.environ.get(_EPOCH_VARIABLE, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 32:
        raise ConfigurationError(f"{_EPOCH_VARIABLE}={text} isn't a time in seconds since 1970: unset it")
    return int(text)


def _report(medium: BootMedium, elapsed_s: float, *, as_json: bool) -> None:
    record = medium.record
    if as_json:
        result = {"event": "result", "ok": True, "exit_code": 0, "elapsed_s": round(elapsed_s, 1)}
        click.echo(json.dumps(result | {"medium": str(medium.directory)} | json.loads(record.to_json())))
        return
    click.echo(f"{medium.directory}: diskcast {record.diskcast_version}, kernel {record.kernel_release}")
    for name, file in record.files.items():
        click.echo(f"  {name:28} {format_bytes(file.size_bytes):>10}  {file.sha256[:16]}")
    click.echo("in the initrd, uncompressed:")
    for name, size_bytes in sorted(record.parts_bytes.items(), key=lambda part: -part[1]):
        click.echo(f"  {name:28} {format_bytes(size_bytes):>10}")
