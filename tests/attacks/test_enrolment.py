"""Attacks on a daemon's machines: nobody takes part in a cast, writes history or stays in a room in another's place."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from protocol.control.check_in import CHECK_IN_ANSWER, Assignment, CheckInAnswer
from protocol.control.control_messages import API_BASE, COMPLETION, join_to_json
from protocol.errors import TrustError
from protocol.model.session_records import CastId, MachineIdentity
from protocol.program.pinned_tls import unpinned_context
from protocol.trust.join_code import JoinCode
from protocol.trust.tickets import Ticket, issue_ticket
from tests.server.conftest import RATE_BYTES_PER_S, GoldenImage, make_golden_image
from tests.support.disks.disk_images import make_image
from tests.support.network.completion_reports import completion
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent
from tests.support.network.loopback_cast import LoopbackCast
from tests.support.postgres.server import postgres_server
from tests.support.programs.open_watch import OpenWatch
from tests.support.programs.serving import Daemon, ServiceAgent, seconds_between, wait_online, wait_until
from tests.unit.protocol.sending.sender_inputs import join_request

OUT_S = 5.0
"""Bound for a revoked machine to be out."""
UNTOUCHED = b"the user's own data" * 1000
VICTIM = MachineIdentity(("02:00:00:00:00:07",), "SN-victim", "LAB-7")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> GoldenImage:
    return make_golden_image(tmp_path_factory.mktemp("golden") / "lab.dci", 64, seed=5)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, image: GoldenImage) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as started:
        started.add_image(image.path)
        yield started


def check_in_of(name: str, identity: MachineIdentity, **fields: object) -> dict[str, Any]:
    """Return the check-in of an agent that says it is this machine."""
    return {
        "agent_id": f"agent of {name}", "name": name, "version": "1", "interface": "eth0",
        "macs": list(identity.macs), "serial": identity.serial, "asset_tag": identity.asset_tag, "inventory": {},
        "state": "idle", "cast_id": None, "last_result": None, "wait_s": 0, **fields,
    }  # fmt: skip


def planned(daemon: Daemon, image: GoldenImage, *names: str) -> tuple[str, dict[str, str]]:
    """Return a gathering cast to new machines, and their ids."""
    ids = {
        name: daemon.ask("POST", "/machines", {"name": name, "serial": f"SN-{name}"})["machine_id"]
        for name in names
    }
    cast_id = daemon.create_cast(image.image_id, machine_ids=list(ids.values()), start="manual")
    daemon.wait_phase(cast_id, "gathering")
    return cast_id, ids


def ticket_of(daemon: Daemon, cast_id: str, check_in: Mapping[str, Any]) -> str:
    """Return the ticket for a cast that a machine gets at its check-in."""

    def assigned() -> dict[str, Any]:
        assignment = daemon.check_in(check_in)["assignment"] or {}
        return assignment if assignment.get("cast_id") == cast_id else {}

    return str(wait_until("the cast is assigned", assigned, describe=daemon.describe)["ticket"])


def ask_cast(
    daemon: Daemon, cast_id: str, method: str, what: str, bearer: str, body: object = None
) -> httpx.Response:
    """Send a request to the cast's control API, as an attacker who cares for no certificate."""
    url = f"{daemon.cast(cast_id)['control_url']}{API_BASE}/casts/{cast_id}{what}"
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    with httpx.Client(verify=unpinned_context(), trust_env=False, timeout=LIMIT_S) as client:
        return client.request(method, url, json=body, headers=headers)


def join(daemon: Daemon, cast_id: str, bearer: str, identity: MachineIdentity) -> httpx.Response:
    request = join_request("attacker", name="victim", identity=identity)
    return ask_cast(daemon, cast_id, "POST", "/receivers", bearer, join_to_json(request))


def claim_as(daemon: Daemon, check_in: Mapping[str, Any]) -> httpx.Response:
    """Send a check-in with a token for enrolment."""
    headers = {"Authorization": f"Bearer {daemon.secret('enrol')}"}
    return daemon.api.post("/check-in", json=check_in, headers=headers)


