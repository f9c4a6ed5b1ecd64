"""Where an image can be fetched from: URLs of an allow-list of schemes, shown without their credentials."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Final

from protocol.errors import ConfigurationError
from sender.library.image_probe import SUFFIX

SCHEMES: Final = ("http", "https", "s3")
"""Nothing that reads this machine's own files: whoever may add an image may not read them."""

URL_CHARS_MAX: Final = 4096
"""As long as servers take them; S3 keys have 1024 bytes."""

_HARMLESS: Final = "%/:?#[]@!$&'()*+,;=~-._"


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """A URL that was checked.

    Attributes:
        url: with its credentials, if it has any; never to be shown.
        shown: without user and password.
    """

    url: str = dataclasses.field(repr=False)
    shown: str

    @property
    def scheme(self) -> str:
        """One of :data:`SCHEMES`."""
        return self.url.partition(":")[0]

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for all images below it."""
        return self.shown.endswith("/")

    @property
    def file_name(self) -> str:
        """The last part of its path, for people, without the suffix."""
        name = self.shown.rstrip("/").rpartition("/")[2].removesuffix(SUFFIX)
        if self.scheme != "s3":
            name = urllib.parse.unquote(name)
        return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


def parse_location(url: str) -> Location:
    """Check a URL.

    Raises:
        ConfigurationError: it can't be one of an image, or of a prefix.
    """
    if len(url) > URL_CHARS_MAX or not url.isprintable():
        raise ConfigurationError(
            f"this isn't an image's URL: write at most {URL_CHARS_MAX} printable characters"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        shown_host = _without_user(parts)
    except ValueError:
        raise ConfigurationError("this isn't a URL: write for example https://HOST/images/lab.dci") from None
    shown = urllib.parse.urlunsplit((parts.scheme, shown_host, parts.path, "", ""))
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(
            f"{shown!r} can't be an image's URL: write one that begins with http://, https:// or s3://; a file of this "
            "machine goes into a folder of library.folders"
        )
    if not shown_host:
        raise ConfigurationError(f"{shown!r} names no {'bucket' if parts.scheme == 's3' else 'server'}")
    if not parts.path.endswith((SUFFIX, "/")):
        raise ConfigurationError(
            f"{shown} must end in {SUFFIX}, for one image, or in /, for all images below it"
        )
    if parts.fragment or parts.query or "?" in url:
        raise ConfigurationError(
            f"{shown}: leave out what follows it: a query or a signature can't be kept safely"
        )
    if parts.scheme == "s3" and "@" in parts.netloc:
        raise ConfigurationError(
            f"{shown}: leave the keys out of the URL; they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from "
            "~/.aws, or from the machine's role"
        )
    return Location(url if parts.scheme == "s3" else urllib.parse.quote(url, safe=_HARMLESS), shown)


def _without_user(parts: urllib.parse.SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme != "s3":
        assert parts.port is None or parts.port >= 0  # raises ValueError for what isn't a port
        if not parts.hostname:
            return ""
    elif not re.fullmatch(r"[a-z0-9.-]{3,63}", host):
        return ""
    return host


def below(prefix: Location, link: str) -> Location | None:
    """The image that a link on the page of ``prefix`` means; None unless it lies directly below it."""
    try:
        url = urllib.parse.urljoin(prefix.url, link)
        if not url.startswith(prefix.url):  # credentials of the page go nowhere else
            shown = urllib.parse.urljoin(prefix.shown, link)
            if not shown.startswith(prefix.shown):
                return None
            url = prefix.url + shown[len(prefix.shown) :]
        name = url[len(prefix.url) :]
        if not name.endswith(SUFFIX) or name == SUFFIX or any(letter in name for letter in "/?#"):
            return None
        return parse_location(url)
    except (ValueError, ConfigurationError):
        return None
