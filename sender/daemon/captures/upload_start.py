"""The check of an upload's start: what the agent read must be what the operator asked for."""

from __future__ import annotations

import dataclasses
from typing import Final

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import BlockGeometry
from protocol.errors import ImageError, ProtocolError
from protocol.image.image_metadata import parse_metadata_untrusted
from protocol.image.manifest_format import (
    HEAD_BYTES,
    ManifestLayout,
    build_manifest_start,
    parse_head_untrusted,
)
from sender.store.records.captures import CapturePlan

DIGEST_KEY: Final = "source_sha256"
_KEYS: Final = frozenset({"layout", "logical_sector_bytes", DIGEST_KEY})


@dataclasses.dataclass(frozen=True, slots=True)
class UploadStart:
    """The start of an image, as an agent sends it.

    Attributes:
        manifest_start: the manifest before its columns.
    """

    name: str
    geometry: BlockGeometry
    metadata: dict[str, object]
    manifest_start: bytes
    layout: ManifestLayout

    @classmethod
    def parse_untrusted(cls, data: bytes, plan: CapturePlan) -> UploadStart:
        """Parse the start of a capture's manifest.

        Raises:
            ProtocolError: it is malformed, or contradicts the plan.
        """
        try:
            head, name = parse_head_untrusted(data)
            metadata = parse_metadata_untrusted(data[HEAD_BYTES : HEAD_BYTES + head.metadata_bytes])
            start, layout = build_manifest_start(name, head.raw_bytes, head.block_bytes, metadata)
        except ImageError as error:
            raise ProtocolError(f"manifest_start: {error}") from error
        # One manifest for one disk: padding, reserved bytes or another order of the keys would change the image's id.
        if start != data:
            raise ProtocolError("manifest_start: it isn't in its only form")
        if not metadata.keys() <= _KEYS:
            raise ProtocolError("manifest_start: a capture has no such metadata")
        digest = metadata.get(DIGEST_KEY)
        if (name, head.block_bytes) != (plan.name, plan.block_bytes):
            raise ProtocolError("manifest_start: the name or the block size isn't that of the capture")
        if digest != (bytes(HASH_BYTES) if plan.every_byte else None):
            raise ProtocolError("manifest_start: source_sha256 contradicts the plan")
        return cls(name, BlockGeometry(head.raw_bytes, head.block_bytes), metadata, start, layout)

    def with_digest(self, source_sha256: bytes) -> bytes:
        """Return the manifest before its columns with the digest of the whole disk."""
        metadata = {**self.metadata, DIGEST_KEY: source_sha256}
        start, _ = build_manifest_start(
            self.name, self.geometry.raw_bytes, self.geometry.block_bytes, metadata
        )
        return start
