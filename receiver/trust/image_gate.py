"""The decision about an offered image, before anything of this machine's disk is touched."""

from __future__ import annotations

import dataclasses
import datetime
import hmac
from collections.abc import Callable
from pathlib import Path

from protocol.control.control_messages import CastDescription
from protocol.errors import ConfigurationError, RollbackError, TrustError, UnsignedImageError
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY, load_trusted_keys
from protocol.trust.image_policy import AcceptedImage, ImagePolicy
from protocol.trust.join_code import signer_prefix
from protocol.trust.minisign import PublicKey
from protocol.trust.trusted_keys import TrustedKey, TrustedKeys
from receiver.trust.kernel_command_line import KernelTrust, read_kernel_trust
from receiver.trust.rollback_floors import RollbackFloors


def utc_now() -> datetime.datetime:
    """Return the machine's clock, which is wrong on some netbooted machines: only expiry depends on it."""
    return datetime.datetime.now(datetime.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class TrustOptions:
    """The operator's choices about images.

    Attributes:
        keys: keys of ``--trust-key``.
        directory: directory of trusted keys.
        allow_unsigned: accept images without a trusted signature.
        version_min: lowest version of any image.
        tags: tags that every image must have.
        state_directory: directory of the rollback floors; None to keep none.
        signer: the part of a join code that names a signer, who is trusted by a machine without any other key.
        kernel: reads the kernel command line.
    """

    keys: tuple[TrustedKey, ...] = ()
    directory: Path = TRUSTED_KEYS_DIRECTORY
    allow_unsigned: bool = False
    version_min: int = 0
    tags: frozenset[str] = frozenset()
    state_directory: Path | None = None
    signer: str = ""
    kernel: Callable[[], KernelTrust] = read_kernel_trust

    def policy(self, offered_signer: str) -> ImagePolicy:
        """Return the policy, with the keys of all sources read now: a revocation counts for the next cast.

        Args:
            offered_signer: the signer's key as the sender names it, which counts only if the join code names it too.

        Raises:
            ConfigurationError: a source is invalid.
        """
        kernel = self.kernel()
        keys = (*self.keys, *load_trusted_keys(self.directory), *kernel.keys)
        return ImagePolicy(
            keys=TrustedKeys(keys or self._key_of_code(offered_signer)),
            allow_unsigned=self.allow_unsigned,
            version_min=max(self.version_min, kernel.version_min),
            required_tags=self.tags | kernel.tags,
        )

    def _key_of_code(self, offered_signer: str) -> tuple[TrustedKey, ...]:
        if not self.signer or not offered_signer:
            return ()
        try:
            key = PublicKey.parse(offered_signer)
        except ConfigurationError as error:
            raise UnsignedImageError(
                f"the sender names an invalid key of the image's signer: {error}"
            ) from error
        if not hmac.compare_digest(signer_prefix(key), self.signer):
            raise UnsignedImageError(
                f"the image is signed by the key {key.id_text}, but the join code names another one: type the code "
                "that diskcast send prints now, or give --trust-key"
            )
        return (TrustedKey(key, "the join code"),)


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
        self._floors.prepare()
        accepted = self._options.policy(cast.signer).accept(
            offered, now=self._now(), floors=self._floors.load()
        )
        if accepted.verified is not None and accepted.verified.statement.version < version_min:
            raise RollbackError(
                f"{accepted.name!r} has version {accepted.verified.statement.version}, and the daemon requires "
                f"{version_min} or later: cast a newer version"
            )
        return accepted

    def completed(self, accepted: AcceptedImage) -> None:
        """Keep the version of an image that is verified on the target as the floor of its name.

        Raises:
            ConfigurationError: it can't be kept.
        """
        if accepted.verified is not None:
            statement = accepted.verified.statement
            self._floors.keep(statement.name, statement.version)
