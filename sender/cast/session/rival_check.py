"""The question over TLS that tells a second sender of a cast from a forged ANNOUNCE."""

from __future__ import annotations

import contextlib
import http.client
import urllib.parse
from http import HTTPStatus
from typing import Final

from protocol.constants import CONTROL_BODY_BYTES_MAX
from protocol.control.control_messages import API_BASE, cast_from_json_untrusted, parse_json_untrusted
from protocol.errors import DiskcastError
from protocol.model.session_records import CastParameters
from protocol.program.pinned_tls import pinned_context
from sender.cast.session.admission import CastAccess

_TIMEOUT_S: Final = 2.0
"""Timeout of connecting and of each read; a sender answers within milliseconds."""


def is_confirmed_rival_untrusted(
    control_url: str, source: str, parameters: CastParameters, access: CastAccess
) -> bool:
    """Return whether another run of this cast, of the same user, answers at an announced URL. Blocks.

    Only a program with this sender's own certificate, which accepts the cast's own bearer and describes another run of
    the cast, is a rival; this sender's own control API, under whatever address, is not. The URL must be at the source
    of the announcement: nobody may direct this sender's connections elsewhere.

    Args:
        control_url: the announced URL, from the network.
        source: source address of the announcement.
        parameters: this sender's own cast.
        access: the way into it.
    """
    try:
        parts = urllib.parse.urlsplit(control_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.scheme != "https" or host is None or port is None or host != source.partition("%")[0]:
        return False
    connection = http.client.HTTPSConnection(
        host, port, timeout=_TIMEOUT_S, context=pinned_context([access.pin])
    )
    try:
        with contextlib.closing(connection):
            path = f"{API_BASE}/casts/{parameters.cast_id:08x}"
            connection.request("GET", path, headers={"Authorization": f"Bearer {access.own_bearer}"})
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                return False
            cast = cast_from_json_untrusted(parse_json_untrusted(response.read(CONTROL_BODY_BYTES_MAX)))
    except (OSError, http.client.HTTPException, DiskcastError):
        return False
    return cast.cast_id == parameters.cast_id and cast.incarnation != parameters.incarnation
