"""Limits of the operator for foreign images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from protocol.constants import IMAGE_BYTES_MAX, MIB, TIB
from protocol.errors import ForeignImageError
from protocol.shared.units import format_bytes

RAW_BYTES_MAX_DEFAULT: Final = 4 * TIB
"""Largest disk of a foreign image by default. A header of some bytes may claim any size, and each TiB of zeros costs
the manifest 290 MB."""

STALL_LIMIT_S: Final = 900.0
"""Longest time without output of a decompressor: it reads zeros at 1 GB/s, and a hung file server for minutes."""

_RATE_BYTES_PER_S_MIN: Final = 4 * MIB
"""Slowest conversion that isn't taken for a hang: an old USB stick reads 10 MB/s."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes done and the total bytes of the conversion."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImportLimits:
    """Limits and consents of the operator for foreign images."""

    raw_bytes_max: int = RAW_BYTES_MAX_DEFAULT
    """Largest disk that an image may claim to have."""
    allow_unsandboxed: bool = False
    """Run tools also where the kernel has no Landlock: a hostile image may then read other files of the user."""

    def __post_init__(self) -> None:
        """Keep the limit within the image format's."""
        object.__setattr__(self, "raw_bytes_max", min(self.raw_bytes_max, IMAGE_BYTES_MAX))

    def check_raw_bytes(self, raw_bytes: int) -> None:
        """Refuse a disk that is empty or larger than the limit.

        Raises:
            ForeignImageError: it is.
        """
        if raw_bytes <= 0:
            raise ForeignImageError("the image's disk is empty")
        if raw_bytes > self.raw_bytes_max:
            raise ForeignImageError(
                f"the image's disk has {format_bytes(raw_bytes)}, and {format_bytes(self.raw_bytes_max)} are allowed: "
                "if you trust it, raise --max-size"
            )


def time_limit_s(raw_bytes: int) -> float:
    """Return the longest time that converting ``raw_bytes`` may take."""
    return STALL_LIMIT_S + raw_bytes / _RATE_BYTES_PER_S_MIN
