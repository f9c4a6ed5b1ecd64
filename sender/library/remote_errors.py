"""Errors of remote images, and the translation of the libraries' exceptions to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from protocol.errors import DiskcastError, ImageError
from sender.library.location import Location
from sender.library.remote_addresses import PrivateAddressError, RedirectedError

if TYPE_CHECKING:
    import aiohttp


class RemoteError(ImageError):
    """A remote image is unavailable.

    Attributes:
        transient: a retry may succeed.
    """

    exit_code = ImageError.exit_code

    def __init__(self, text: str, *, transient: bool) -> None:
        super().__init__(text)
        self.transient = transient


class RemoteChangedError(ImageError):
    """The file behind the URL was replaced while it was read."""

    exit_code = ImageError.exit_code


class NoRangesError(Exception):
    """The server doesn't support range requests."""


_TRANSIENT_CODES: Final = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "500", "502", "503", "504"}
)

_ACCESS: Final = (
    "check the credentials (HTTP: the URL or ~/.netrc; "
    "S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws)"
)


@contextlib.contextmanager
def translated(location: Location) -> Iterator[None]:
    """Translate the libraries' exceptions, whose texts contain URLs with credentials."""
    try:
        yield
    except (DiskcastError, NoRangesError):
        raise
    except Exception as error:  # noqa: BLE001  each library has its own exceptions
        raise _translate(location.shown, error) from None


def _translate(shown: str, error: BaseException) -> DiskcastError:
    import aiohttp

    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, aiohttp.ClientError | OSError):
        error = cause  # fsspec raises FileNotFoundError for every failure
    match error:
        case RedirectedError():
            return RemoteError(f"{shown}: the server redirects to another URL; use that URL", transient=False)
        case aiohttp.ClientResponseError():
            return _of_status(shown, error.status)
        case FileNotFoundError():
            return _of_status(shown, 404)
        case PermissionError():
            return _of_status(shown, 403)
        case TimeoutError():  # the timeouts of fsspec and aiohttp are subclasses
            return RemoteError(f"{shown}: the server doesn't answer in time", transient=True)
        case aiohttp.ClientError():
            return _of_http(shown, error)
    return _of_s3(shown, error, cause)


def _of_http(shown: str, error: aiohttp.ClientError) -> DiskcastError:
    import aiohttp

    match error:
        case aiohttp.ClientConnectorCertificateError():
            return RemoteError(
                f"{shown}: the server's certificate isn't trusted; add its authority to this machine's (SSL_CERT_FILE)",
                transient=False,
            )
        case aiohttp.InvalidURL():
            return RemoteError(f"{shown} isn't a URL", transient=False)
        case aiohttp.ClientConnectorError(os_error=PrivateAddressError()):
            return RemoteError(
                f"{shown}: the server isn't at a public address; only servers of library.remotes may be elsewhere",
                transient=False,
            )
        case aiohttp.ClientConnectorError():
            text = error.os_error.strerror or "no connection"
            return RemoteError(f"{shown}: the server can't be reached: {text}", transient=True)
    return RemoteError(f"{shown}: the connection broke ({type(error).__name__})", transient=True)


def _of_s3(shown: str, error: BaseException, cause: BaseException | None) -> DiskcastError:
    kind = type(error).__name__
    response = getattr(cause, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))[:64]
    if kind == "FileExpired" or code in ("PreconditionFailed", "412"):
        return RemoteChangedError(f"{shown} was replaced while it was read")
    if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return RemoteError(f"{shown}: there are no credentials for it; {_ACCESS}", transient=False)
    if code in _TRANSIENT_CODES:
        return RemoteError(f"{shown}: the server answers {code}", transient=True)
    if code:
        return RemoteError(f"{shown}: the server refuses: {code}", transient=False)
    return RemoteError(f"{shown} can't be read ({kind})", transient=True)


def _of_status(shown: str, status: int) -> DiskcastError:
    match status:
        case 412:
            return RemoteChangedError(f"{shown} was replaced while it was read")
        case 401 | 403:
            return RemoteError(f"{shown}: access is refused ({status}); {_ACCESS}", transient=False)
        case 404 | 410:
            return RemoteError(
                f"{shown} doesn't exist ({status}); put the image there, or correct the URL", transient=False
            )
    return RemoteError(
        f"{shown}: the server answers with status {status}",
        transient=status >= 500 or status in (408, 416, 425, 429),
    )
