"""The decision whether a machine accepts an image: signature, identity, version floor, tags."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Final

from protocol.errors import RollbackError, TrustError, UnsignedImageError
from protocol.trust.statement import SignedStatement
from protocol.trust.trusted_keys import TrustedKeys, VerifiedImage

NO_FLOORS: Final[Mapping[str, int]] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class OfferedImage:
    """An image as its sender describes it.

    Attributes:
        image_id: the id that the manifest will have to match.
        name: name for people.
        signed: the signed statement; None for an unsigned image.
    """

    image_id: bytes
    name: str
    signed: SignedStatement | None


@dataclasses.dataclass(frozen=True, slots=True)
class AcceptedImage:
    """An image that a machine accepts.

    Attributes:
        image_id: the only id that the machine accepts from now on, from whichever sender.
        name: the signed name; the described one for an unsigned image.
        verified: the verified statement; None for an image that was accepted without a trusted signature.
        reason: the reason why the image isn't trusted, for the operator; empty for a verified one.
    """

    image_id: bytes
    name: str
    verified: VerifiedImage | None
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ImagePolicy:
    """The images that a machine accepts.

    Attributes:
        keys: the trusted keys.
        allow_unsigned: accept an image without a trusted signature; versions and tags of others are still checked.
        version_min: lowest version of any image.
        required_tags: tags that an image must have to be accepted.
    """

    keys: TrustedKeys
    allow_unsigned: bool = False
    version_min: int = 0
    required_tags: frozenset[str] = frozenset()

    def accept(
        self, offered: OfferedImage, *, now: datetime.datetime, floors: Mapping[str, int] = NO_FLOORS
    ) -> AcceptedImage:
        """Return the accepted image; nothing may be written for any other.

        Args:
            offered: the image as described.
            now: the machine's clock.
            floors: lowest version of each signed name.

        Raises:
            UnsignedImageError: no trusted key signed it.
            RollbackError: its version is below the floor.
            TrustError: the statement is about another image, has expired, or the image isn't made for this machine.
        """
        try:
            verified = self._verify(offered, now)
        except UnsignedImageError as error:
            if not self.allow_unsigned:
                raise
            return AcceptedImage(offered.image_id, offered.name, None, str(error))
        statement = verified.statement
        if statement.image_id != offered.image_id:
            raise TrustError(
                f"the signed statement is about the image {statement.image_id.hex()}, but the sender casts "
                f"{offered.image_id.hex()}: the sender's image file was altered or its signature was taken from another"
            )
        if statement.name != offered.name:
            raise TrustError(
                f"the image is signed as {statement.name!r}, but the sender announces {offered.name!r}: sign it again, "
                "or find out who runs that sender"
            )
        floor = max(self.version_min, floors.get(statement.name, 0))
        if statement.version < floor:
            raise RollbackError(
                f"{statement.name!r} has version {statement.version}, and this machine accepts {floor} and later: cast "
                "a newer version, or sign this image with a higher one"
            )
        if missing := sorted(self.required_tags.difference(statement.tags)):
            raise TrustError(
                f"{statement.name!r} isn't made for this machine: its tags are {', '.join(statement.tags) or 'none'}, "
                f"and this machine requires {', '.join(missing)}"
            )
        return AcceptedImage(statement.image_id, statement.name, verified)

    def _verify(self, offered: OfferedImage, now: datetime.datetime) -> VerifiedImage:
        if not self.keys.keys and not self.allow_unsigned:
            raise UnsignedImageError(
                "this machine trusts no key, so it accepts no image: give --trust-key, or put the signer's .pub file "
                "into the trusted keys' directory"
            )
        if offered.signed is None:
            raise UnsignedImageError(
                f"the image {offered.name!r} isn't signed: sign it with `diskcast sign` or `diskcast images sign`"
            )
        return self.keys.verify(offered.signed, now)
