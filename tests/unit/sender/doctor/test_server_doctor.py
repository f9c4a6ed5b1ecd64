"""The daemon's doctor finds the problems of a machine, and only those, and changes nothing."""

from __future__ import annotations

import http.server
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.program.findings import Finding, Status
from sender.config.config_file import load_config
from sender.config.server_config import ServerConfig
from sender.doctor import database_doctor, server_doctor
from sender.doctor.database_doctor import examine_database, judge_schema
from sender.doctor.files_doctor import judge_library, judge_permissions, judge_state_directory
from sender.doctor.server_doctor import examine_server, judge_ports
from sender.doctor.system_doctor import (
    cgroup_memory_bytes,
    clock_is_synchronised,
    judge_clock,
    parse_unit_limits,
)
from tests.support.network.lab import LIMIT_S
from tests.support.network.ports import free_port_range

REPOSITORY = Path(__file__).resolve().parents[4]


def _config(folder: Path, **overrides: object) -> ServerConfig:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(None, {"server.state_directory": str(folder), **named})


def _by_check(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.check for finding in findings}) == len(findings), "each is named once"
    return {finding.check: finding for finding in findings}


@pytest.fixture(autouse=True)
def _schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_doctor, "newest_schema", lambda: "0002")
    monkeypatch.setattr(database_doctor, "known_schemas", lambda: {"0001", "0002"})


