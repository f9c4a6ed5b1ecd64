"""The settings of the menu, from a boot or from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.control.boot_parameters import AfterCast
from receiver.target.options import TargetOptions
from receiver.trust.accepted_images import TrustOptions

if TYPE_CHECKING:
    from receiver.service.serve_casts import ServiceOptions


@dataclasses.dataclass(frozen=True, slots=True)
class MenuSettings:
    """The settings of the menu.

    Attributes:
        machine_name: name of this machine.
        trust: images that are accepted.
        target_options: how to write the disk.
        after: action after the image is on the disk.
        service: how to reach a daemon and to receive its casts; None without a daemon or a network.
        image_url: image to suggest; empty for none.
        directories: directories to search for image files, besides removable media.
        live: runs in the live system, where leaving the menu means to restart or to power off.
    """

    machine_name: str
    trust: TrustOptions
    target_options: TargetOptions
    after: AfterCast
    service: ServiceOptions | None = None
    image_url: str = ""
    directories: tuple[Path, ...] = ()
    live: bool = False
