"""The dashboard's files: read once, served from memory with an ETag, compressed where the browser accepts it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import mimetypes
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

WEB_FOLDER: Final = Path(__file__).resolve().parents[2] / "web"
INDEX: Final = "index.html"
_FILES_MAX: Final = 500
_FILE_BYTES_MAX: Final = 4 << 20
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
}
"""Media types by suffix: the system's table may be incomplete or wrong, and browsers refuse scripts of a wrong type."""


@dataclasses.dataclass(frozen=True, slots=True)
class WebFile:
    """A file as it is served."""

    data: bytes
    packed: bytes | None
    media_type: str
    etag: str


class DashboardFiles:
    """All files of the dashboard in a table by path, so that no path can leave the folder."""

    def __init__(self, folder: Path = WEB_FOLDER) -> None:
        """Read all files in ``folder``."""
        self._files: dict[str, WebFile] = {}
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        for path in paths[:_FILES_MAX]:
            if (
                path.name.startswith(".")
                or path.suffix in (".py", ".pyc")
                or path.stat().st_size > _FILE_BYTES_MAX
            ):
                continue
            self._files[path.relative_to(folder).as_posix()] = _read(path)

    def response(self, name: str, request: Request) -> Response | None:
        """Return the file ``name``, or 304 if the browser's copy is current; None if there is no such file."""
        file = self._files.get(name)
        if file is None:
            return None
        # Always revalidated: after an upgrade an old script would misread the new API.
        headers = {"ETag": file.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if file.etag in [
            tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
        ]:
            return Response(status_code=304, headers=headers)
        data = file.data
        if file.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            data = file.packed
            headers["Content-Encoding"] = "gzip"
        return Response(data, media_type=file.media_type, headers=headers)


def _read(path: Path) -> WebFile:
    data = path.read_bytes()
    media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    packed = gzip.compress(data, 9, mtime=0)
    return WebFile(
        data=data,
        packed=packed if len(packed) < len(data) * 0.9 else None,
        media_type=media_type,
        etag=f'"{hashlib.sha256(data).hexdigest()[:32]}"',
    )
