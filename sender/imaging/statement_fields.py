"""The fields of a statement that an operator chooses, their defaults, and their options."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from protocol.disk.partition_table import PARTITIONS_MAX
from protocol.errors import ConfigurationError
from protocol.program.options import WholeNumber
from protocol.trust.minisign import Signature
from protocol.trust.secret_key import SecretKey
from protocol.trust.statement import (
    ALL_PARTITIONS,
    PATCH_PARTITIONS,
    STATEMENT_NAME_MAX,
    STATEMENT_VERSION_MAX,
    ImageStatement,
    PatchPolicy,
    SignedStatement,
    parse_statement_untrusted,
)
from sender.identity.key_options import parse_time_option

if TYPE_CHECKING:
    from protocol.image.image_format import ImageHeader
    from sender.imaging.image_file import ImageFile

_OPTIONS: Final = (
    click.option(
        "--image-version",
        "version",
        type=WholeNumber(0, STATEMENT_VERSION_MAX),
        metavar="N",
        show_default="date and time, as 202611301405",
        help="Signed version; agents can refuse older ones.",
    ),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="Kind of machine it suits; repeatable."),
    click.option("--not-after", metavar="TIME", help="Time from which agents refuse the image."),
    click.option(
        "--patches",
        type=click.Choice([policy.value for policy in PatchPolicy]),
        show_default="none",
        help="Source of machine patches that agents may apply.",
    ),
    click.option(
        "--patch-partitions",
        metavar="N,N,…|all",
        show_default="the seed partition",
        help="Partitions that machine patches may change.",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class StatementFields:
    """The operator's choices; None for the value of the present statement, or the default.

    Attributes:
        name: the signed name.
        version: the version.
        tags: the tags; empty for those of the present statement.
        not_after: the expiry, or ``never``.
        patches: source of patches.
        patch_partitions: numbers of partitions that patches may change, or ``all``.
    """

    name: str | None = None
    version: int | None = None
    tags: tuple[str, ...] = ()
    not_after: str | None = None
    patches: PatchPolicy | None = None
    patch_partitions: str | None = None

    def statement(
        self, image_id: bytes, image_name: str, now: datetime.datetime, present: ImageStatement | None = None
    ) -> ImageStatement:
        """Return the statement to sign.

        Args:
            image_id: the image.
            image_name: its name from the packing.
            now: the clock, for the default version.
            present: the statement that it replaces.

        Raises:
            ConfigurationError: a field is out of its range.
        """
        not_after = parse_time_option(self.not_after)
        if present is not None and self.not_after is None:
            not_after = present.not_after
        statement = ImageStatement(
            image_id=image_id,
            name=self.name or (present.name if present is not None else signed_name(image_name)),
            version=self.version if self.version is not None else next_version(now, present),
            tags=tuple(sorted(set(self.tags))) or (present.tags if present is not None else ()),
            not_after=not_after,
            patches=self.patches or (present.patches if present is not None else PatchPolicy.NONE),
            extensions=self._extensions(present),
        )
        if statement.patches is PatchPolicy.NONE and self.patch_partitions is not None:
            raise ConfigurationError(
                "--patch-partitions has no effect on an image that accepts no patches: give --patches signed or "
                "--patches daemon too"
            )
        statement.encode()  # checks the fields before a passphrase is asked for
        return statement

    def signer(self, source: ImageFile, key: SecretKey | None) -> Callable[[ImageHeader], ImageHeader]:
        """Return a function that signs the header of an image made from ``source``, as the source's statement says.

        Args:
            source: the open image; its statement has the values that the operator didn't choose.
            key: the signing key; None leaves headers unsigned.

        Raises:
            ConfigurationError: a field is out of its range, which is found before anything is copied.
        """
        from sender.imaging.image_signature import ImageSignature

        present = ImageSignature.of(source.header).statement
        now = datetime.datetime.now(datetime.UTC)
        name = source.manifest.name
        self.statement(source.header.image_id, name, now, present)

        def sign(header: ImageHeader) -> ImageHeader:
            if key is None:
                return header
            statement = self.statement(header.image_id, name, now, present)
            return header.with_signature(sign_statement(statement, key), key.public)

        return sign

    def _extensions(self, present: ImageStatement | None) -> tuple[tuple[str, str], ...]:
        """Return the extensions of the present statement with the chosen partitions."""
        extensions = dict(present.extensions) if present is not None else {}
        if self.patches is PatchPolicy.NONE:
            extensions.pop(PATCH_PARTITIONS, None)
        if self.patch_partitions is not None:
            extensions[PATCH_PARTITIONS] = patch_partitions_text(self.patch_partitions)
        return tuple(sorted(extensions.items()))


def patch_partitions_text(text: str) -> str:
    """Return the canonical list of partition numbers, or ``all``.

    Raises:
        ConfigurationError: it is neither.
    """
    if text == ALL_PARTITIONS:
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= PARTITIONS_MAX for part in parts):
        raise ConfigurationError(
            f"--patch-partitions {text!r}: give numbers of partitions such as 1,5 (see `diskcast inspect`), or all"
        )
    return ",".join(str(number) for number in sorted({int(part) for part in parts}))


def statement_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a statement; the command gets them as ``fields``."""

    @functools.wraps(function)
    def with_fields(
        *args: object,
        version: int | None,
        tags: tuple[str, ...],
        not_after: str | None,
        patches: str | None,
        patch_partitions: str | None,
        **kwargs: object,
    ) -> object:
        policy = None if patches is None else PatchPolicy(patches)
        fields = StatementFields(None, version, tags, not_after, policy, patch_partitions)
        return function(*args, fields=fields, **kwargs)

    decorated: Callable[..., Any] = with_fields
    for option in reversed(_OPTIONS):  # the last one applied is the first one in --help
        decorated = option(decorated)
    return decorated


def signed_name(image_name: str) -> str:
    """Return the default of the signed name: the image's, in printable ASCII."""
    ascii_name = "".join(letter if " " <= letter <= "~" else "_" for letter in image_name)
    return ascii_name.strip()[:STATEMENT_NAME_MAX].strip() or "image"


def next_version(now: datetime.datetime, present: ImageStatement | None = None) -> int:
    """Return the default version: the time in UTC as digits, and always more than the present one.

    A version that rises without an operator's attention makes rollback floors work without it too.
    """
    version = int(now.astimezone(datetime.UTC).strftime("%Y%m%d%H%M"))
    return version if present is None else min(max(version, present.version + 1), STATEMENT_VERSION_MAX)


def sign_statement(statement: ImageStatement, key: SecretKey) -> SignedStatement:
    """Return the statement with its signature."""
    data = statement.encode()
    return SignedStatement(data, signature_of(data, key).file_text())


def signature_of(data: bytes, key: SecretKey) -> Signature:
    """Return the signature of a statement's text; the trusted comment repeats its fields for people.

    Raises:
        TrustError: it isn't a statement.
    """
    statement = parse_statement_untrusted(data)
    comment = f"diskcast image {statement.name} version {statement.version}"
    return key.sign(data, trusted_comment=comment)
