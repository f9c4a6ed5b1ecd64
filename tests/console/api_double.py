"""An API with scripted responses, for the failures that a real daemon rarely shows."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from click.testing import CliRunner, Result

from protocol.errors import DiskcastError
from protocol.preflight.judgement import Subject
from sender.cli import cli

AT: Final = "2026-11-21T10:00:00Z"


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A received request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A response: ``body`` as JSON unless it is bytes; with ``broken`` the connection ends too early."""

    body: Any = None
    status: int = 200
    content_type: str = "application/json"
    broken: bool = False


BROKEN: Final = Answer(b"", broken=True)
"""A connection that ends without a response."""


def problem(status: int, detail: str, **more: Any) -> Answer:
    """Return a problem document as the daemon sends it."""
    document = {
        "type": "about:blank",
        "title": "No",
        "status": status,
        "detail": detail,
        "instance": "r1",
        **more,
    }
    return Answer(document, status, "application/problem+json")


def page(*items: dict[str, Any], cursor: str | None = None) -> Answer:
    """Return one page of a list."""
    return Answer({"items": list(items), "next_cursor": cursor})


def events(*rows: tuple[str, dict[str, Any]], broken: bool = False) -> Answer:
    """Return a stream of events that ends."""
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in rows)
    return Answer(f": hello\n\n{text}".encode(), content_type="text/event-stream", broken=broken)


class ApiDouble:
    """An API that serves ``METHOD /path`` with its scripted responses in turn, the last one repeatedly."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._answers: dict[str, list[Answer | Callable[[Request], Answer]]] = {
            "GET /images": [page(image("lab"))]
        }
        double = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                request = Request(self.command, url.path, query, dict(self.headers.items()), body)
                double.requests.append(request)
                answer = double._next(request)
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.close_connection = True
                if answer is BROKEN:
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(content) + (1000 if answer.broken else 0)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answers(self, operation: str, *answers: Answer | Callable[[Request], Answer]) -> None:
        """Script the responses to ``operation``, such as ``GET /rooms``."""
        self._answers[operation] = list(answers)

    def asked(self, operation: str) -> list[Request]:
        """Return the requests to ``operation`` so far."""
        return [r for r in self.requests if f"{r.method} {r.path.removeprefix('/api/v1')}" == operation]

    def run(self, *arguments: str) -> Result:
        """Run a command against this API; ``Result.exception`` has the error and its exit code."""
        environment = {"DISKCAST_SERVER": self.url, "DISKCAST_TOKEN": None, "DISKCAST_TOKEN_FILE": None}
        return CliRunner().invoke(cli, arguments, env=environment)

    def _next(self, request: Request) -> Answer:
        script = self._answers.get(f"{request.method} {request.path.removeprefix('/api/v1')}")
        if not script:
            return problem(404, f"there is no {request.path}")
        answer = script.pop(0) if len(script) > 1 else script[0]
        return answer(request) if callable(answer) else answer


@contextlib.contextmanager
def api_double() -> Iterator[ApiDouble]:
    """Run an API with scripted responses."""
    double = ApiDouble()
    thread = threading.Thread(target=double._http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield double
    finally:
        double._http.shutdown()
        thread.join()
        double._http.server_close()


def lines(result: Result) -> list[dict[str, Any]]:
    """Return stdout's JSON lines."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def succeeded(result: Result) -> Result:
    """Check that a command succeeded; return its result."""
    if result.exception is not None:
        raise AssertionError(result.output) from result.exception
    return result


def refused(result: Result) -> DiskcastError:
    """Check that a command failed; return its error."""
    assert isinstance(result.exception, DiskcastError), (result.output, result.exception)
    return result.exception


def room(room_id: str, **fields: Any) -> dict[str, Any]:
    """Return the record of a room."""
    basic = {"room_id": room_id, "name": room_id, "description": "", "site": "", "interface": ""}
    return {**basic, "created_at": AT, "machine_count": 0, **fields}


def image(name: str, **fields: Any) -> dict[str, Any]:
    """Return the record of an image."""
    sizes = dict.fromkeys(("raw_bytes", "stored_bytes", "block_bytes", "fetched_bytes"), 1 << 20)
    basic = {"image_id": name.encode().hex().ljust(64, "0"), "name": name, "location": f"/images/{name}.dci"}
    more = {"source": "folder", "state": "available", "problem": "", "packed_at": None, "first_seen_at": AT}
    return {**basic, **sizes, **more, "in_use_by": [], **fields}


