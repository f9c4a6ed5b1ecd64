"""``diskcast images import``, ``download`` and ``export``: files between this machine and the daemon."""

from __future__ import annotations

import hashlib
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
    from sender.store.records.image_exports import ImageExport
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
    from sender.console.lookup import find_image, path
    from sender.imaging.image_progress import show_progress
    from sender.store.records.images import image_reference

    found = find_image(client, image)
    if file.is_dir():
        raise click.UsageError(f"{file} is a directory: name a file")
    partial = file.with_name(f".{file.name}.{found.image_id[:12]}.partial")
    with show_progress("downloading", json_lines=output.json_lines) as update:
        _receive(client, path("images", found.image_id, "file"), found.stored_bytes, partial, update)
    with show_progress("checking", json_lines=output.json_lines) as update:
        _check(partial, found, update)
    partial.replace(file)
    output.done(f"wrote {image_reference(found)} to {file}", found)


@click.command("export")
@click.argument("image")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["qcow2", "vmdk", "vhdx", "vdi", "vhd"]),
    required=True,
    help="Format of the file.",
)
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="File to write.",
)
@api_command
def export(client: Client, output: Output, *, image: str, kind: str, file: Path) -> None:
    """Let the daemon convert an image, and download the file.

    The daemon checks every block while it converts, and keeps the file for a day; the download is checked against the
    daemon's SHA-256. A broken download continues where it was. For a raw disk use `images download` and `diskcast
    export`.

    \b
    Examples:
      diskcast images export lab --format qcow2 -o lab.qcow2
      diskcast images export lab@3 --format vmdk -o lab.vmdk --json
    """  # noqa: D301
    from protocol.errors import ServerRefusedError
    from sender.console.lookup import find_image, path
    from sender.imaging.image_progress import show_phases, show_progress
    from sender.store.records.image_exports import ExportState, ImageExport

    found = find_image(client, image)
    if file.is_dir():
        raise click.UsageError(f"{file} is a directory: name a file")
    made = client.create(path("images", found.image_id, "exports"), ImageExport, {"format": kind})
    here = path("images", "exports", made.export_id)
    with show_phases(json_lines=output.json_lines) as phases:
        state, update = made.state, phases(made.state.value)
        while not made.state.ended:
            if made.state is not state:
                state = made.state
                update = phases(state.value)
            update(int(made.progress * found.raw_bytes), found.raw_bytes)
            time.sleep(_POLL_S)
            made = client.get(here, ImageExport)
    if made.state is ExportState.FAILED:
        raise ServerRefusedError(f"{made.image_name} can't be exported: {made.problem}")
    partial = file.with_name(f".{file.name}.{made.export_id}.partial")
    with show_progress("downloading", json_lines=output.json_lines) as update:
        _receive(client, f"{here}/file", made.file_bytes, partial, update)
    with show_progress("checking", json_lines=output.json_lines) as update:
        _check_digest(partial, made, update)
    partial.replace(file)
    output.done(f"wrote {made.image_name} to {file}", found)


def _receive(
    client: Client, here: str, file_bytes: int, partial: Path, update: Callable[[int, int], None]
) -> None:
    """Continue the download into ``partial``."""
    from protocol.errors import ServerRefusedError, StorageError
    from sender.imaging.partial_file import PRIVATE_FILE_MODE

    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE_MODE)
        with os.fdopen(fd, "wb") as target:
            done = target.seek(0, os.SEEK_END)
            if done >= file_bytes:
                done = 0
            target.truncate(done)
            target.seek(done)
            with client.stream(here, first_byte=done) as response:
                if done and response.status_code != 206:
                    raise ServerRefusedError(f"the daemon can't continue the download: remove {partial}")
                for part in response.iter_bytes(_READ_BYTES):
                    done += len(part)
                    if done > file_bytes:
                        raise ServerRefusedError("the daemon sent more than the file: try again")
                    target.write(part)
                    update(done, file_bytes)
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


def _check_digest(partial: Path, made: ImageExport, update: Callable[[int, int], None]) -> None:
    """Compare a file with the daemon's SHA-256; remove it if it differs."""
    from protocol.errors import ImageDamagedError

    digest, done = hashlib.sha256(), 0
    with partial.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
            done += len(part)
            update(done, made.file_bytes)
    if digest.hexdigest() != made.file_sha256:
        partial.unlink()
        raise ImageDamagedError(f"{partial}: it isn't the file that the daemon has made: download it again")
