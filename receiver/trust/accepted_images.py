"""The operator's choices about the images that this machine accepts, and the policy that follows from them."""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Callable
from pathlib import Path

from protocol.errors import ConfigurationError, UnsignedImageError
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY, load_trusted_keys
from protocol.trust.image_policy import ImagePolicy
from protocol.trust.minisign import PublicKey
from protocol.trust.trusted_keys import TrustedKey, TrustedKeys
from receiver.trust.kernel_command_line import KernelTrust, read_kernel_trust


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
        # Imported here: it needs numpy, which --help doesn't wait for.
        from protocol.trust.join_code import signer_prefix

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