class LyingDaemon:
    """A daemon that assigns one image and points to the cast of another one; a context manager that ends it."""

    def __init__(self, assignment: Assignment) -> None:
        first = CheckInAnswer("m-1", "pc01", None, None, 0.0, machine_secret="dcm_x")
        later = CheckInAnswer("m-1", "pc01", None, assignment, 1.0)
        answers = itertools.chain((first,), itertools.repeat(later))

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                body = json.dumps(CHECK_IN_ANSWER.encode(next(answers))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join(LIMIT_S)
        self._server.server_close()


def test_05_a_cast_of_another_image_than_the_assigned_one_is_refused(tmp_path: Path) -> None:
    """Otherwise somebody who moves a cast's address brings any signed image to the machines of a room."""
    made, other = make_image("drz" * 4, name="lab"), make_image("rrd" * 4, name="other", seed=7)
    target = tmp_path / "disk"
    target.write_bytes(UNTOUCHED)
    with LoopbackCast(made.write(tmp_path / "lab.dci")) as cast, OpenWatch(target) as watch:
        started = cast.sender.wait_event("cast_started", LIMIT_S)
        code = JoinCode.parse(cast.join_code)
        lie = Assignment(
            cast_id=CastId(int(started["cast_id"], 16)),
            image_name="other",
            image_id=other.manifest.image_id,
            raw_bytes=len(other.raw),
            control_url=cast.url,
            sender_address="127.0.0.1",
            group=started["group"],
            port=started["port"],
            pin=code.pin_prefix,
            ticket=code.secret,
        )
        with LyingDaemon(lie) as daemon:
            where = ("--interface", "lo", "--identity", "SN-1", "--target", target, "--json")
            with Program(diskcast_agent("run", "--server", daemon.url, *where)) as agent:
                result = agent.wait_event("cast_result", LIMIT_S)
        assert (result["ok"], result["error_class"]) == (False, TrustError.__name__), result
        assert other.manifest.image_id.hex() in result["error"]
        assert not watch.touched
    assert target.read_bytes() == UNTOUCHED


def test_06_nobody_joins_a_daemons_cast_without_a_ticket_for_it(daemon: Daemon, image: GoldenImage) -> None:
    """Otherwise every program on the network receives the image, and fills the cast with inventions."""
    cast_id, ids = planned(daemon, image, "victim", "revoked")
    other_id, _ = planned(daemon, image, "elsewhere")
    with contextlib.closing(sqlite3.connect(daemon.state_directory / "diskcast.db")) as database:
        (key,) = database.execute("SELECT join_key FROM cast_keys WHERE cast_id = ?", (cast_id,)).fetchone()
    number, soon = CastId(int(cast_id, 16)), int(time.time()) + 60
    revoked = ticket_of(daemon, cast_id, check_in_of("revoked", MachineIdentity((), "SN-revoked", "")))
    daemon.ask("POST", f"/machines/{ids['revoked']}/revoke")
    bearers = {
        "without": "",
        "wrong": "dcj_AAAA",
        "forged": issue_ticket(bytes(32), Ticket(number, ids["victim"], soon)),
        "foreign": ticket_of(
            daemon, other_id, check_in_of("elsewhere", MachineIdentity((), "SN-elsewhere", ""))
        ),
        "expired": issue_ticket(key, Ticket(number, ids["victim"], soon - 61)),
        "revoked": revoked,
    }
    for name, bearer in bearers.items():
        for method, what in (("GET", ""), ("GET", "/manifest")):
            assert ask_cast(daemon, cast_id, method, what, bearer).status_code == 401, name
        assert join(daemon, cast_id, bearer, VICTIM).status_code == 401, name
    assert all(row["joined_at"] is None for row in daemon.machines_of(cast_id).values())
    assert ask_cast(
        daemon, cast_id, "GET", "", issue_ticket(key, Ticket(number, ids["victim"], soon))
    ).is_success

    def audited() -> bool:
        entries = daemon.ask("GET", "/audit", subject=f"cast {cast_id}")["items"]
        reasons = {entry["detail"]["reason"] for entry in entries if entry["action"] == "cast.join_refused"}
        return reasons == {"missing", "malformed", "forged", "foreign_cast", "expired", "revoked"}

    wait_until("each reason is in the audit log", audited, describe=daemon.describe)
    for ended in (cast_id, other_id):
        daemon.ask("POST", f"/casts/{ended}/cancel")


def test_07_nobody_completes_a_cast_for_another_machine(daemon: Daemon, image: GoldenImage) -> None:
    """Otherwise history says "every byte verified" of a machine that was never switched on."""
    daemon.ask(
        "POST",
        "/machines",
        {"name": "victim", "macs": list(VICTIM.macs), "serial": VICTIM.serial, "asset_tag": VICTIM.asset_tag},
    )
    victim_id = next(row["machine_id"] for row in daemon.ask("GET", "/machines")["items"] if row["macs"])
    cast_id, ids = planned(daemon, image, "member")
    daemon.ask("POST", f"/casts/{cast_id}/cancel")
    cast_id = daemon.create_cast(image.image_id, machine_ids=[victim_id, ids["member"]], start="manual")
    daemon.wait_phase(cast_id, "gathering")
    assert join(daemon, cast_id, "", VICTIM).status_code == 401

    ticket = ticket_of(daemon, cast_id, check_in_of("member", MachineIdentity((), "SN-member", "")))
    answer = join(daemon, cast_id, ticket, VICTIM)
    assert answer.is_success, answer.text
    grant = answer.json()
    path = f"/receivers/{grant['receiver_id']}/completion"
    assert ask_cast(daemon, cast_id, "POST", path, grant["key"], COMPLETION.encode(completion())).is_success
    member_only = check_in_of(
        "member",
        MachineIdentity((), "SN-member", ""),
        last_result={"cast_id": cast_id, **{
            name: value for name, value in COMPLETION.encode(completion()).items()
            if name not in ("bytes_received", "bytes_written", "blocks_repaired_by_parity", "blocks_repaired_by_nack")
        }},
    )  # fmt: skip
    daemon.check_in(member_only)
    claim = {**check_in_of("victim", VICTIM), "last_result": member_only["last_result"]}
    claim_as(daemon, claim).raise_for_status()  # a token alone posts no result
    daemon.ask("POST", f"/casts/{cast_id}/cancel")
    lines = {line["machine_id"]: line["state"] for line in daemon.history(cast_id=cast_id)}
    assert lines.get(victim_id) != "complete", lines
    assert lines[ids["member"]] == "complete", "the member speaks for itself only"


def test_08_a_second_agent_of_a_machine_is_refused_and_shown(daemon: Daemon, tmp_path: Path) -> None:
    """Otherwise a clone, or somebody with a token, receives the images of a machine in its place."""
    with ServiceAgent(tmp_path, "pc01", [daemon]) as holder:
        machine_id = wait_online(daemon, ["pc01"])["pc01"]
        wait_until("it waits", lambda: _has(holder, "waiting"), describe=holder.describe)
        claim = check_in_of("pc01", MachineIdentity((), holder.serial, ""))
        refused = claim_as(daemon, claim)
        assert refused.status_code == 409
        assert "another agent is active" in refused.json()["detail"]
        with ServiceAgent(tmp_path / "clone", "pc01", [daemon]) as clone:
            wait_until("it is refused", lambda: _has(clone, "unanswered"), describe=clone.describe)
            shown = wait_until("it is shown", lambda: daemon.problems().get("enrolment", ""))
        assert "claims to be pc01" in shown
        machine = daemon.ask("GET", f"/machines/{machine_id}")
        assert (machine["enrolment"], machine["claimed_from"]) == ("enrolled", "127.0.0.1")
        audited = daemon.ask("GET", "/audit", subject=f"machine {machine_id}")["items"]
        assert [entry["action"] for entry in audited] == ["machine.second_claim", "machine.enrol"]


@pytest.fixture(params=["one daemon", "another daemon of its database"])
def daemons(request: pytest.FixtureRequest, tmp_path: Path, image: GoldenImage) -> Iterator[list[Daemon]]:
    """Yield the daemon that runs the cast, and the one at which the machine is revoked."""
    with contextlib.ExitStack() as stack:
        settings: dict[str, dict[str, object]] = {}
        if request.param != "one daemon":
            server = stack.enter_context(postgres_server())
            settings = {"server": {"database": server.new_database()}}
        first = stack.enter_context(Daemon(tmp_path / "first", settings=settings))
        first.add_image(image.path)
        yield [
            first,
            first if not settings else stack.enter_context(Daemon(tmp_path / "other", settings=settings)),
        ]


def test_23_a_revoked_machine_is_out_and_the_others_complete(
    tmp_path: Path, image: GoldenImage, daemons: list[Daemon]
) -> None:
    """Otherwise a stolen machine keeps the keys of the room, and sees all further images."""
    daemon, revoker = daemons
    with (
        ServiceAgent(tmp_path, "pc01", [daemon]) as first,
        ServiceAgent(tmp_path, "pc02", [daemon]) as second,
    ):
        ids = wait_online(daemon, ["pc01", "pc02"])
        plan = {"machine_ids": list(ids.values()), "rate_bytes_per_s": RATE_BYTES_PER_S}
        cast_id = daemon.create_cast(image.image_id, **plan)
        daemon.wait_progress(cast_id, 0.2)
        assert revoker.ask("POST", f"/machines/{ids['pc02']}/revoke")["recorded"]

        def out() -> bool:
            return daemon.machines_of(cast_id)["pc02"]["state"] == "failed"

        wait_until("pc02 is out", out, describe=daemon.describe)
        cast = daemon.wait_phase(cast_id, "failed")
        assert cast["complete_count"] == 1, cast["reason"]
        image.assert_is_on(first.target)
        assert second.target.read_bytes() != image.raw
        results = daemon.machines_of(cast_id)
        assert (results["pc01"]["state"], results["pc02"]["state"]) == ("complete", "failed")
        assert results["pc02"]["error"].startswith("revoked by ")
        [entry] = [
            item for item in daemon.ask("GET", "/audit")["items"] if item["action"] == "machine.revoke"
        ]
        [event] = [
            item
            for item in daemon.ask("GET", f"/casts/{cast_id}/timeline")["events"]
            if item["kind"] == "machine_revoked"
        ]
        assert seconds_between(entry["at"], event["at"]) < OUT_S


def _has(agent: ServiceAgent, event: str) -> bool:
    assert agent.program is not None
    return any(line["event"] == event for line in agent.program.events)