def test_the_command_checks_a_machine_without_a_daemon_and_creates_nothing(tmp_path: Path) -> None:
    listen, first = free_port_range(2)
    path = tmp_path / "diskcast.toml"
    path.write_text(
        f'[server]\nlisten = "127.0.0.1:{listen}"\nstate_directory = "state"\n'
        f'[network]\ninterface = "lo"\ncontrol_ports = "{first}"\n'
    )
    command = [sys.executable, "-m", "sender", "doctor", "--server", "--config", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {line["check"]: line["status"] for line in lines[:-1]}
    assert done.returncode == 0, done.stderr
    assert lines[-1]["event"] == "result"
    assert found["configuration"] == "ok"
    assert found["multicast on lo"] == "ok"
    assert found["database"] == "ok"
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_configuration_is_a_finding_with_exit_code_62(tmp_path: Path) -> None:
    path = tmp_path / "diskcast.toml"
    path.write_text('[server]\nlisen = "x"\n')
    command = [sys.executable, "-m", "sender", "doctor", "--server", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 62
    assert "did you mean listen?" in done.stdout


@pytest.mark.parametrize("options", [["--server", "--port", "1"], ["--config", "x"]])
def test_options_that_would_be_ignored_are_refused(options: list[str]) -> None:
    command = [sys.executable, "-m", "sender", "doctor", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 2


# -- files -----------------------------------------------------------------------------------------------------


def test_a_state_directory_that_others_can_write_is_a_failure(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert _by_check(judge_state_directory(tmp_path))["state directory's permissions"].status is Status.FAIL
    tmp_path.chmod(0o750)
    assert {finding.status for finding in judge_state_directory(tmp_path)} == {Status.OK}
    assert not (tmp_path / "a").exists()
    assert "created at the first start" in judge_state_directory(tmp_path / "a" / "b")[0].detail


def test_a_file_in_the_place_of_the_state_directory_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert judge_state_directory(tmp_path / "state")[0].status is Status.FAIL


def test_a_secret_that_every_user_can_read_is_a_failure(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    config = _config(
        tmp_path, server__database="postgresql://u@h/d", server__database_password_file=str(secret)
    )
    for mode, status in ((0o644, Status.FAIL), (0o640, Status.OK)):
        secret.chmod(mode)
        assert _by_check(judge_permissions(config, None))["database password"].status is status
    token = tmp_path / "operator-token"
    token.write_text("x")
    token.chmod(0o604)
    assert (
        _by_check(judge_permissions(_config(tmp_path), None))["token file operator-token"].status
        is Status.FAIL
    )


def test_a_configuration_with_a_password_is_a_secret_too(tmp_path: Path) -> None:
    path = tmp_path / "diskcast.toml"
    path.write_text('[server]\ndatabase = "postgresql://u:hunter2@h/d"\n')
    path.chmod(0o644)
    finding = _by_check(judge_permissions(load_config(path), path))["configuration file"]
    assert finding.status is Status.FAIL
    assert "hunter2" not in finding.detail


def test_missing_image_folders_are_failures(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (finding,) = judge_library(_config(tmp_path))
    assert finding.status is Status.OK
    (finding,) = judge_library(_config(tmp_path, library__folders=[str(tmp_path / "none")]))
    assert finding.status is Status.FAIL
    folder.mkdir()
    (finding,) = judge_library(_config(tmp_path))
    assert (finding.status, finding.detail) == (Status.WARN, "no image yet")
    (folder / "a.dci").write_bytes(b"x")
    (finding,) = judge_library(_config(tmp_path))
    assert (finding.status, finding.detail) == (Status.OK, "1 image")


def test_a_cache_larger_than_its_disk_is_a_warning(tmp_path: Path) -> None:
    remotes = ["https://images/a.dci"]
    small = _config(tmp_path, library__remotes=remotes, library__cache_size="64MiB")
    assert _by_check(judge_library(small))["space for fetched images"].status is Status.OK
    large = _config(tmp_path, library__remotes=remotes, library__cache_size="9999T")
    assert _by_check(judge_library(large))["space for fetched images"].status is Status.WARN


# -- database --------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "diskcast.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0002')")
        connection.execute("CREATE TABLE rows (number INTEGER, text TEXT)")
        connection.executemany("INSERT INTO rows VALUES (?, ?)", [(n, "x" * 200) for n in range(500)])
    connection.close()
    return path


def test_an_intact_database_is_ok_and_stays_unchanged(tmp_path: Path, database: Path) -> None:
    before = database.read_bytes()
    found = _by_check(examine_database(_config(tmp_path)))
    assert found["database"].status is Status.OK
    assert found["database schema"].detail == "0002, the latest"
    assert database.read_bytes() == before
    assert list(tmp_path.iterdir()) == [database]


def test_a_database_that_a_daemon_uses_can_be_examined(tmp_path: Path, database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()  # it's in the -wal file alone
    found = _by_check(examine_database(_config(tmp_path)))
    connection.close()
    assert found["database"].status is Status.OK
    assert found["database schema"].detail == "0001: upgraded to 0002 at the next start"


def test_the_fix_of_a_damaged_database_is_a_restore(tmp_path: Path, database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[8192:12288] = b"\xff" * 4096
    database.write_bytes(data)
    finding = examine_database(_config(tmp_path))[0]
    assert finding.status is Status.FAIL
    assert "restore" in finding.fix
    database.write_bytes(b"not a database" * 1000)
    assert examine_database(_config(tmp_path))[0].status is Status.FAIL


def test_a_database_of_a_newer_version_is_refused() -> None:
    assert judge_schema("0003", "0002", {"0001", "0002"}).status is Status.FAIL
    assert judge_schema(None, "0002", {"0001", "0002"}).status is Status.OK


def test_an_unavailable_database_is_a_failure_that_hides_the_password(tmp_path: Path) -> None:
    [port] = free_port_range(1)
    config = _config(tmp_path, server__database=f"postgresql://u:hunter2@127.0.0.1:{port}/d")
    (finding,) = examine_database(config)
    assert finding.status is Status.FAIL
    assert "hunter2" not in finding.detail + finding.fix


# -- ports -----------------------------------------------------------------------------------------------------


def test_ports_of_another_program_are_a_failure(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("", 0))
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        held = str(udp.getsockname()[1])
        config = _config(tmp_path, server__listen=listen, network__control_ports=held)
        found = _by_check(judge_ports(config, running=False))
        assert found[f"port {listen}"].status is Status.FAIL
        assert found[f"ports {held} of casts"].status is Status.FAIL
        assert {finding.status for finding in judge_ports(config, running=True)} == {Status.OK}


@pytest.fixture
def web_server() -> Iterator[tuple[int, list[bytes]]]:
    """Run a server that answers every request with the first item of a list."""
    answers = [b"{}"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[0])

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, answers
        server.shutdown()
        thread.join()


def test_a_running_daemon_is_distinguished_from_other_web_servers(
    tmp_path: Path, web_server: tuple[int, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_doctor, "HEALTH_TIMEOUT_S", LIMIT_S)
    port, answers = web_server
    path = tmp_path / "diskcast.toml"
    path.write_text(
        f'[server]\nlisten = "127.0.0.1:{port}"\nstate_directory = "."\n[network]\ninterface = "lo"\n'
    )
    check = f"port 127.0.0.1:{port}"
    assert _by_check(examine_server(path))[check].status is Status.FAIL
    answers[0] = b'{"status": "ok", "database": "ok"}'
    assert _by_check(examine_server(path))[check].status is Status.OK


# -- system ----------------------------------------------------------------------------------------------------


def test_an_unsynchronised_clock_is_a_warning() -> None:
    assert judge_clock(synchronised=False).status is Status.WARN
    assert judge_clock(synchronised=True).status is Status.OK
    assert judge_clock(synchronised=None).status is Status.OK
    assert clock_is_synchronised() in (True, False, None)


def test_limits_of_the_unit_are_read_as_systemd_prints_them() -> None:
    lines = ["LoadState=loaded", "LimitNOFILE=1024", "MemoryMax=infinity"]
    limits = parse_unit_limits(lines)
    assert limits is not None
    assert limits["LimitNOFILE"] == 1024
    assert limits["MemoryMax"] > 1 << 60
    assert parse_unit_limits(["LoadState=not-found", "LimitNOFILE=1024"]) is None


def test_the_memory_limit_of_a_container_is_read() -> None:
    assert cgroup_memory_bytes() > 0


def test_the_daemon_raises_its_descriptor_limit() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 5000))\n"
        "from sender.http.descriptor_limit import raise_descriptor_limit; print(raise_descriptor_limit())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "5000\n"
