"""A boot of the live system by QEMU itself: no firmware, no boot loader, no boot services."""

from __future__ import annotations

from pathlib import Path

from tests.support.machines.virtual_machine import NO_TIMER_CHECK


def direct_boot(medium: Path, words: str, *, initrd: Path | None = None) -> tuple[str, ...]:
    """Return QEMU's options that boot a medium's kernel.

    Args:
        medium: folder of the boot medium.
        words: kernel command line, beside the serial console.
        initrd: an initrd other than the medium's.
    """
    command_line = f"console=ttyS0 quiet {NO_TIMER_CHECK} {words}"
    return (
        "-kernel",
        str(medium / "vmlinuz"),
        "-initrd",
        str(initrd or medium / "initrd"),
        "-append",
        command_line,
    )
