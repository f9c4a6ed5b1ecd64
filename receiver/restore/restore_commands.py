"""The commands ``restore`` and ``compare``, which need an image file and a disk but no network.

``diskcast unpack`` and ``diskcast verify --against`` run them as well: only this program touches disks.
"""

from __future__ import annotations

import socket
from pathlib import Path

import click

from protocol.errors import ConfigurationError
from protocol.program.options import JSON_OPTION
from receiver.restore.disk_progress import BarProgress, DiskProgress, JsonProgress, LineProgress
from receiver.restore.patched_image import PatchChoice
from receiver.restore.restore_image import compare as compare_disk
from receiver.restore.restore_image import restore as restore_disk
from receiver.shared.consoles import stderr_is_screen
from receiver.target.options import TargetOptions, target_options
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.options import trust_options

_image_argument = click.argument("image", type=click.Path(path_type=Path))


def _progress(as_json: bool) -> DiskProgress:
    if as_json:
        return JsonProgress()
    return BarProgress() if stderr_is_screen() else LineProgress()


@click.command()
@_image_argument
@target_options
@click.option(
    "--patch", type=click.Path(path_type=Path), metavar="FILE", help="Apply a machine patch (.dcp)."
)
@click.option(
    "--patch-set", type=click.Path(path_type=Path), metavar="FILE", help="Signed set that the patch is in."
)
@click.option("--machine", metavar="ID", help="Machine that the patch is for.  [default: host name]")
@trust_options
@JSON_OPTION
def restore(
    image: Path,
    target: str,
    target_options: TargetOptions,
    patch: Path | None,
    patch_set: Path | None,
    machine: str | None,
    trust: TrustOptions,
    as_json: bool,
) -> None:
    """Write IMAGE to a disk or file, then read everything back and verify it.

    Overwrites everything on the target that differs from the image. Refuses a target that is in use or too small. Run
    the same command again to resume after an interruption. With a patch the image must be signed by a trusted key, and
    its statement must allow the patch.

    \b
    Examples:
      diskcast-agent restore lab.dci --target /dev/sdb
      diskcast-agent restore lab.dci --target auto:min=100G,max=600G --grow
      diskcast-agent restore lab.dci --target serial=S4EVNX0N --dry-run
      diskcast-agent restore lab.dci --target /dev/sdb --patch pc-07.dcp --machine pc-07
    """  # noqa: D301 - \b is click's mark
    if patch is None and (patch_set is not None or machine is not None):
        raise ConfigurationError("--patch-set and --machine need a patch: give --patch too")
    choice = None
    if patch is not None:
        choice = PatchChoice(patch, patch_set, frozenset([machine or socket.gethostname()]), trust)
    with _progress(as_json) as progress:
        restore_disk(image, target, progress, target_options, choice)


@click.command()
@_image_argument
@click.option(
    "--target", required=True, type=click.Path(path_type=Path), help="File or block device to compare."
)
@click.option(
    "--patch", type=click.Path(path_type=Path), metavar="FILE", help="Machine patch (.dcp) that the disk has."
)
@JSON_OPTION
def compare(image: Path, target: Path, patch: Path | None, as_json: bool) -> None:
    """Read a disk or file and compare it with IMAGE; nothing is written.

    Skips blocks that the image marks as unused, and the rest of a disk that is larger than the image.

    \b
    Examples:
      diskcast-agent compare lab.dci --target /dev/sdb
      diskcast-agent compare lab.dci --target disk.img --json
      diskcast-agent compare lab.dci --target /dev/sdb --patch pc-07.dcp
    """  # noqa: D301 - \b is click's mark
    with _progress(as_json) as progress:
        compare_disk(image, target, progress, patch)
