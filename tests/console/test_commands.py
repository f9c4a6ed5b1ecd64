"""Every command once against a real daemon."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from protocol.errors import CastNotDoneError, ServerRefusedError
from sender.cli import cli
from sender.config import local_token
from sender.config.local_token import OPERATOR_TOKEN_FILE, find_local_token
from tests.console.api_double import lines, refused, succeeded
from tests.support.disks.disk_images import make_image
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    settings = {"library": {"remotes": ["http://127.0.0.1:9/more/"]}}
    with Daemon(folder, settings=settings) as started:
        started.add_image(make_image("r" * 64).write(folder / "lab.dci"))
        yield started


@pytest.fixture
def run(daemon: Daemon) -> Run:
    def command(*arguments: str, **more: Any) -> Result:
        environment = {
            "DISKCAST_SERVER": daemon.url,
            "DISKCAST_TOKEN": None,
            "DISKCAST_TOKEN_FILE": str(daemon.token_file),
        }
        return CliRunner().invoke(cli, arguments, env=environment, **more)

    return command


@pytest.fixture
def answer(run: Run) -> Callable[..., dict[str, Any]]:
    """Return the result line of a command that must succeed."""

    def command(*arguments: str, **more: Any) -> dict[str, Any]:
        return lines(succeeded(run(*arguments, "--json", **more)))[-1]

    return command


Answers = Callable[..., dict[str, Any]]


def test_rooms_and_their_machines(run: Run, answer: Answers) -> None:
    assert answer("rooms", "create", "lab-1", "--name", "Lab 1", "--site", "north")["site"] == "north"
    assert "lab-1" in str(refused(run("rooms", "create", "lab-1")))
    assert answer("rooms", "change", "lab-1", "--site", "", "--description", "first floor")["site"] == ""
    waves = answer("rooms", "change", "lab-1", "--wave-size", "4", "--wave-pause", "10s")
    assert (waves["wake_wave_size"], waves["wake_pause_s"]) == (4, 10.0)
    waves = answer("rooms", "change", "lab-1", "--wave-size", "", "--wave-pause", "")
    assert (waves["wake_wave_size"], waves["wake_pause_s"]) == (None, None)
    assert "isn't a number" in run("rooms", "change", "lab-1", "--wave-size", "many").output
    table = b"name,mac,position\npc01,52:54:00:00:00:01,row 1\npc02,52:54:00:00:00:02,row 1\n"
    assert answer("rooms", "import", "lab-1", "-", input=table)["added"] == 2
    assert "line 2" in str(refused(run("rooms", "import", "lab-1", "-", input=b"name,mac\npc03,nonsense\n")))
    assert answer("machines", "add", "pc03", "--serial", "SN3", "--note", "new")["name"] == "pc03"
    assert answer("machines", "change", "SN3", "--position", "row 2")["position"] == "row 2"
    assert answer("machines", "move", "pc03", "52:54:00:00:00:01", "--room", "lab-1")["count"] == 2
    shown = succeeded(run("rooms", "show", "lab-1")).stdout
    assert "lab-1: 3 machines, 0 online; first floor" in shown
    assert [name in shown for name in ("pc01", "pc02", "pc03", "row 2", "offline")] == [True] * 5
    assert "row 1" in succeeded(run("machines", "list", "--room", "lab-1")).stdout
    assert "SN3" in succeeded(run("machines", "show", "pc03")).stdout
    answer("machines", "move", "pc03", "--no-room")
    made = answer("machines", "enrol-command", "--room", "lab-1", "--expires", "8h")
    assert (made["role"], made["room_id"]) == ("enrol", "lab-1")
    commands = succeeded(run("machines", "enrol-command")).stdout.splitlines()
    assert "dct_enrol_" in commands[0]
    assert "dct_enrol_" not in commands[1], "every user of the machine can read its command lines"
    assert refused(run("machines", "approve", "pc03", "--code", "AAAAAA"))
    assert "no requests" in succeeded(run("machines", "requests")).stderr
    assert refused(run("machines", "approve-request", "pc03", "--code", "AAAAAA"))
    assert refused(run("machines", "decline-request", "pc03", "--code", "AAAAAA"))
    assert answer("machines", "boot", "pc03", "--live")["count"] == 1
    assert "next boot  live system" in succeeded(run("machines", "show", "pc03")).stdout
    answer("machines", "boot", "pc03", "--planned")
    assert "live system" not in succeeded(run("machines", "show", "pc03")).stdout
    changed = answer("rooms", "change", "lab-1", "--unknown-machines", "ask", "--no-boot-menu")
    assert (changed["unknown_machines"], changed["boot_menu"]) == ("ask", False)
    assert answer("machines", "revoke", "pc03")["count"] == 1
    assert "revoked" in succeeded(run("machines", "list")).stdout
    assert answer("machines", "readmit", "pc03")["enrolment"] == "new"
    answer("machines", "remove", "pc03")
    assert isinstance(refused(run("machines", "show", "pc03")), ServerRefusedError)
    rows = lines(succeeded(run("rooms", "list", "--json")))
    assert [(row["room_id"], row["machine_count"]) for row in rows[:-1]] == [("lab-1", 2)]
    answer("rooms", "remove", "lab-1")
    assert "no rooms" in succeeded(run("rooms", "list")).stderr


def test_templates_and_variables(run: Run, answer: Answers, tmp_path: Path) -> None:
    answer("rooms", "create", "named")
    answer("machines", "add", "pc21", "--room", "named", "--serial", "SN21")
    template = tmp_path / "named.toml"
    template.write_text('hostname = "{{ name }}"\ndomain = "{{ domain }}"\n')
    assert answer("rooms", "template", "set", "named", str(template))["room_id"] == "named"
    assert "no variable 'domain'" in str(refused(run("rooms", "template", "preview", "named", "pc21")))
    assert answer("machines", "variables", "set", "pc21", "domain=a.example")["variables"] == {
        "domain": "a.example"
    }
    table = b"name,domain\npc21,lab.example\n"
    assert answer("machines", "variables", "import", "--room", "named", "-", input=table)["changed"] == 1
    wrong = b"name,domain\npc99,lab.example\n"
    assert "line 2" in str(
        refused(run("machines", "variables", "import", "--room", "named", "-", input=wrong))
    )
    assert "lab.example" in succeeded(run("machines", "variables", "show", "pc21")).stdout
    shown = succeeded(run("rooms", "template", "preview", "named", "pc21")).stdout
    assert ("pc21.lab.example" in shown, "SN21" in shown) == (True, True)
    draft = answer(
        "rooms", "template", "preview", "named", "pc21", "--file", "-", input=b'hostname = "draft"'
    )
    assert draft["hostname"] == "draft"
    assert succeeded(run("rooms", "template", "show", "named")).stdout == template.read_text()
    assert answer("machines", "variables", "set", "pc21", "domain=")["variables"] == {}
    assert "isn't NAME=VALUE" in run("machines", "variables", "set", "pc21", "domain").output
    answer("rooms", "template", "remove", "named")
    assert "no template" in str(refused(run("rooms", "template", "show", "named")))
    answer("machines", "remove", "pc21")
    answer("rooms", "remove", "named")


def test_images(run: Run, answer: Answers) -> None:
    (image,) = lines(succeeded(run("images", "list", "--json")))[:-1]
    assert answer("images", "show", image["image_id"][:8])["location"].endswith("lab.dci")
    assert "available" in succeeded(run("images", "show", image["name"])).stdout
    answer("images", "scan")
    assert "409" in str(refused(run("images", "forget", image["name"])).details["status"])
    added = answer("images", "add", "http://127.0.0.1:9/far.dci", "--name", "far")
    assert added["state"] == "remote"
    assert "can't be reached" in str(refused(run("images", "fetch", added["image_id"])))
    answer("images", "forget", added["image_id"])


def test_a_cast_from_its_plan_to_its_history(
    daemon: Daemon, run: Run, answer: Answers, tmp_path: Path
) -> None:
    image = lines(succeeded(run("images", "list", "--json")))[0]["name"]
    with ServiceAgent(tmp_path, "pc07", [daemon]):
        wait_online(daemon, ["pc07"])
        cast_id = answer(
            "casts", "create", image, "--machine", "pc07", "--start", "manual", "--name", "by hand"
        )["cast_id"]
        daemon.wait_phase(cast_id, "gathering")
        wait_until(  # the database is updated a moment later
            "the cast is listed", lambda: cast_id in run("casts", "list", "--phase", "gathering").stdout
        )
        assert "diskcast casts start" in succeeded(run("casts", "show", cast_id)).stdout
        daemon.wait_joined(cast_id, 1)
        succeeded(run("casts", "start", cast_id))
        result = succeeded(run("casts", "watch", cast_id))
        assert f"{image}: done, 1 of 1 machines complete" in result.stdout
        assert "pc07" in succeeded(run("casts", "machines", cast_id)).stdout
        rows = lines(succeeded(run("casts", "create", image, "--machine", "SN-pc07", "--watch", "--json")))
        assert rows[0]["event"] == "cast_created"
        assert rows[-1]["phase"] == "done"
        assert isinstance(refused(run("casts", "resume", cast_id)), ServerRefusedError)
    later = answer(
        "casts", "create", image, "--machine", "pc07", "--in", "1d", "--rate", "100M", "--slow", "wait"
    )
    assert later["phase"] == "planned"
    assert later["plan"]["rate_bytes_per_s"] == 12.5e6
    assert answer("casts", "cancel", later["cast_id"], "--reason", "never mind")["phase"] == "cancelled"
    error = refused(run("casts", "watch", later["cast_id"], "--json"))
    assert isinstance(error, CastNotDoneError)
    assert error.details["cast_id"] == later["cast_id"]
    found = lines(succeeded(run("history", "--machine", "pc07", "--since", "1h", "--json")))
    assert [row["state"] for row in found if row.get("ended_at")].count("complete") == 2
    assert lines(succeeded(run("machines", "history", "pc07", "--json")))[-1]["count"] >= 2
    text = succeeded(run("history", "--image", image, "--cast", cast_id, "--csv", "-")).stdout
    assert [row["machine_name"] for row in csv.DictReader(io.StringIO(text))] == ["pc07"]
    actions = [row.get("action") for row in lines(succeeded(run("history", "audit", "--json", "--all")))]
    assert {"cast.create", "cast.done", "cast.cancel"} <= set(actions)
    succeeded(run("history", "audit", "--csv", str(tmp_path / "audit.csv")))
    assert b"cast.create" in (tmp_path / "audit.csv").read_bytes()


def test_schedules(run: Run, answer: Answers) -> None:
    image = lines(succeeded(run("images", "list", "--json")))[0]["name"]
    answer("rooms", "create", "lab-2")
    plan = ("--room", "lab-2", "--cron", "0 22 * * 5", "--time-zone", "Europe/Berlin")
    made = answer("schedules", "create", "friday", image, *plan)
    assert made["next_at"] is not None
    assert "friday" in succeeded(run("schedules", "list")).stdout
    assert not answer("schedules", "disable", "friday")["enabled"]
    assert answer("schedules", "enable", made["schedule_id"])["enabled"]
    answer("schedules", "remove", "friday")
    assert "cron" in str(refused(run("schedules", "create", "never", image, "--cron", "61 * * * *")))


def test_a_token_allows_its_role_until_it_is_revoked(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d") as daemon:

        def run(token: Path, *arguments: str) -> Result:
            environment = {
                "DISKCAST_SERVER": daemon.url,
                "DISKCAST_TOKEN": None,
                "DISKCAST_TOKEN_FILE": str(token),
            }
            return CliRunner().invoke(cli, arguments, env=environment)

        file = tmp_path / "token"
        first = daemon.token_file
        succeeded(
            run(
                first,
                "tokens",
                "create",
                "grafana",
                "--role",
                "view",
                "--expires",
                "90d",
                "--output",
                str(file),
            )
        )
        assert file.read_text().startswith("dct_view_")
        listed = lines(succeeded(run(first, "tokens", "list", "--json")))
        assert [(row["name"], row["role"]) for row in listed if row.get("name") == "grafana"] == [
            ("grafana", "view")
        ]
        assert run(file, "rooms", "list").exception is None
        assert refused(run(file, "rooms", "create", "lab-9")).details["status"] == HTTPStatus.FORBIDDEN
        succeeded(run(first, "tokens", "revoke", "grafana"))
        assert refused(run(file, "rooms", "list")).details["status"] == HTTPStatus.UNAUTHORIZED


def test_commands_of_the_daemons_user_find_its_token(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise everybody would type a token for the daemon of their own terminal."""
    home = tmp_path / "state" / "diskcast"
    home.mkdir(parents=True)
    shutil.copy2(daemon.token_file, home / OPERATOR_TOKEN_FILE)
    monkeypatch.setattr(local_token, "default_state_directory", lambda: home)
    environment = {"DISKCAST_SERVER": daemon.url, "DISKCAST_TOKEN": None, "DISKCAST_TOKEN_FILE": None}
    assert "lab" in succeeded(CliRunner().invoke(cli, ["images", "list"], env=environment)).stdout
    link = succeeded(CliRunner().invoke(cli, ["dashboard"], env=environment)).stdout.strip()
    assert link.startswith(f"{daemon.url}/#login=dcl_")


def test_a_token_is_not_sent_to_another_users_program(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever listens at the port of a stopped daemon would collect it."""
    (tmp_path / OPERATOR_TOKEN_FILE).write_text("dct_operate_x\n")
    monkeypatch.setattr(local_token, "default_state_directory", lambda: tmp_path)
    assert find_local_token(daemon.url) == "dct_operate_x"
    assert find_local_token(daemon.url.replace("127.0.0.1", "192.0.2.1")) is None
    monkeypatch.setattr(local_token, "_listening_users", lambda _port: {12345})
    assert find_local_token(daemon.url) is None
