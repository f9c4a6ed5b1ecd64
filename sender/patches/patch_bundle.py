"""A signed set with all of its patches in one run of bytes, as an operator uploads it to a daemon.

Each part is behind its length as a little-endian ``u32``: the set's file first, then the patches.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Final, Self

from protocol.constants import MIB
from protocol.errors import ConfigurationError, PatchRefusedError
from protocol.patch.machine_patch import MachinePatch, parse_patch_untrusted
from protocol.patch.patch_set import (
    PATCH_SET_MACHINES_MAX,
    PatchSet,
    SignedPatchSet,
    parse_patch_set_untrusted,
)

BUNDLE_BYTES_MAX: Final = 8 * MIB
"""Patches of 500 machines take 1 MiB; a daemon keeps a bundle as one row."""
_LENGTH: Final = struct.Struct("<I")


@dataclasses.dataclass(frozen=True, slots=True)
class PatchBundle:
    """A signed set and its patches.

    Attributes:
        set_file: content of the set's file; its signature isn't checked here, since agents decide whom they trust.
        patch_set: the set.
        patches: each machine's patch, by the id that it is for.
    """

    set_file: bytes = dataclasses.field(repr=False)
    patch_set: PatchSet
    patches: Mapping[str, MachinePatch] = dataclasses.field(repr=False)

    @classmethod
    def from_bytes_untrusted(cls, data: bytes) -> Self:
        """Parse a bundle, whose patches must be exactly those of its set.

        Raises:
            PatchRefusedError: it isn't a bundle, or patches are missing, damaged, altered or of another set.
        """
        if len(data) > BUNDLE_BYTES_MAX:
            raise _refused(f"it has more than {BUNDLE_BYTES_MAX >> 20} MiB")
        parts = _parts_untrusted(data)
        signed = SignedPatchSet.from_bytes_untrusted(parts[0])
        patch_set = parse_patch_set_untrusted(signed.signed.statement, signed.lines)
        patches = {}
        for part in parts[1:]:
            patch = parse_patch_untrusted(part)
            if patch.image_id != patch_set.image_id:
                raise _refused(f"the patch for {patch.machine_id!r} is for another image than the set")
            if patch_set.patch_ids.get(patch.machine_id) != patch.patch_id:
                raise _refused(
                    f"the set {patch_set.name!r} has another patch, or none, for {patch.machine_id!r}"
                )
            patches[patch.machine_id] = patch
        if missing := sorted(set(patch_set.patch_ids) - set(patches)):
            raise _refused(f"the patch for {missing[0]!r} is missing")
        return cls(parts[0], patch_set, patches)


def build_bundle(set_file: bytes, patches: Sequence[bytes]) -> bytes:
    """Return the bundle of a set's file and its patches.

    Raises:
        ConfigurationError: it would be too large.
    """
    data = b"".join(_LENGTH.pack(len(part)) + part for part in (set_file, *patches))
    if len(data) > BUNDLE_BYTES_MAX:
        raise ConfigurationError(
            f"the patches have {len(data)} bytes, and a daemon keeps at most {BUNDLE_BYTES_MAX >> 20} MiB of a set: "
            "put large files into the image"
        )
    return data


def _parts_untrusted(data: bytes) -> list[bytes]:
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LENGTH.size or len(parts) > PATCH_SET_MACHINES_MAX:
            raise _refused("its parts don't add up")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise _refused("it is truncated")
        parts.append(data[at : at + length])
        at += length
    if not parts:
        raise _refused("it is empty")
    return parts


def _refused(reason: str) -> PatchRefusedError:
    return PatchRefusedError(f"the set of patches can't be used: {reason}; build, sign and upload it again")
