"""The origin of an image that was converted from another program's format, as the manifest records it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Final, Self

from protocol.errors import ImageDamagedError

PROVENANCE_TEXT_BYTES_MAX: Final = 128
"""Longest text: a version line of a tool fits, and a crafted image can't fill a screen."""


class SourceChecksums(enum.StrEnum):
    """Checksums of the source's content, and their use during the conversion."""

    VERIFIED = "verified"
    """The source has checksums, and all of them were right."""
    NONE = "none"
    """The source has none: damage before the conversion wasn't detectable."""


@dataclasses.dataclass(frozen=True, slots=True)
class Provenance:
    """Format, checksums and tool of a conversion."""

    format: str
    """A value of :class:`sender.imaging.foreign.sniff.ForeignFormat`, or one of a later version."""
    checksums: SourceChecksums
    tool: str
    """Program that read the source; ``diskcast`` for a reader of its own."""
    tool_version: str
    details: str = ""
    """Further facts, such as ``partclone 0.3.13`` as the source's writer; empty for none."""

    def to_metadata(self) -> dict[str, object]:
        """Return the value of the manifest's key ``provenance``."""
        fields = {**dataclasses.asdict(self), "checksums": self.checksums.value}
        return fields if self.details else {key: fields[key] for key in fields if key != "details"}

    @classmethod
    def from_metadata_untrusted(cls, value: object) -> Self:
        """Return the origin that ``value`` describes; unknown keys are ignored.

        Raises:
            ImageDamagedError: it has another form.
        """
        if not isinstance(value, dict):
            raise _damaged("map")
        try:
            checksums = SourceChecksums(_text(value, "checksums"))
        except ValueError:
            raise _damaged("checksums") from None
        return cls(
            _text(value, "format"),
            checksums,
            _text(value, "tool"),
            _text(value, "tool_version"),
            _text(value, "details", default=""),
        )

    def __str__(self) -> str:
        checked = "checksums verified" if self.checksums is SourceChecksums.VERIFIED else "without checksums"
        details = f", {self.details}" if self.details else ""
        return f"{self.format}, {checked}{details}, read by {self.tool} {self.tool_version}"


def provenance_of(metadata: Mapping[str, object]) -> Provenance | None:
    """Return the origin in a manifest's metadata; None for a raw disk."""
    value = metadata.get("provenance")
    return None if value is None else Provenance.from_metadata_untrusted(value)


def _text(fields: dict[str, object], key: str, default: str | None = None) -> str:
    value = fields.get(key, default)
    if (
        not isinstance(value, str)
        or len(value.encode("utf-8", "surrogatepass")) > PROVENANCE_TEXT_BYTES_MAX
        or not value.isprintable()
    ):
        raise _damaged(key)
    return value


def _damaged(key: str) -> ImageDamagedError:
    return ImageDamagedError(f"the manifest's metadata is damaged: the provenance's {key} is invalid")
