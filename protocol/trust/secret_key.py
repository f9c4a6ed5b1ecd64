"""Minisign's secret keys: the file format, plain or encrypted with a passphrase, and signing.

An encrypted key is XORed with scrypt's output, as libsodium's ``crypto_pwhash_scryptsalsa208sha256`` computes it from
the passphrase, a salt and two limits in the file.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import struct
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.constants import GIB
from protocol.errors import ConfigurationError
from protocol.trust.minisign import (
    KEY_ALGORITHM,
    KEY_FILE_BYTES_MAX,
    KEY_ID_BYTES,
    PUBLIC_KEY_BYTES,
    UNTRUSTED_COMMENT,
    PublicKey,
    Signature,
    signed_digest,
)

SEED_BYTES: Final = 32
SALT_BYTES: Final = 32
PASSPHRASE_BYTES_MAX: Final = 1024
"""Minisign's own limit."""

_KDF_NONE: Final = b"\0\0"
_KDF_SCRYPT: Final = b"Sc"
_CHECKSUM_BLAKE2B: Final = b"B2"
_CHECKSUM_BYTES: Final = 32

_RECORD: Final = struct.Struct(f"<2s2s2s{SALT_BYTES}sQQ")
"""Signature, key derivation and checksum algorithms, salt, operations limit, memory limit."""

_SECRET: Final = struct.Struct(f"<{KEY_ID_BYTES}s{SEED_BYTES}s{PUBLIC_KEY_BYTES}s{_CHECKSUM_BYTES}s")
"""Key id, seed, public key, checksum: what a passphrase encrypts."""

