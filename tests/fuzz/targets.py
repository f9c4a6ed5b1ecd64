"""All fuzz targets; ``test_fuzz.py`` requires that their seeds reach every function named ``*_untrusted``."""

from __future__ import annotations

from typing import Final

from tests.fuzz import (
    contents_targets,
    control_targets,
    export_targets,
    foreign_targets,
    generalise_targets,
    http_targets,
    image_targets,
    netboot_targets,
    patch_targets,
    session_targets,
    trust_targets,
    virtual_disk_targets,
    wire_targets,
)
from tests.fuzz.target import Target

TARGETS: Final[tuple[Target, ...]] = (
    *wire_targets.TARGETS,
    *control_targets.TARGETS,
    *image_targets.TARGETS,
    *foreign_targets.TARGETS,
    *contents_targets.TARGETS,
    *generalise_targets.TARGETS,
    *virtual_disk_targets.TARGETS,
    *trust_targets.TARGETS,
    *patch_targets.TARGETS,
    *session_targets.TARGETS,
    *http_targets.TARGETS,
    *netboot_targets.TARGETS,
    *export_targets.TARGETS,
)


def split(execution_count: int) -> dict[str, int]:
    """Return the number of executions of each target, by its share, at least one."""
    total = sum(target.share for target in TARGETS)
    return {target.name: max(1, execution_count * target.share // total) for target in TARGETS}
