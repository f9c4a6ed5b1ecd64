"""Every error that diskcast raises on purpose, with its fixed exit code.

One tree, rooted at :class:`DiskcastError`. A message names the thing, the cause and the fix. Exit codes are
a contract with scripts: they are never reused, and ``docs/reference/exit-codes.md`` is generated from this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar


class DiskcastError(Exception):
    """An internal error: please report it.

    Attributes:
        details: further fields of the last JSON line, for example the progress of each receiver.
    """

    exit_code: ClassVar[int] = 1
    details: Mapping[str, object] = MappingProxyType({})


# -- configuration: options, files and installation ----------------------------------------------------------


class ConfigurationError(DiskcastError):
    """An option, a combination of options or a configuration file is invalid."""

    exit_code = 10


class InterfaceError(ConfigurationError):
    """The network interface doesn't exist, is down or has no suitable address."""

    exit_code = 11


class ResourcesError(ConfigurationError):
    """A limit of this process, of its memory or its open files, is too small."""

    exit_code = 15


class AddressInUseError(ConfigurationError):
    """Another program uses a port that diskcast needs."""

    exit_code = 12


class MissingDependencyError(ConfigurationError):
    """A package or library that this command needs isn't installed."""

    exit_code = 13


class SandboxUnavailableError(ConfigurationError):
    """The kernel can't confine a tool that reads foreign images; the message names the missing part."""

    exit_code = 14


# -- image: the source disk or the image file -----------------------------------------------------------------


class ImageError(DiskcastError):
    """The image file or its source can't be used."""

    exit_code = 20


class SourceError(ImageError):
    """The source of ``pack`` is missing, empty or unreadable."""

    exit_code = 21


class ImageDamagedError(ImageError):
    """The image file is truncated or altered; the message names the damaged block if there is one."""

    exit_code = 22


class ImageFormatError(ImageError):
    """The file isn't a diskcast image, or a newer version of diskcast created it."""

    exit_code = 23


class ImageChangedError(ImageDamagedError):
    """The image file was changed or truncated while it was in use; data read before that was correct."""

    exit_code = 24


class SourceInUseError(SourceError):
    """The source of ``pack`` is mounted writable or otherwise in use: an image of it could be inconsistent."""

    exit_code = 25


class ForeignImageError(SourceError):
    """Another program's image is damaged, refers to other files, is too large or of an unsupported kind."""

    exit_code = 26


class SourceUncleanError(SourceError):
    """A filesystem of the disk to capture wasn't unmounted cleanly, or a machine is hibernated in it."""

    exit_code = 27


# -- target: the disk or file that a receiver writes ----------------------------------------------------------


class TargetError(DiskcastError):
    """The target can't be used; nothing was written."""

    exit_code = 30


class TargetTooSmallError(TargetError):
    """The target is smaller than the image; nothing was written."""

    exit_code = 31


class TargetIsImageError(TargetError):
    """The target is the image file itself or the disk that holds it; nothing was written."""

    exit_code = 32


class TargetInUseError(TargetError):
    """The target is mounted, swap, part of a RAID or volume group, or otherwise in use; nothing was written."""

    exit_code = 33


class TargetIsSystemDiskError(TargetError):
    """The target is the disk that the running system is on; nothing was written."""

    exit_code = 34


class TargetReadOnlyError(TargetError):
    """The target is write-protected; nothing was written."""

    exit_code = 35


class AmbiguousTargetError(TargetError):
    """More than one disk matches the target; nothing was written."""

    exit_code = 36


class TargetIncompatibleError(TargetError):
    """The target's sector size differs, or it is a partition and the image a disk's; nothing was written."""

    exit_code = 37


class PreflightRefusedError(TargetError):
    """A machine's hardware doesn't fit the image, by the preflight; nothing was written."""

    exit_code = 39


class FitError(DiskcastError):
    """The image was written and verified, but adapting it to the disk's size or the machine's firmware failed."""

    exit_code = 38


# -- session: the exchange between a receiver and the sender --------------------------------------------------


class SessionError(DiskcastError):
    """The cast couldn't be joined, or the exchange with the sender failed."""

    exit_code = 40


class NoSenderError(SessionError):
    """No sender was found before the deadline."""

    exit_code = 41


class SenderLostError(SessionError):
    """The sender went silent and didn't return before the deadline; the target is incomplete."""

    exit_code = 42


class CastCancelledError(SessionError):
    """The operator cancelled the cast; the target is incomplete."""

    exit_code = 43


class CastFailedError(SessionError):
    """An error of the sender ended the cast; the target is incomplete."""

    exit_code = 44


