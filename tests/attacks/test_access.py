"""Attacks on the daemon's API and on its secrets: only members get in, and a secret stays where it belongs."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.disks.disk_images import make_image
from tests.support.network.lab import LIMIT_S, Program
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online

PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/api/v1/openapi.json"),
    ("POST", "/api/v1/session"),
    ("DELETE", "/api/v1/session"),
}
"""Whoever adds a public route must add it here, and think about it."""
VIEWERS_MAY_POST = {"/api/v1/session/codes"}
AGENTS_MAY = {"/api/v1/check-in"}
BOOT_SERVICES_MAY = {"/api/v1/boots"}
ROLES = {"view", "operate", "enrol", "boot"}
WRONG = f"dct_operate_{'A' * 43}"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as started:
        yield started


def _routes(daemon: Daemon) -> list[tuple[str, str]]:
    """Return method and path of every documented route that isn't public."""
    paths = daemon.ask("GET", "/openapi.json")["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert set(routes) > PUBLIC
    assert len(routes) > 40
    return [route for route in routes if route not in PUBLIC]


def _status(client: httpx.Client, method: str, path: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = re.sub(r"\{[^}]+\}", "x", path)
    with client.stream(method, url, headers=headers, json={}) as response:
        return response.status_code


def test_27_no_route_of_the_daemon_serves_a_stranger_or_another_role(daemon: Daemon) -> None:
    """Without this, one forgotten check lets everybody on the network overwrite disks."""
    wrong = []
    with httpx.Client(base_url=daemon.url, timeout=LIMIT_S, trust_env=False) as client:
        for method, path in _routes(daemon):
            allowed = {"enrol"} if path in AGENTS_MAY else {"operate"}
            if path not in AGENTS_MAY and (method == "GET" or path in VIEWERS_MAY_POST):
                allowed.add("view")
            if path == "/api/v1/tokens":
                allowed.discard("view")
            if path in BOOT_SERVICES_MAY:
                allowed.add("boot")
            for name, token, refusals in [
                ("nobody", None, {401}),
                ("a wrong token", WRONG, {401, 429}),
                *((role, daemon.secret(role), {403}) for role in ROLES - allowed),
            ]:
                status = _status(client, method, path, token)
                if status not in refusals:
                    wrong.append(f"{method} {path} answers {status} to {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.needs_root
def test_32_a_second_user_of_the_machine_gets_nothing(daemon: Daemon) -> None:
    """Without this, every user of the daemon's machine images rooms."""
    with httpx.Client(base_url=daemon.url, timeout=LIMIT_S, trust_env=False) as client:
        assert client.get("/api/v1/rooms").status_code == 401
        assert client.post("/api/v1/casts", json={"image": "lab"}).status_code == 401
    assert stat.S_IMODE(daemon.token_file.stat().st_mode) == 0o600
    reading = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", daemon.token_file]
    assert subprocess.run(reading, capture_output=True, check=False, timeout=LIMIT_S).returncode != 0


def _all_bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _journal(program: Program) -> bytes:
    """Return everything that a program wrote to stderr."""
    return Path(f"/proc/{program.pid}/fd/2").read_bytes()


def _arguments(program: Program) -> bytes:
    return Path(f"/proc/{program.pid}/cmdline").read_bytes()


def test_31_secrets_are_in_no_journal_argument_metric_or_database(tmp_path: Path) -> None:
    """Without this, a reader of a log or a backup has the keys of every room."""
    remote = "http://lab:geheim-im-url@127.0.0.1:9/images/"
    settings: dict[str, dict[str, object]] = {
        "library": {"remotes": [remote], "scan_interval_s": 0.2},
        "log": {"format": "json", "level": "debug"},
        "server": {"unknown_machines": "auto"},
    }
    with Daemon(tmp_path / "daemon", settings=settings) as daemon:
        daemon.add_image(make_image("rr").write(tmp_path / "lab.dci"))
        with httpx.Client(base_url=f"{daemon.url}/api/v1", timeout=LIMIT_S, trust_env=False) as browser:
            code = daemon.ask("POST", "/session/codes")["code"]
            browser.post("/session", json={"code": code}).raise_for_status()
            session = browser.cookies["diskcast_session"]
            browser.get("/server").raise_for_status()
            browser.get("/server", headers={"Authorization": f"Bearer {WRONG}"})
        with ServiceAgent(tmp_path / "disks", "pc01", [daemon]) as agent:
            wait_online(daemon, ["pc01"])
            assert agent.program is not None
            secrets = {
                "the operator's token": daemon.token_file.read_text().strip(),
                "the agents' token": daemon.secret("enrol"),
                "a boot token": daemon.ask("POST", "/boots", {"mac": "02:00:00:00:00:51"})["boot_token"],
                "the session": session,
                "the login code": code,
                "a rejected token": WRONG,
                "the remote's password": "geheim-im-url",
            }
            places = {
                "the daemon's journal": _journal(daemon.program),
                "the agent's journal": _journal(agent.program),
                "the daemon's arguments": _arguments(daemon.program),
                "the agent's arguments": _arguments(agent.program),
                "the metrics": daemon.api.get(f"{daemon.url}/metrics").content,
                **{str(path): text for path, text in _all_bytes(daemon.state_directory).items()},
            }
            cores = {
                program: re.search(
                    r"Max core file size +(\d+)", Path(f"/proc/{program.pid}/limits").read_text()
                )
                for program in (daemon.program, agent.program)
            }
    assert places.pop(str(daemon.token_file))
    found = [
        f"{name} is in {place}"
        for name, secret in secrets.items()
        for place, text in places.items()
        if secret.encode() in text
    ]
    assert not found, "\n".join(found)
    for limit in cores.values():
        assert limit is not None
        assert int(limit[1]) <= 1, "a core dump of this program or of its children would hold its secrets"
