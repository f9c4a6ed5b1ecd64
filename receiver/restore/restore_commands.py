"""The commands ``restore`` and ``compare``, which need an image file and a disk but no network.

``diskcast unpack`` and ``diskcast verify --against`` run them as well: only this program touches disks.
"""

from __future__ import annotations

from pathlib import Path

import click

from protocol.program.options import JSON_OPTION
from receiver.restore.disk_progress import BarProgress, DiskProgress, JsonProgress, TextProgress
from receiver.restore.restore_image import compare as compare_disk
from receiver.restore.restore_image import restore as restore_disk
from receiver.shared.consoles import stderr_is_screen
from receiver.target.options import TargetOptions, target_options

_image_argument = click.argument("image", type=click.Path(path_type=Path))


def _progress(as_json: bool) -> DiskProgress:
    if as_json:
        return JsonProgress()
    return BarProgress() if stderr_is_screen() else TextProgress()


@click.command()
@_image_argument
@target_options
@JSON_OPTION
def restore(image: Path, target: str, target_options: TargetOptions, as_json: bool) -> None:
    """Write IMAGE to a disk or file, then read everything back and verify it.

    Overwrites everything on the target that differs from the image. Refuses a target that is in use or too small. Run
    the same command again to resume after an interruption.

    \b
    Examples:
      diskcast-agent restore lab.dci --target /dev/sdb
      diskcast-agent restore lab.dci --target auto:min=100G,max=600G --grow
      diskcast-agent restore lab.dci --target serial=S4EVNX0N --dry-run
    """  # noqa: D301 - \b is click's mark
    with _progress(as_json) as progress:
        restore_disk(image, target, progress, target_options)


@click.command()
@_image_argument
@click.option(
    "--target", required=True, type=click.Path(path_type=Path), help="File or block device to compare."
)
@JSON_OPTION
def compare(image: Path, target: Path, as_json: bool) -> None:
    """Read a disk or file and compare it with IMAGE; nothing is written.

    Skips blocks that the image marks as unused, and the rest of a disk that is larger than the image.

    \b
    Examples:
      diskcast-agent compare lab.dci --target /dev/sdb
      diskcast-agent compare lab.dci --target disk.img --json
    """  # noqa: D301 - \b is click's mark
    with _progress(as_json) as progress:
        compare_disk(image, target, progress)
