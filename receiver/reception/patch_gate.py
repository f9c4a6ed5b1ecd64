"""The patch of this machine in a cast: fetched from the sender, and permitted before the target changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from protocol.errors import PatchRefusedError
from protocol.image.manifest import Manifest
from protocol.patch.machine_patch import MachinePatch, parse_patch_untrusted
from protocol.patch.patch_permission import PatchGrounds, require_permitted
from protocol.patch.patch_set import PatchSet, SignedPatchSet
from protocol.trust.image_policy import AcceptedImage
from protocol.trust.statement import PatchPolicy
from receiver.target.image import PermitPatch


@dataclasses.dataclass(frozen=True, slots=True)
class PatchGate:
    """The gate that a machine patch passes after its image.

    Attributes:
        accepted: the accepted image.
        machine_ids: ids of this machine that it knows by itself.
        verify_set: returns a set of patches if a trusted key signed it.
        assigned_id: the patch that a daemon assigned; None if none did.
    """

    accepted: AcceptedImage
    machine_ids: frozenset[str]
    verify_set: Callable[[SignedPatchSet], PatchSet]
    assigned_id: bytes | None = None

    @property
    def needs_set(self) -> bool:
        """Return whether the image's statement requires a signed set of patches."""
        verified = self.accepted.verified
        return verified is not None and verified.statement.patches is PatchPolicy.SIGNED

    def check_granted(self, patch_id: bytes | None) -> None:
        """Raise :class:`PatchRefusedError` if the sender grants another patch than the daemon has assigned."""
        if self.assigned_id is not None and patch_id != self.assigned_id:
            raise PatchRefusedError(
                f"the daemon assigned the machine patch {self.assigned_id.hex()}, but the cast's sender names "
                f"{'none' if patch_id is None else patch_id.hex()}: find out who runs that sender"
            )

    def permit(self, granted_id: bytes, data: bytes, signed_set: bytes | None) -> PermitPatch:
        """Return the decision about a fetched patch, to be taken when the manifest is known.

        Args:
            granted_id: id of the patch, as the sender's answer to the join names it.
            data: the patch.
            signed_set: content of the set's file; None without one.
        """

        def permitted(manifest: Manifest) -> MachinePatch:
            patch = parse_patch_untrusted(data)
            patch_set = None
            if signed_set is not None:
                patch_set = self.verify_set(SignedPatchSet.from_bytes_untrusted(signed_set))
            require_permitted(
                patch, manifest, PatchGrounds(self.accepted, self.machine_ids, granted_id, patch_set)
            )
            return patch

        return permitted
