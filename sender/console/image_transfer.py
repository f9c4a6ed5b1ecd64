"""``diskcast images import`` and ``diskcast images download``: files between this machine and the daemon."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sender.console.options import api_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.images import Image

_PART_BYTES: Final = 4 << 20
"""Bytes of one request, the most that the daemon takes."""

_POLL_S: Final = 0.5
_READ_BYTES: Final = 1 << 20


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--name", metavar="NAME", show_default="name of FILE", help="Name of a converted image.")
@click.option(
    "--format",
    "kind",
    metavar="FORMAT",
    show_default="detected",
    help="Format of FILE, such as raw; see `diskcast pack --help`.",
)
@api_command
def import_image(client: Client, output: Output, *, file: Path, name: str | None, kind: str | None) -> None:
    """Upload FILE into the daemon's library.

    FILE is a .dci file, whose name stays, or an image of another program (qcow2, VMDK, raw, ...), which the daemon
    converts in a sandbox. The daemon checks every block before the image appears. A broken connection is continued; a
    restart of the daemon ends the upload.

    \b
    Examples:
      diskcast images import lab.dci
      diskcast images import lab.qcow2 --name lab
    """  # noqa: D301
    from protocol.errors import ServerRefusedError
    from sender.console.lookup import path
    from sender.imaging.image_progress import show_phases
    from sender.store.records.image_uploads import ImageUpload, UploadState
    from sender.store.records.images import Image, image_reference

    total_bytes = file.stat().st_size
    body = {"file_name": file.name, "total_bytes": total_bytes, "name": name, "format": kind}
    upload = client.create("/images/uploads", ImageUpload, body)
    here = path("images", "uploads", upload.upload_id)
    with show_phases(json_lines=output.json_lines) as phases, file.open("rb") as source:
        update = phases("uploading")
        while upload.state is UploadState.RECEIVING:
            source.seek(upload.received_bytes)
            part = source.read(_PART_BYTES)
            if not part:
                client.remove(here)
                raise ServerRefusedError(f"{file} became shorter while it was uploaded: upload it again")
            upload = client.put_part(f"{here}/content", ImageUpload, upload.received_bytes, part)
            update(upload.received_bytes, total_bytes)
        state = UploadState.RECEIVING
        while not upload.state.ended:
            if upload.state is not state:
                state = upload.state
                update = phases(state.value)
            update(int(upload.progress * total_bytes), total_bytes)
            time.sleep(_POLL_S)
            upload = client.get(here, ImageUpload)
    if upload.state is UploadState.FAILED:
        raise ServerRefusedError(f"{file} isn't in the library: {upload.problem}")
    image = client.get(path("images", upload.image_id), Image)
    output.done(f"imported {image_reference(image)}", image)


@click.command()
@click.argument("image")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.dci",
    help="File to write.",
)
@api_command
def download(client: Client, output: Output, *, image: str, file: Path) -> None:
    """Download an image's .dci file, and check every block.

    A broken download continues where it was. Convert the file with `diskcast export`, for example to qcow2.

    \b
    Examples:
      diskcast images download lab@3 -o lab.dci
      diskcast images download lab -o lab.dci && diskcast export lab.dci -o lab.qcow2
    """  # noqa: D301
    from sender.console.lookup import find_image
    from sender.imaging.image_progress import show_progress
    from sender.store.records.images import image_reference

    found = find_image(client, image)
    if file.is_dir():
        raise click.UsageError(f"{file} is a directory: name a file")
    partial = file.with_name(f".{file.name}.{found.image_id[:12]}.partial")
    with show_progress("downloading", json_lines=output.json_lines) as update:
        _receive(client, found, partial, update)
    with show_progress("checking", json_lines=output.json_lines) as update:
        _check(partial, found, update)
    partial.replace(file)
    output.done(f"wrote {image_reference(found)} to {file}", found)


def _receive(client: Client, image: Image, partial: Path, update: Callable[[int, int], None]) -> None:
    """Continue the download into ``partial``."""
    from protocol.errors import ServerRefusedError, StorageError
    from sender.console.lookup import path
    from sender.imaging.partial_file import PRIVATE_FILE_MODE

    here = path("images", image.image_id, "file")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE_MODE)
        with os.fdopen(fd, "wb") as target:
            done = target.seek(0, os.SEEK_END)
            if done >= image.stored_bytes:
                done = 0
            target.truncate(done)
            target.seek(done)
            with client.stream(here, first_byte=done) as response:
                if done and response.status_code != 206:
                    raise ServerRefusedError(f"the daemon can't continue the download: remove {partial}")
                for part in response.iter_bytes(_READ_BYTES):
                    done += len(part)
                    if done > image.stored_bytes:
                        raise ServerRefusedError("the daemon sent more than the image: try again")
                    target.write(part)
                    update(done, image.stored_bytes)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise StorageError(
            f"can't write {partial}: {error.strerror}; free some space, or choose another file"
        ) from error


def _check(partial: Path, image: Image, update: Callable[[int, int], None]) -> None:
    """Check every block; remove a file that isn't the image."""
    from protocol.errors import ImageDamagedError, ImageError
    from sender.imaging.image_file import ImageFile
    from sender.imaging.image_verify import verify_image

    try:
        with ImageFile.open(partial) as opened:
            if opened.manifest.image_id.hex() != image.image_id:
                raise ImageDamagedError(f"{partial}: it is another image: download it again")
            verify_image(opened, on_progress=update).raise_if_bad(opened)
    except ImageError:
        partial.unlink(missing_ok=True)
        raise
