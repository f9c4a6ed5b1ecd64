"""Uploads and a daemon that is killed: the client gets a clear answer, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

from tests.support.network.lab import wait_until
from tests.support.programs.serving import Daemon

BYTES = {"Content-Type": "application/octet-stream"}
TOTAL_BYTES = 1 << 20


def _put(daemon: Daemon, upload_id: str, offset: int, part: bytes) -> int:
    path = f"/images/uploads/{upload_id}/content"
    return daemon.api.put(path, params={"offset": offset}, content=part, headers=BYTES).status_code


def test_an_upload_starts_again_after_a_restart(tmp_path: Path) -> None:
    own = tmp_path / "state" / "images"
    body = {"file_name": "tiny.raw", "total_bytes": TOTAL_BYTES}
    settings = {"library": {"folders": [str(own)], "scan_interval_s": 0.2}}
    with Daemon(tmp_path, settings=settings, state_directory=tmp_path / "state") as daemon:
        lost = daemon.ask("POST", "/images/uploads", body)["upload_id"]
        assert _put(daemon, lost, 0, bytes(TOTAL_BYTES // 2)) == 200
        assert [path.name for path in own.iterdir()] == [f".upload-{lost}"]
        daemon.restart()
        answer = daemon.api.put(
            f"/images/uploads/{lost}/content",
            params={"offset": TOTAL_BYTES // 2},
            content=b"x",
            headers=BYTES,
        )
        assert answer.status_code == 404
        assert "start again" in answer.json()["detail"]
        wait_until("the leftovers are removed", lambda: not list(own.iterdir()), describe=daemon.describe)
        again = daemon.ask("POST", "/images/uploads", body)["upload_id"]
        assert _put(daemon, again, 0, bytes(TOTAL_BYTES)) == 200

        def done() -> bool:
            return bool(daemon.ask("GET", f"/images/uploads/{again}")["state"] == "done")

        wait_until("the upload is an image", done, describe=daemon.describe)
