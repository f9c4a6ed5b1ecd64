"""Statements on their way to an air-gapped signer and back: files of 1 KiB, and the options that name them."""

from __future__ import annotations

import dataclasses
import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from protocol.errors import ConfigurationError, UnsignedImageError
from protocol.trust.minisign import SIGNATURE_TEXT_BYTES_MAX, PublicKey, parse_signature_untrusted
from protocol.trust.statement import STATEMENT_BYTES_MAX, ImageStatement, SignedStatement
from sender.identity.key_options import read_public_key

SIGNATURE_SUFFIX: Final = ".minisig"
"""Appended to a statement's file name, as minisign does."""

_path = click.Path(path_type=Path)


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """A statement on its way to or from an air-gapped signer.

    Attributes:
        export_path: file to write the statement to; None to sign here.
        import_path: file of a statement that was signed elsewhere, beside its signature.
        public_key: file or line of that signer's key.
    """

    export_path: Path | None = None
    import_path: Path | None = None
    public_key: str | None = None

    def __post_init__(self) -> None:
        if self.export_path is not None and self.import_path is not None:
            raise ConfigurationError("--export and --import are two steps: give one of them")


_TRANSFER_OPTIONS: Final = (
    click.option(
        "--export", "export_path", type=_path, metavar="STATEMENT", help="Write the statement, unsigned."
    ),
    click.option(
        "--import", "import_path", type=_path, metavar="STATEMENT", help="Take a statement signed elsewhere."
    ),
    click.option("--public-key", metavar="KEY", help="Key of --import: a .pub file or its RW line."),
)


def transfer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--export``, ``--import`` and ``--public-key``; the command gets them as ``transfer``."""

    @functools.wraps(function)
    def with_transfer(
        *args: object,
        export_path: Path | None,
        import_path: Path | None,
        public_key: str | None,
        **kwargs: object,
    ) -> object:
        return function(*args, transfer=Transfer(export_path, import_path, public_key), **kwargs)

    decorated: Callable[..., Any] = with_transfer
    for option in reversed(_TRANSFER_OPTIONS):
        decorated = option(decorated)
    return decorated


def export_statement(path: Path, statement: ImageStatement) -> None:
    """Write a statement for an air-gapped signer.

    Raises:
        ConfigurationError: the file can't be written.
    """
    write_file(path, statement.encode())


def read_signed_statement(path: Path, public_key: str | None) -> tuple[SignedStatement, PublicKey]:
    """Read a statement and its signature ``PATH.minisig``, and check the signature.

    Args:
        path: the statement's file.
        public_key: file or line of the signer's public key.

    Raises:
        ConfigurationError: a file can't be read, or the key is missing.
        UnsignedImageError: the key didn't sign the statement.
    """
    if public_key is None:
        raise ConfigurationError(
            "--import needs --public-key: the signer's .pub file, or its line that starts with RW"
        )
    signer, _ = read_public_key(public_key)
    statement = read_file(path, STATEMENT_BYTES_MAX)
    signature = read_file(path.with_name(path.name + SIGNATURE_SUFFIX), SIGNATURE_TEXT_BYTES_MAX)
    signed = SignedStatement(statement, signature.decode("utf-8", "replace"))
    if parse_signature_untrusted(signed.signature).key_id != signer.key_id:
        raise UnsignedImageError(
            f"{path} is signed by another key than {signer.id_text}: give its --public-key"
        )
    return signed, signer


def read_file(path: Path, bytes_max: int) -> bytes:
    """Return the content of a small file.

    Raises:
        ConfigurationError: it can't be read, or is longer than ``bytes_max``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise ConfigurationError(f"{path} is too long: it may have at most {bytes_max} bytes")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Write a small file.

    Raises:
        ConfigurationError: it can't be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        fix = "free some space" if error.errno == errno.ENOSPC else "choose another file"
        raise ConfigurationError(f"can't write {path}: {error.strerror}; {fix}") from error