_SCRYPT_BLOCK: Final = 8
_SCRYPT_OPERATIONS_MIN: Final = 32768
_SCRYPT_COST_BITS_MAX: Final = 20
_SCRYPT_PARALLEL_MAX: Final = 16
"""1 GiB, minisign's own limit, and 16 passes: a file that asks for more is damaged."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScryptLimits:
    """Cost of deriving a key from a passphrase, in libsodium's terms."""

    operations: int
    memory_bytes: int

    def parameters(self) -> tuple[int, int]:
        """Return scrypt's N and p for r = 8, as libsodium's ``pickparams`` computes them.

        Raises:
            ConfigurationError: they exceed what any key needs.
        """
        operations = max(self.operations, _SCRYPT_OPERATIONS_MIN)
        memory_bound = operations >= self.memory_bytes // 32
        cost_max = (
            self.memory_bytes // (_SCRYPT_BLOCK * 128) if memory_bound else operations // (_SCRYPT_BLOCK * 4)
        )
        bits = max(1, cost_max.bit_length() - 1)
        parallel = (operations // 4 >> bits) // _SCRYPT_BLOCK if memory_bound else 1
        if bits > _SCRYPT_COST_BITS_MAX or not 1 <= parallel <= _SCRYPT_PARALLEL_MAX:
            raise ConfigurationError(
                "the secret key's file is damaged: its scrypt limits are out of range; restore it from its backup"
            )
        return 1 << bits, parallel


DEFAULT_LIMITS: Final = ScryptLimits(2**25, GIB)
"""Minisign's limits, libsodium's "sensitive": a guess costs an attacker 1 GiB, and the operator three seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class SecretKey:
    """A secret key; its parts never appear in a repr."""

    public: PublicKey
    seed: bytes = dataclasses.field(repr=False)

    @classmethod
    def create(cls, *, key_id: bytes, seed: bytes) -> Self:
        """Return the key of a random id and a random seed."""
        assert len(key_id) == KEY_ID_BYTES
        private_key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(PublicKey(key_id, private_key.public_key().public_bytes_raw()), seed)

    def sign(self, message: bytes, *, trusted_comment: str) -> Signature:
        """Return the prehashed signature of ``message``.

        Args:
            message: the signed bytes.
            trusted_comment: one printable line, signed too.
        """
        assert trusted_comment.isprintable()
        private_key = Ed25519PrivateKey.from_private_bytes(self.seed)
        signature = private_key.sign(signed_digest(message))
        global_signature = private_key.sign(signature + trusted_comment.encode())
        return Signature(self.public.key_id, signature, trusted_comment, global_signature)

    def file_text(
        self, *, passphrase: str = "", salt: bytes = bytes(SALT_BYTES), limits: ScryptLimits | None = None
    ) -> str:
        """Return the content of a ``.key`` file.

        Args:
            passphrase: encrypts the key; empty for a plain one.
            salt: random bytes, needed with a passphrase.
            limits: cost of the encryption; minisign's by default.
        """
        checksum = _checksum(self.public.key_id, self.seed, self.public.key)
        secret = _SECRET.pack(self.public.key_id, self.seed, self.public.key, checksum)
        if not passphrase:
            head = _RECORD.pack(KEY_ALGORITHM, _KDF_NONE, _CHECKSUM_BLAKE2B, bytes(SALT_BYTES), 0, 0)
            return _file_text(head + secret, "minisign secret key")
        limits = limits or DEFAULT_LIMITS
        head = _RECORD.pack(
            KEY_ALGORITHM, _KDF_SCRYPT, _CHECKSUM_BLAKE2B, salt, limits.operations, limits.memory_bytes
        )
        return _file_text(head + _crypt(secret, passphrase, salt, limits), "minisign encrypted secret key")


def is_encrypted(text: str) -> bool:
    """Return whether the content of a ``.key`` file needs a passphrase.

    Raises:
        ConfigurationError: it is no secret key of minisign.
    """
    kdf = _decode(text)[2:4]
    return kdf == _KDF_SCRYPT


def parse_secret_key(text: str, passphrase: str = "") -> SecretKey:
    """Return the key of a ``.key`` file of diskcast or minisign.

    Decrypting takes three seconds and 1 GiB of memory with minisign's limits.

    Args:
        text: the file's content.
        passphrase: needed if :func:`is_encrypted`.

    Raises:
        ConfigurationError: it is no secret key, is damaged, or the passphrase is wrong.
    """
    data = _decode(text)
    _, kdf, _, salt, operations, memory_bytes = _RECORD.unpack_from(data)
    secret = data[_RECORD.size :]
    if kdf == _KDF_SCRYPT:
        secret = _crypt(secret, passphrase, salt, ScryptLimits(operations, memory_bytes))
    key_id, seed, public_key, checksum = _SECRET.unpack(secret)
    expected = _checksum(key_id, seed, public_key)
    # minisign 0.11 writes plain keys without a checksum.
    absent = kdf == _KDF_NONE and checksum == bytes(_CHECKSUM_BYTES)
    if not absent and not hmac.compare_digest(checksum, expected):
        raise ConfigurationError(
            "wrong passphrase for the secret key"
            if kdf == _KDF_SCRYPT
            else "the secret key's file is damaged: its checksum is wrong; restore it from its backup"
        )
    key = SecretKey.create(key_id=key_id, seed=seed)
    if key.public.key != public_key:
        raise ConfigurationError(
            "the secret key's file is damaged: its two halves don't match; restore it from its backup"
        )
    return key


def _decode(text: str) -> bytes:
    lines = text[:KEY_FILE_BYTES_MAX].strip().splitlines()
    if len(lines) == 2 and lines[0].startswith(UNTRUSTED_COMMENT):
        try:
            data = base64.b64decode(lines[1], validate=True)
        except ValueError:
            data = b""
        if len(data) == _RECORD.size + _SECRET.size:
            algorithms = data[:2], data[4:6]
            if algorithms == (KEY_ALGORITHM, _CHECKSUM_BLAKE2B) and data[2:4] in (_KDF_NONE, _KDF_SCRYPT):
                return data
    raise ConfigurationError("that isn't a secret key of minisign: give the .key file of `diskcast keygen`")


def _file_text(data: bytes, comment: str) -> str:
    return f"{UNTRUSTED_COMMENT}{comment}\n{base64.b64encode(data).decode('ascii')}\n"


def _checksum(key_id: bytes, seed: bytes, public_key: bytes) -> bytes:
    return hashlib.blake2b(KEY_ALGORITHM + key_id + seed + public_key, digest_size=_CHECKSUM_BYTES).digest()


def _crypt(secret: bytes, passphrase: str, salt: bytes, limits: ScryptLimits) -> bytes:
    """Encrypt or decrypt: both XOR with the same stream."""
    cost, parallel = limits.parameters()
    stream = hashlib.scrypt(
        passphrase.encode(),
        salt=salt,
        n=cost,
        r=_SCRYPT_BLOCK,
        p=parallel,
        maxmem=128 * _SCRYPT_BLOCK * (cost + parallel + 2),
        dklen=len(secret),
    )
    return bytes(left ^ right for left, right in zip(secret, stream, strict=True))