class JoinRefusedError(SessionError):
    """The sender refused this receiver."""

    exit_code = 45


class AmbiguousCastError(SessionError):
    """Several casts are announced on the multicast group, and no option selects one."""

    exit_code = 46


class DroppedError(SessionError):
    """The sender dropped this receiver, which was too slow or silent; the target is incomplete."""

    exit_code = 47


class WireVersionError(SessionError):
    """Sender and receiver have different wire versions; nothing was written. The message names both."""

    exit_code = 48


class NotServedError(SessionError):
    """The sender is heard, but its data, or the requests for missing blocks, are lost; the target is incomplete."""

    exit_code = 49


# -- storage: reading and writing during the cast -------------------------------------------------------------


class StorageError(DiskcastError):
    """Reading or writing failed; the target is incomplete."""

    exit_code = 50


class VerificationError(StorageError):
    """The target, read back, differs from the image; the message names the block."""

    exit_code = 51


class TargetReplacedError(StorageError):
    """Another program removed, replaced, moved or truncated the target file while the image was written."""

    exit_code = 52


# -- outcome of a cast, as the sender sees it -----------------------------------------------------------------


class ReceiversIncompleteError(DiskcastError):
    """The cast ended, but not every required receiver verified every byte."""

    exit_code = 60


class NotEnoughReceiversError(DiskcastError):
    """Fewer receivers than required joined before the deadline."""

    exit_code = 61


class DoctorFoundProblemsError(DiskcastError):
    """The doctor found a problem that would stop a cast."""

    exit_code = 62


# -- protocol: input from the network is never trusted ---------------------------------------------------------


class ProtocolError(DiskcastError):
    """The peer or this program violated the protocol."""

    exit_code = 70


class WireError(ProtocolError):
    """A message from the peer violates the wire format.

    A datagram is counted by its reason and dropped.

    Attributes:
        reason: label of the counter; one of :data:`protocol.wire.codec.REJECT_REASONS`.
    """

    exit_code = 71

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class DecodeError(ProtocolError):
    """The erasure decoder received too few or inconsistent symbols."""

    exit_code = 72


# -- daemon: its database, and its API as seen by a client ----------------------------------------------------


class DatabaseError(DiskcastError):
    """The daemon's database can't be used; the message names the fix."""

    exit_code = 80


class DatabaseDamagedError(DatabaseError):
    """The database file is damaged; it wasn't changed."""

    exit_code = 81


class DatabaseUnavailableError(DatabaseError):
    """The database server doesn't answer, or another program has locked the database file."""

    exit_code = 82


class DatabaseFullError(DatabaseError):
    """The disk that holds the database is full; nothing was changed."""

    exit_code = 83


class ServerUnreachableError(DiskcastError):
    """The daemon's API doesn't answer."""

    exit_code = 85


class ServerRefusedError(DiskcastError):
    """The daemon's API refused the request: not found, not allowed, or not possible now."""

    exit_code = 86


class CastNotDoneError(DiskcastError):
    """The awaited cast ended, but not every requested machine verified every byte."""

    exit_code = 87


class MachinesNotAwakeError(DiskcastError):
    """Some of the machines to wake gave no sign of life in time, or have no known hardware address."""

    exit_code = 88


class CaptureFailedError(DiskcastError):
    """The capture was cancelled, or the machine or the daemon couldn't complete it."""

    exit_code = 89


# -- trust: signed images, pinned certificates, enrolled machines --------------------------------------------


class TrustError(DiskcastError):
    """The image, the sender or the daemon isn't trusted; nothing was written."""

    exit_code = 90


class UnsignedImageError(TrustError):
    """The image isn't signed by a key that this machine trusts; nothing was written."""

    exit_code = 91


class RollbackError(TrustError):
    """The image's signed version is below the lowest one allowed on this machine; nothing was written."""

    exit_code = 92


class CertificateError(TrustError):
    """The peer's certificate doesn't match the pin or the CA; nothing secret was sent to it."""

    exit_code = 93


class EnrolmentRefusedError(TrustError):
    """The daemon didn't admit this machine: unknown token, already claimed, or not approved in time."""

    exit_code = 94


class CaptureNotAllowedError(TrustError):
    """The agent doesn't make captures: it wasn't started with ``--allow-capture``."""

    exit_code = 95


class PatchRefusedError(TrustError):
    """The machine patch is damaged, for another machine or image, or not allowed; nothing was written."""

    exit_code = 96


EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def error_result(error: BaseException) -> dict[str, object]:
    """Return the last JSON line of a program that failed, the same for every command."""
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
    """Yield the errors inside ``group`` and its nested groups, in their order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaf_errors(error)
        else:
            yield error