def machine(name: str, **fields: Any) -> dict[str, Any]:
    """Return the record of a machine."""
    texts = dict.fromkeys(("serial", "asset_tag", "position", "note", "address", "agent_version"), "")
    more = {"room_id": None, "macs": [], "inventory": {}, "created_at": AT, "last_seen_at": None}
    return {"machine_id": f"m-{name}", "name": name, **texts, **more, **fields}


def preflight(**grades: str) -> dict[str, Any]:
    """Return the matrix of a room: machines by name, with the grade of their disks."""
    rows = []
    for name, grade in grades.items():
        checks = [
            {
                "subject": subject,
                "grade": grade if subject == "disk" else "ok",
                "reason": f"{subject} of {name}",
                "fix": "replace it",
            }
            for subject in Subject
        ]
        rows.append({"machine_id": f"m-{name}", "name": name, "grade": grade, "checks": checks})
    return {
        "image_id": "ab" * 32,
        "image_name": "lab",
        "image_known": True,
        "problem": "",
        "refused_count": sum(grade == "refuse" for grade in grades.values()),
        "warned_count": sum(grade == "warn" for grade in grades.values()),
        "machines": rows,
    }


def cast(phase: str = "casting", **fields: Any) -> dict[str, Any]:
    """Return the record of a cast."""
    return {
        "cast_id": "1a2b3c4d",
        "plan": {"image_id": "ab" * 32, "room_id": "lab-1"},
        "image_name": "lab",
        "raw_bytes": 1 << 30,
        "phase": phase,
        "paused": False,
        "owner": "d1",
        "group": "239.255.68.80",
        "port": 7420,
        "control_url": "http://127.0.0.1:7421",
        "required_count": 2,
        "run_count": 1,
        "created_at": AT,
        "created_by": "local",
        "schedule_id": None,
        "gathering_at": AT,
        "casting_at": AT,
        "ended_at": None,
        "reason": "",
        "seconds": 1.5,
        "bytes_sent": 1000,
        "progress": 0.5,
        "joined_count": 2,
        "complete_count": 0,
        "failed_count": 0,
        **fields,
    }


def live_cast(phase: str = "casting", **fields: Any) -> dict[str, Any]:
    """Return the live state of a cast."""
    return {
        "cast": cast(phase, **fields),
        "local": True,
        "rate_bytes_per_s": 1e8,
        "achieved_bytes_per_s": 1e8,
        "elapsed_s": 1.0,
        "eta_s": 2.0,
        "pass_index": 0,
        "pass_progress": 0.4,
        "bottleneck": "pc07's disk",
    }


def live_machine(name: str, state: str = "receiving", **fields: Any) -> dict[str, Any]:
    """Return the live state of a machine."""
    return {
        "machine_id": f"m-{name}",
        "name": name,
        "room_id": "lab-1",
        "position": "",
        "address": "127.0.0.1",
        "online": True,
        "state": state,
        "cast_id": "1a2b3c4d",
        "progress": 0.5,
        "rate_bytes_per_s": 1e8,
        "loss": 0.0,
        "bottleneck": "disk",
        "eta_s": None,
        "error": "",
        **fields,
    }


def cast_machine(name: str, state: str = "complete", **fields: Any) -> dict[str, Any]:
    """Return a cast's result on a machine."""
    return {
        "cast_id": "1a2b3c4d",
        "machine_id": f"m-{name}",
        "name": name,
        "address": "127.0.0.1",
        "state": state,
        "error": "",
        "exit_code": None,
        "bottleneck": "",
        "progress": 1.0,
        "bytes_verified": 1 << 30,
        "bytes_kept": 0,
        "blocks_rewritten": 0,
        "seconds": 3.0,
        "rate_bytes_per_s": 1e8,
        "loss": 0.0,
        "nacks_count": 0,
        "socket_drops_count": 0,
        "demoted": False,
        "joined_at": AT,
        "ended_at": AT,
        **fields,
    }


def history_line(name: str, state: str) -> dict[str, Any]:
    """Return a line of history."""
    same = (
        "cast_id",
        "machine_id",
        "exit_code",
        "bytes_verified",
        "bytes_kept",
        "blocks_rewritten",
        "seconds",
        "loss",
    )
    line = cast_machine(name, state)
    return {key: line[key] for key in (*same, "state", "error", "joined_at", "ended_at")} | {
        "cast_name": "",
        "created_by": "local",
        "image_id": "ab" * 32,
        "image_name": "lab",
        "room_id": "lab-1",
        "machine_name": name,
        "serial": "",
        "asset_tag": "",
    }
