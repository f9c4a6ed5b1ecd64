"""Request bodies for images."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from protocol.constants import IMAGE_BYTES_MAX
from protocol.trust.minisign import SIGNATURE_TEXT_BYTES_MAX
from protocol.trust.statement import STATEMENT_BYTES_MAX
from sender.api.request_models.field_types import NAME_PATTERN, Name, Note, ShortText, whole_number
from sender.api.request_models.request_body import PatchBody, RequestBody, omittable
from sender.store.records.pruning import KEEP_LAST_DEFAULT, KEEP_LAST_MAX

URL_CHARACTERS_MAX: Final = 2000
URL_PATTERN: Final = r"^(?:https?|s3)://[^\s/]+/[^\s]*$"

Url = Annotated[str, StringConstraints(min_length=8, max_length=URL_CHARACTERS_MAX, pattern=URL_PATTERN)]
KeepLast = Annotated[
    int, Field(ge=1, le=KEEP_LAST_MAX, description="Newest versions of each name that stay.")
]
KeepDays = Annotated[
    int, Field(ge=0, le=3650, description="Images that are younger stay; 0 for no such rule.")
]
UploadFormat = Literal[
    "raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "gzip", "xz", "zstd", "bzip2", "partclone"
]
"""The formats of ``ForeignFormat`` that are one file."""
FileBytes = Annotated[int, Field(strict=False, ge=1, le=IMAGE_BYTES_MAX), BeforeValidator(whole_number)]


class ImageInput(RequestBody):
    """A remote image."""

    url: Url = Field(
        examples=["https://images.example/win11.dci"], description="URL of the image: http, https or s3."
    )
    name: ShortText = Field(default="", description="Name to use until the image has been read.")


class ImageChange(PatchBody):
    """Changes to an image's entry."""

    note: Note = omittable(str, description="Note for other operators.")
    pinned: bool = omittable(bool, description="Pruning keeps the image.")


class UploadInput(RequestBody):
    """A file to upload."""

    file_name: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=NAME_PATTERN)] = Field(
        examples=["lab.qcow2"], description="Name of the file, for people."
    )
    total_bytes: FileBytes = Field(description="Size of the file.")
    name: Name | None = Field(
        default=None,
        description="Name of a converted image, by default the file's; a .dci file keeps its own.",
    )
    format: UploadFormat | None = Field(
        default=None, description="Format of the file; by default it is detected from the content."
    )


class ExportInput(RequestBody):
    """A format to export an image to."""

    format: Literal["qcow2", "vmdk", "vhdx", "vdi", "vhd"] = Field(
        description="Format of the file; raw disks are downloads of the image."
    )


class PruneInput(RequestBody):
    """A pruning policy, and the preview that was looked at."""

    keep_last: Annotated[KeepLast, Field(strict=False), BeforeValidator(whole_number)] = KEEP_LAST_DEFAULT
    younger_than_days: Annotated[KeepDays, Field(strict=False), BeforeValidator(whole_number)] = 0
    preview: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] = Field(
        description="Digest from the preview of the same policy: exactly what it showed is deleted."
    )


class SignatureInput(RequestBody):
    """A signature that an operator made for an image."""

    statement: Annotated[str, StringConstraints(min_length=1, max_length=STATEMENT_BYTES_MAX)] = Field(
        description="Statement about the image, as it was signed."
    )
    signature: Annotated[str, StringConstraints(min_length=1, max_length=SIGNATURE_TEXT_BYTES_MAX)] = Field(
        description="Content of the .minisig file."
    )
    public_key: Annotated[str, StringConstraints(pattern="^RW[A-Za-z0-9+/]{54}$")] = Field(
        description="The signer's public key in one line."
    )
