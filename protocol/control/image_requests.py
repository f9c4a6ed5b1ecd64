"""A machine's request to be imaged, as JSON over HTTP: a technician at its console chooses, an operator decides.

::

    GET  /api/v1/machines/{machine_id}/images              images of the library, with their signatures
    POST /api/v1/machines/{machine_id}/requests            request an image, for a disk that the technician confirmed
    GET  /api/v1/machines/{machine_id}/requests/{code}     state of that request

The machine's secret is the bearer, for its own paths only. An approved request becomes a cast for this one machine,
which the next check-in assigns. The request itself starts nothing.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from protocol.constants import HASH_BYTES, IMAGE_BYTES_MAX, NAME_BYTES_MAX
from protocol.model.session_records import CastId
from protocol.schema.json_fields import (
    ChoiceField,
    HexBytes,
    HexInteger,
    Integer,
    JsonRecord,
    Listed,
    Optional,
    PrintableLines,
    PrintableText,
)
from protocol.trust.image_policy import OfferedImage
from protocol.trust.minisign import SIGNATURE_TEXT_BYTES_MAX
from protocol.trust.statement import STATEMENT_BYTES_MAX, SignedStatement

IMAGES_OFFERED_MAX: Final = 200
"""Images that a machine is shown: with their signatures 600 KB, within the answer that an agent reads."""

DISK_TEXT_BYTES_MAX: Final = 200
"""Length of the description of a disk: path, model, serial number and size."""

REQUEST_CODE_BYTES_MAX: Final = 16


class RequestState(enum.StrEnum):
    """State of a request."""

    WAITING = "waiting"
    """An operator has to decide."""
    APPROVED = "approved"
    """It has a cast."""
    DECLINED = "declined"
    EXPIRED = "expired"
    """Nobody has decided in time, or the machine has made a later request."""


@dataclasses.dataclass(frozen=True, slots=True)
class LibraryImage:
    """An image that a machine may request.

    Attributes:
        statement: the signed statement; empty for an unsigned image.
        signature: its signature.
    """

    image_id: bytes
    name: str
    raw_bytes: int
    statement: str
    signature: str

    @property
    def offered_image(self) -> OfferedImage:
        """Return the image as the daemon describes it, to be accepted or refused."""
        signed = SignedStatement(self.statement.encode(), self.signature) if self.statement else None
        return OfferedImage(self.image_id, self.name, signed)


@dataclasses.dataclass(frozen=True, slots=True)
class LibraryImages:
    """The images that a machine may request."""

    images: tuple[LibraryImage, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ImageChoice:
    """A technician's choice.

    Attributes:
        disk: the disk that the technician confirmed, for the operator.
    """

    image_id: bytes
    disk: str


@dataclasses.dataclass(frozen=True, slots=True)
class RequestStatus:
    """A request, as its machine sees it.

    Attributes:
        code: code that the machine shows, and the operator compares.
        cast_id: the cast of an approved request.
        decided_by: the operator.
    """

    code: str
    state: RequestState
    cast_id: CastId | None
    decided_by: str


LIBRARY_IMAGE: JsonRecord[LibraryImage] = JsonRecord(
    LibraryImage,
    {
        "image_id": HexBytes(HASH_BYTES),
        "name": PrintableText(NAME_BYTES_MAX),
        "raw_bytes": Integer(1, IMAGE_BYTES_MAX),
        "statement": PrintableLines(STATEMENT_BYTES_MAX),
        "signature": PrintableLines(SIGNATURE_TEXT_BYTES_MAX),
    },
)

LIBRARY_IMAGES: JsonRecord[LibraryImages] = JsonRecord(
    LibraryImages, {"images": Listed(LIBRARY_IMAGE, IMAGES_OFFERED_MAX)}
)

IMAGE_CHOICE: JsonRecord[ImageChoice] = JsonRecord(
    ImageChoice, {"image_id": HexBytes(HASH_BYTES), "disk": PrintableText(DISK_TEXT_BYTES_MAX, bytes_min=1)}
)

REQUEST_STATUS: JsonRecord[RequestStatus] = JsonRecord(
    RequestStatus,
    {
        "code": PrintableText(REQUEST_CODE_BYTES_MAX, bytes_min=1),
        "state": ChoiceField({state.value: state for state in RequestState}),
        "cast_id": Optional(HexInteger()),
        "decided_by": PrintableText(NAME_BYTES_MAX),
    },
)


def images_path(machine_id: str) -> str:
    """Return the path of the images that a machine may request, below ``API_BASE``."""
    return f"/machines/{machine_id}/images"


def requests_path(machine_id: str, code: str = "") -> str:
    """Return the path of a machine's requests, or of the one with ``code``, below ``API_BASE``."""
    return f"/machines/{machine_id}/requests" + (f"/{code}" if code else "")
