"""The command ``nbd``."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import click

from protocol.errors import ImageDamagedError
from protocol.program.options import JSON_OPTION
from sender.export.nbd_server import NbdServer, serve_until
from sender.export.unix_socket import listening_socket
from sender.imaging.image_file import ImageFile
from sender.imaging.image_progress import emit

_path = click.Path(path_type=Path)


@click.command()
@click.argument("image_path", metavar="FILE.dci", type=_path)
@click.option(
    "--socket",
    "socket_path",
    type=_path,
    metavar="PATH",
    show_default="in a private directory",
    help="UNIX socket to listen on.",
)
@click.option("--once", is_flag=True, help="Stop when the last client has left.")
@JSON_OPTION
def nbd(image_path: Path, socket_path: Path | None, *, once: bool, as_json: bool) -> None:
    """Serve an image as a read-only disk (NBD) on a UNIX socket, until Ctrl-C.

    Nothing is unpacked: programs such as qemu-nbd, nbdfuse and guestfish read single files. Each block is checked
    against its hashes before it is sent; a damaged one is an I/O error, and is named here. Free space that the image
    doesn't hold reads as zeros.

    \b
    Examples:
      diskcast nbd lab.dci
      diskcast nbd lab.dci --socket /run/lab.sock --once
      nbdfuse /mnt/disk "nbd+unix:///?socket=/run/lab.sock"
    """  # noqa: D301
    damaged_count = 0

    def report_damage(block: int, message: str) -> None:
        nonlocal damaged_count
        damaged_count += 1
        if as_json:
            emit("bad_block", block=block, reason=message)
        else:
            click.echo(message, err=True)

    def report_socket(path: Path) -> None:
        uri = f"nbd+unix:///?socket={path}"
        if as_json:
            emit("listening", socket=str(path), uri=uri)
        else:
            click.echo(f"{image_path} is at {uri}; Ctrl-C stops")

    with ImageFile.open(image_path) as image:
        with listening_socket(socket_path, name="nbd") as (listener, path):
            asyncio.run(_serve(image, listener, once, report_damage, lambda: report_socket(path)))
        if damaged_count:
            raise ImageDamagedError(
                f"{image_path}: {damaged_count} blocks were damaged; copy or pack the image again"
            )
        if as_json:
            emit("result", ok=True)


async def _serve(
    image: ImageFile,
    listener: socket.socket,
    once: bool,
    on_damage: Callable[[int, str], None],
    on_ready: Callable[[], None],
) -> None:
    """Serve ``image`` until a signal arrives, or with ``once`` until the last client has left."""
    stopped = asyncio.Event()

    def on_disconnect() -> None:
        if once and not server.connection_count:
            stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with NbdServer(image, on_damage=on_damage, on_disconnect=on_disconnect) as server:
        await serve_until(server, listener, stopped, on_ready)
