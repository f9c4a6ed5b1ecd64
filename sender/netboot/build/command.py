"""The command ``diskcast netboot build``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from protocol.shared.units import format_bytes
from sender.netboot.build.apt_packages import this_suite
from sender.netboot.build.builder import BuildPlan, build_medium
from sender.netboot.build.local_plan import baked_in_of, default_cache, source_date, step_notes
from sender.netboot.default_medium import DEFAULT_MEDIUM_WORDS, default_medium_directory
from sender.netboot.medium import BootMedium, Flavour


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    show_default=DEFAULT_MEDIUM_WORDS,
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
    output: Path | None,
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
      diskcast netboot build
      diskcast netboot build -o boot --server https://10.0.0.5:7400 --pin mfrg-gzdf --trust-key lab.pub
      diskcast netboot build -o boot-vm --cloud --no-firmware
    """  # noqa: D301
    started_s = time.monotonic()
    note = step_notes(as_json=as_json)
    baked_in = baked_in_of(servers, pins, key_texts)
    if not baked_in.pins:
        note("no pin is built in: the agent will accept the one on the kernel command line")
    if not baked_in.keys:
        note("no key is built in: the agent will need one on the kernel command line to accept an image")
    plan = BuildPlan(
        output=(output or default_medium_directory()).absolute(),
        suite=suite or this_suite(),
        mirrors=mirrors,
        flavour=Flavour.CLOUD if cloud else Flavour.GENERIC,
        with_firmware=not no_firmware and not cloud,
        quick=quick,
        baked_in=baked_in,
        cache=(cache or default_cache()).absolute(),
        time_s=source_date(),
    )
    medium = build_medium(plan, note)
    _report(medium, time.monotonic() - started_s, as_json=as_json)


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
