"""The commands ``restore`` and ``compare``: an image file and a disk of this machine, no network.

``diskcast unpack`` and ``diskcast verify --against`` end here, too: all that touches disks is in one program.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from receiver.restore.disk_progress import BarProgress, DiskProgress, JsonProgress, TextProgress
from receiver.restore.restore_image import compare as compare_disk
from receiver.restore.restore_image import restore as restore_disk
from receiver.target.options import TargetOptions, target_options

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line on stdout, the result last."
)
_image_argument = click.argument("image", type=click.Path(path_type=Path))


def _progress(as_json: bool) -> DiskProgress:
    if as_json:
        return JsonProgress()
    return BarProgress() if sys.stderr.isatty() else TextProgress()


@click.command()
@_image_argument
@target_options
@_json_option
def restore(image: Path, target: str, target_options: TargetOptions, as_json: bool) -> None:
    """Write IMAGE to a disk or file, then read everything back and verify it.

    All that is on the target and differs from the image is overwritten. A target that is in use is refused, and so is
    one that is too small. After an interruption the same command goes on.
    """
    with _progress(as_json) as progress:
        restore_disk(image, target, progress, target_options)


@click.command()
@_image_argument
@click.option(
    "--target", required=True, type=click.Path(path_type=Path), help="A regular file or a block device."
)
@_json_option
def compare(image: Path, target: Path, as_json: bool) -> None:
    """Read a disk or file and compare it with IMAGE; nothing is written.

    What the image says is unused isn't compared, nor what follows the image's end on a larger disk.
    """
    with _progress(as_json) as progress:
        compare_disk(image, target, progress)
