"""The HTTP server of boot files and scripts: GET and HEAD of a table of names, ranges included."""

from __future__ import annotations

import socket
from http import HTTPStatus
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response

from protocol.errors import ProtocolError
from sender.http.connections import admit
from sender.http.rejections import Api
from sender.http.server import HttpServer, ServerLimits
from sender.netboot.serve.boot_files import IPXE_SCRIPT
from sender.netboot.serve.boot_query import parse_ipxe_query_untrusted
from sender.netboot.serve.boot_scripts import ipxe_start_script
from sender.netboot.serve.served_names import ServedNames, normalised_name
from sender.netboot.serve.statistics import METRICS_TYPE, BootStatistics

METRICS_NAME: Final = "metrics"
_CONNECTIONS_MAX: Final = 1024
"""Each machine has one or two while it boots."""
_KEEP_ALIVE_S: Final = 15
_SHUTDOWN_S: Final = 2
_NO_CACHE: Final = {"Cache-Control": "no-store"}


class BootFileResponse(FileResponse):
    """A file of the medium, in larger pieces: an initrd has tens of megabytes."""

    chunk_size = 256 * 1024


def http_application(names: ServedNames, statistics: BootStatistics) -> FastAPI:
    """Return the application that serves ``names``."""
    application = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    async def respond(request: Request, path: str) -> Response:
        name = normalised_name(path)
        if name == IPXE_SCRIPT:
            return await _ipxe_response(request, names)
        if name == METRICS_NAME:
            return Response(statistics.render(), media_type=METRICS_TYPE)
        if request.method == "GET":  # a decision has a token in it, and isn't made for a HEAD
            script = await names.grub_script(name, _peer(request), by_http=True)
            if script is not None:
                return _text(script)
        file = names.file(name)
        if file is None or not _is_readable(file):
            return _text("no such file\n", HTTPStatus.NOT_FOUND)
        # A machine in the middle of a download keeps its connection, even if others take all the rest.
        admit(request)
        return BootFileResponse(file, media_type="application/octet-stream")

    application.add_api_route("/{path:path}", respond, methods=["GET", "HEAD"], response_model=None)
    return application


def http_server(listener: socket.socket, names: ServedNames, statistics: BootStatistics) -> HttpServer:
    """Return the server on ``listener``."""
    limits = ServerLimits(Api.NETBOOT, _CONNECTIONS_MAX, _KEEP_ALIVE_S, _SHUTDOWN_S)
    return HttpServer(http_application(names, statistics), listener, tls=None, limits=limits)


async def _ipxe_response(request: Request, names: ServedNames) -> Response:
    try:
        query = parse_ipxe_query_untrusted(request.url.query)
    except ProtocolError as error:
        return _text(f"{error}\n", HTTPStatus.BAD_REQUEST)
    if query is None:
        return _text(ipxe_start_script(names.service))
    if request.method == "HEAD":
        return _text("")
    return _text(await names.ipxe_script(query, _peer(request)))


def _peer(request: Request) -> IPv4Address:
    try:
        return IPv4Address(request.client.host if request.client else "")
    except AddressValueError:
        return IPv4Address(0)


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _text(text: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return PlainTextResponse(text, status, headers=_NO_CACHE)
