"""Checked URLs of remote images: an allow-list of schemes, and a form without credentials."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Final

from protocol.errors import ConfigurationError
from sender.library.image_probe import SUFFIX

SCHEMES: Final = ("http", "https", "s3")
"""No scheme reads this machine's own files: a user who may add images may not read them."""

URL_CHARS_MAX: Final = 4096
"""Length that servers accept; S3 keys have 1024 bytes."""

_HARMLESS: Final = "%/:?#[]@!$&'()*+,;=~-._"


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """A checked URL.

    Attributes:
        url: the URL with its credentials, if any; never shown.
        shown: the URL without user and password.
    """

    url: str = dataclasses.field(repr=False)
    shown: str

    @property
    def scheme(self) -> str:
        """Scheme, one of :data:`SCHEMES`."""
        return self.url.partition(":")[0]

    @property
    def is_prefix(self) -> bool:
        """True if the URL stands for all images below it."""
        return self.shown.endswith("/")

    @property
    def file_name(self) -> str:
        """Last part of its path, for people, without the suffix."""
        name = self.shown.rstrip("/").rpartition("/")[2].removesuffix(SUFFIX)
        if self.scheme != "s3":
            name = urllib.parse.unquote(name)
        return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


def parse_location(url: str) -> Location:
    """Check a URL.

    Raises:
        ConfigurationError: it isn't a valid URL of an image or a prefix.
    """
    if len(url) > URL_CHARS_MAX or not url.isprintable():
        raise ConfigurationError(
            f"the URL is too long or contains control characters: use at most {URL_CHARS_MAX} printable characters"
        )
    try:
        parts = urllib.parse.urlsplit(url)
        shown_host = _without_user(parts)
    except ValueError:
        raise ConfigurationError("this isn't a URL: write for example https://HOST/images/lab.dci") from None
    shown = urllib.parse.urlunsplit((parts.scheme, shown_host, parts.path, "", ""))
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(
            f"{shown!r} isn't an image's URL: use http://, https:// or s3://; a file of this machine belongs in a "
            "folder of library.folders"
        )
    if not shown_host:
        raise ConfigurationError(
            f"{shown!r} has no {'bucket' if parts.scheme == 's3' else 'server'}: write one after ://"
        )
    if not parts.path.endswith((SUFFIX, "/")):
        raise ConfigurationError(
            f"{shown} must end in {SUFFIX}, for one image, or in /, for all images below it"
        )
    if parts.fragment or parts.query or "?" in url:
        raise ConfigurationError(f"{shown}: remove the query or fragment: a signature can't be stored safely")
    if parts.scheme == "s3" and "@" in parts.netloc:
        raise ConfigurationError(
            f"{shown}: remove the keys from the URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, use ~/.aws, or "
            "use the machine's role"
        )
    return Location(url if parts.scheme == "s3" else urllib.parse.quote(url, safe=_HARMLESS), shown)


def _without_user(parts: urllib.parse.SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme != "s3":
        assert parts.port is None or parts.port >= 0  # raises ValueError for an invalid port
        if not parts.hostname:
            return ""
    elif not re.fullmatch(r"[a-z0-9.-]{3,63}", host):
        return ""
    return host


def below(prefix: Location, link: str) -> Location | None:
    """Return the location of a link on the page of ``prefix``; None unless it is an image directly below it."""
    try:
        url = urllib.parse.urljoin(prefix.url, link)
        if not url.startswith(prefix.url):  # the page's credentials are sent to no other place
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
