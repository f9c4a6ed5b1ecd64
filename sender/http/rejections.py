"""Rejected connections and requests, counted by reason: the traces of an attack."""

from __future__ import annotations

import collections
import enum
from typing import Final

from prometheus_client import Counter, disable_created_metrics


class Api(enum.StrEnum):
    """The servers of this program; labels of a metric."""

    DAEMON = "daemon"
    CAST = "cast"
    """The control API of any cast."""
    NETBOOT = "netboot"
    """The files and scripts of a boot service."""


class Rejection(enum.StrEnum):
    """Reasons for which a server rejects a connection or a request; labels of a metric."""

    ADDRESS_FULL = "address_full"
    """Half of all connections come from this address, and all of them are members in the middle of a request."""
    SERVER_FULL = "server_full"
    EVICTED = "evicted"
    """A stranger, or a member without a request, was closed for a new connection."""
    HANDSHAKE = "handshake"
    """The TLS handshake failed or took too long."""
    HEAD_TIMEOUT = "head_timeout"
    BODY_TIMEOUT = "body_timeout"
    READER_STALLED = "reader_stalled"
    """The client doesn't read the response."""
    BAD_REQUEST = "bad_request"
    """Not HTTP, or a body whose length is ambiguous or missing."""
    UNAUTHORISED = "unauthorised"
    """No secret, or one that isn't valid."""
    FORBIDDEN = "forbidden"
    """A valid secret of the wrong role, or a cross-site request."""
    TOO_MANY_FAILURES = "too_many_failures"
    """Too many wrong secrets from this address."""


disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series, without use

HTTP_REJECTIONS: Final = Counter(
    "diskcast_http_rejections",
    "Rejected connections and requests of the daemon's API and of the casts' control APIs, by reason.",
    ("api", "reason"),
    registry=None,
)
for _api in Api:
    for _reason in Rejection:
        HTTP_REJECTIONS.labels(_api.value, _reason.value)  # a counter that appears has no first increase


class Rejections:
    """The rejections of one server.

    Attributes:
        counts: count by reason.
    """

    def __init__(self, api: Api) -> None:
        """Count for ``api``."""
        self._api = api
        self.counts = collections.Counter[Rejection]()

    def count(self, reason: Rejection) -> None:
        """Count a rejection, here and in :data:`HTTP_REJECTIONS`."""
        self.counts[reason] += 1
        HTTP_REJECTIONS.labels(self._api.value, reason.value).inc()
