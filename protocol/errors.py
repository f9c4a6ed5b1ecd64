"""Every error that diskcast raises on purpose, with its fixed exit code.

One tree, rooted at :class:`DiskcastError`. A message names the thing, the cause and the mend. Exit codes are
a contract with scripts: they are never reused, and ``docs/reference/exit-codes.md`` is generated from this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar


class DiskcastError(Exception):
    """An internal error: please report it.

    Attributes:
        details: what the last JSON line says beside the error, for example how far each receiver came.
    """

    exit_code: ClassVar[int] = 1
    details: Mapping[str, object] = MappingProxyType({})


# -- configuration: what the operator asked for can't be done as asked ---------------------------------------


class ConfigurationError(DiskcastError):
    """An option or a combination of options can't work."""

    exit_code = 10


class InterfaceError(ConfigurationError):
    """The network interface doesn't exist, is down or has no usable address."""

    exit_code = 11


class AddressInUseError(ConfigurationError):
    """A port that diskcast needs is taken by another program."""

    exit_code = 12


class MissingDependencyError(ConfigurationError):
    """A part of diskcast that this command needs isn't installed."""

    exit_code = 13


# -- image: the source disk or the image file -----------------------------------------------------------------


class ImageError(DiskcastError):
    """The source or the image file can't be used."""

    exit_code = 20


class SourceError(ImageError):
    """The source of ``pack`` is missing, empty or unreadable."""

    exit_code = 21


class ImageDamagedError(ImageError):
    """The image file is truncated or altered; the message names the block where there is one."""

    exit_code = 22


class ImageFormatError(ImageError):
    """The file isn't a diskcast image, or was made by a newer diskcast."""

    exit_code = 23


class ImageChangedError(ImageDamagedError):
    """The image file was written to or cut short while it was in use; what was read before was right."""

    exit_code = 24


class SourceInUseError(SourceError):
    """The source of ``pack`` is mounted writable or held otherwise: what is read of it may not fit together."""

    exit_code = 25


# -- target: the disk or file that a receiver writes ----------------------------------------------------------


class TargetError(DiskcastError):
    """The target can't be used; nothing was written."""

    exit_code = 30


class TargetTooSmallError(TargetError):
    """The target is smaller than the image; nothing was written."""

    exit_code = 31


class TargetIsImageError(TargetError):
    """The target is the image file itself, or what that file lies on; nothing was written."""

    exit_code = 32


class TargetInUseError(TargetError):
    """The target is mounted, swap, part of something larger or open elsewhere; nothing was written."""

    exit_code = 33


class TargetIsSystemDiskError(TargetError):
    """The target is the disk that this machine runs from; nothing was written."""

    exit_code = 34


class TargetReadOnlyError(TargetError):
    """The target is write-protected; nothing was written."""

    exit_code = 35


class AmbiguousTargetError(TargetError):
    """More than one disk fits what was said of the target; nothing was written."""

    exit_code = 36


class TargetIncompatibleError(TargetError):
    """The image can't work on this target: other sectors, or a partition for a whole disk; nothing was written."""

    exit_code = 37


class FitError(DiskcastError):
    """The image was written and verified, but fitting it to its disk or its machine's firmware failed."""

    exit_code = 38


# -- session: the cast as a conversation ----------------------------------------------------------------------


class SessionError(DiskcastError):
    """The cast couldn't be joined or went wrong as a conversation."""

    exit_code = 40


class NoSenderError(SessionError):
    """No sender was found before the deadline."""

    exit_code = 41


class SenderLostError(SessionError):
    """The sender went silent and didn't come back before the deadline; the target is incomplete."""

    exit_code = 42


class CastCancelledError(SessionError):
    """The operator cancelled the cast; the target is incomplete."""

    exit_code = 43


class CastFailedError(SessionError):
    """The sender ended the cast because of an error on its side; the target is incomplete."""

    exit_code = 44


class JoinRefusedError(SessionError):
    """The sender refused this receiver."""

    exit_code = 45


class AmbiguousCastError(SessionError):
    """Several casts are announced on the group and none was chosen."""

    exit_code = 46


class DroppedError(SessionError):
    """The sender gave this receiver up; the target is incomplete."""

    exit_code = 47


# -- storage: reading and writing while the cast runs ---------------------------------------------------------


class StorageError(DiskcastError):
    """Reading or writing failed; the target is incomplete."""

    exit_code = 50


class VerificationError(StorageError):
    """The target read back differs from the image; the message names the block."""

    exit_code = 51


# -- outcome of a cast, as the sender sees it -----------------------------------------------------------------


class ReceiversIncompleteError(DiskcastError):
    """The cast ended, but not every required receiver verified every byte."""

    exit_code = 60


class NotEnoughReceiversError(DiskcastError):
    """Fewer receivers joined before the deadline than were asked for."""

    exit_code = 61


class DoctorFoundProblemsError(DiskcastError):
    """The doctor found something that would stop a cast."""

    exit_code = 62


# -- protocol: what comes from the network is never trusted ----------------------------------------------------


class ProtocolError(DiskcastError):
    """The protocol was broken by this program's own use of it, or by its peer."""

    exit_code = 70


class WireError(ProtocolError):
    """A datagram or message that doesn't follow the wire format; counted by ``reason`` and dropped.

    Attributes:
        reason: a short, bounded label for counting; one of :data:`protocol.wire.codec.REJECT_REASONS`.
    """

    exit_code = 71

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class DecodeError(ProtocolError):
    """Too few or inconsistent symbols were given to the erasure decoder."""

    exit_code = 72


# -- daemon: its database, and its API as seen by a client ----------------------------------------------------


class DatabaseError(DiskcastError):
    """The daemon's database can't be used; the message says what to do."""

    exit_code = 80


class DatabaseDamagedError(DatabaseError):
    """The database file is damaged; it was left as it is."""

    exit_code = 81


class DatabaseUnavailableError(DatabaseError):
    """The database server doesn't answer, or the database file is locked by another program."""

    exit_code = 82


class DatabaseFullError(DatabaseError):
    """The disk that the database lies on is full; nothing was changed."""

    exit_code = 83


class ServerUnreachableError(DiskcastError):
    """The daemon's API doesn't answer."""

    exit_code = 85


class ServerRefusedError(DiskcastError):
    """The daemon's API refused what was asked: no such thing, not allowed, or not possible now."""

    exit_code = 86


class CastNotDoneError(DiskcastError):
    """The cast that was waited for ended, but not every machine that was asked for verified every byte."""

    exit_code = 87


EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def error_result(error: BaseException) -> dict[str, object]:
    """The last JSON line of a program that failed, the same from every command."""
    exit_code = error.exit_code if isinstance(error, DiskcastError) else DiskcastError.exit_code
    details = error.details if isinstance(error, DiskcastError) else {}
    return {
        "event": "result",
        "ok": False,
        "error": str(error),
        "error_class": type(error).__name__,
        "exit_code": exit_code,
        **details,
    }


def leaf_errors(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors inside ``group`` and the groups within it, in their order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaf_errors(error)
        else:
            yield error
