"""The decision about an offered image, before anything of this machine's disk is touched."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from protocol.control.control_messages import CastDescription
from protocol.errors import RollbackError, TrustError
from protocol.patch.patch_set import PatchSet, SignedPatchSet
from protocol.trust.image_policy import AcceptedImage, OfferedImage
from receiver.trust.accepted_images import TrustOptions
from receiver.trust.rollback_floors import RollbackFloors


def utc_now() -> datetime.datetime:
    """Return the machine's clock, which is wrong on some netbooted machines: only expiry depends on it."""
    return datetime.datetime.now(datetime.UTC)


class ImageGate:
    """The gate that every image passes before its target is opened."""

    def __init__(self, options: TrustOptions, now: Callable[[], datetime.datetime] = utc_now) -> None:
        self._options = options
        self._now = now
        self._floors = RollbackFloors(options.state_directory)

    def accept(
        self, cast: CastDescription, *, assigned_id: bytes | None = None, version_min: int = 0
    ) -> AcceptedImage:
        """Return the accepted image of a cast.

        Args:
            cast: the sender's description.
            assigned_id: the image that a daemon assigned; None if no daemon did.
            version_min: the daemon's floor.

        Raises:
            TrustError: this machine doesn't accept the image.
            ConfigurationError: a source of trust is invalid.
        """
        offered = cast.offered_image
        if assigned_id is not None and offered.image_id != assigned_id:
            raise TrustError(
                f"the daemon assigned the image {assigned_id.hex()}, but the sender at {cast.control_url} casts "
                f"{offered.image_id.hex()}: find out who runs that sender"
            )
        accepted = self.accept_offered(offered, cast.signer)
        if accepted.verified is not None and accepted.verified.statement.version < version_min:
            raise RollbackError(
                f"{accepted.name!r} has version {accepted.verified.statement.version}, and the daemon requires "
                f"{version_min} or later: cast a newer version"
            )
        return accepted

    def accept_offered(self, offered: OfferedImage, signer: str = "") -> AcceptedImage:
        """Return an image of any source as accepted.

        Args:
            offered: the image with its signature.
            signer: the signer's key as the source names it; it counts only if a join code names it too.

        Raises:
            TrustError: this machine doesn't accept the image.
            ConfigurationError: a source of trust is invalid.
        """
        self._floors.prepare()
        return self._options.policy(signer).accept(offered, now=self._now(), floors=self._floors.load())

    def verified_patch_set(self, signed_set: SignedPatchSet, signer: str = "") -> PatchSet:
        """Return a set of machine patches that a trusted key signed.

        Args:
            signed_set: the set as the sender or daemon has it.
            signer: the signer's key as for :meth:`accept_offered`.

        Raises:
            PatchRefusedError: no trusted key signed it, or it has expired.
            ConfigurationError: a source of trust is invalid.
        """
        return signed_set.verify(self._options.policy(signer).keys, self._now())

    def completed(self, accepted: AcceptedImage) -> None:
        """Keep the version of an image that is verified on the target as the floor of its name.

        Raises:
            ConfigurationError: it can't be kept.
        """
        if accepted.verified is not None:
            statement = accepted.verified.statement
            self._floors.keep(statement.name, statement.version)
