"""Tests of commands on casts, with a real daemon and real agents: start, pause, cancel, late joins, several casts."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.errors import JoinRefusedError, StorageError
from protocol.shared.units import parse_rate_bytes_per_s
from tests.server.conftest import RATE_BYTES_PER_S, GoldenImage, make_golden_image
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, slow_disk
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent
from tests.support.programs.serving import Daemon, ServiceAgent, seconds_between, wait_online, wait_until

CEILING = "64M"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, image: GoldenImage) -> Iterator[Daemon]:
    with Daemon(
        tmp_path_factory.mktemp("daemon"), settings={"network": {"rate_ceiling": CEILING}}
    ) as started:
        started.add_image(image.path)
        yield started


@pytest.fixture(scope="module")
def room(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServiceAgent]]:
    """Run two machines that wait for casts; each test starts with empty disks."""
    disks = tmp_path_factory.mktemp("disks")
    with contextlib.ExitStack() as stack:
        agents = {name: stack.enter_context(ServiceAgent(disks, name, [daemon])) for name in ("pc01", "pc02")}
        wait_online(daemon, agents)
        yield agents


@pytest.fixture
def machines(daemon: Daemon, room: dict[str, ServiceAgent]) -> dict[str, str]:
    """Return the ids of waiting machines with empty disks, by name."""

    def idle() -> bool:
        casts = daemon.ask("GET", "/casts")["items"]
        return all(cast["ended_at"] is not None for cast in casts)

    wait_until("the last test's casts have ended", idle, describe=daemon.describe)
    for agent in room.values():
        agent.target.unlink(missing_ok=True)
    return wait_online(daemon, room)


def test_a_cast_with_manual_start_waits_for_the_operator(
    daemon: Daemon, room: dict[str, ServiceAgent], machines: dict[str, str], image: GoldenImage
) -> None:
    cast_id = daemon.create_cast(
        image.image_id, machine_ids=list(machines.values()), start="manual", wait_for=1
    )
    daemon.wait_joined(cast_id, 2)
    cast = daemon.cast(cast_id)
    assert cast["phase"] == "gathering"
    assert cast["casting_at"] is None
    daemon.ask("POST", f"/casts/{cast_id}/start")
    daemon.wait_phase(cast_id, "done")
    for agent in room.values():
        image.assert_is_on(agent.target)
    end = daemon.ask("GET", f"/casts/{cast_id}/timeline")["points"][-1]
    assert (end["progress"], end["complete_count"], end["active_count"]) == (1.0, 2, 0)


def test_a_paused_cast_sends_nothing_and_resumes_where_it_was(
    daemon: Daemon, room: dict[str, ServiceAgent], machines: dict[str, str], image: GoldenImage
) -> None:
    cast_id = daemon.create_cast(
        image.image_id, machine_ids=list(machines.values()), rate_bytes_per_s=RATE_BYTES_PER_S
    )
    daemon.wait_progress(cast_id, 0.2)
    daemon.ask("POST", f"/casts/{cast_id}/pause")

    def silent() -> bool:
        live = daemon.ask("GET", f"/casts/{cast_id}")
        return live["cast"]["paused"] and live["achieved_bytes_per_s"] == 0

    wait_until("nothing is sent", silent, describe=daemon.describe)
    progress = daemon.cast(cast_id)["progress"]
    assert progress < 0.9
    daemon.ask("POST", f"/casts/{cast_id}/resume")
    cast = daemon.wait_phase(cast_id, "done")
    assert not cast["paused"]
    assert cast["bytes_sent"] < 1.5 * len(image.raw)
    kinds = [event["kind"] for event in daemon.ask("GET", f"/casts/{cast_id}/timeline")["events"]]
    assert kinds.index("paused") < kinds.index("resumed")


def test_a_cancelled_cast_has_a_reason_and_its_machines_are_ready_for_the_next(
    daemon: Daemon, room: dict[str, ServiceAgent], machines: dict[str, str], image: GoldenImage
) -> None:
    ids = list(machines.values())
    cast_id = daemon.create_cast(image.image_id, machine_ids=ids, rate_bytes_per_s=RATE_BYTES_PER_S)
    daemon.wait_progress(cast_id, 0.2)
    daemon.ask("POST", f"/casts/{cast_id}/cancel", {"reason": "the wrong image"})
    cast = daemon.wait_phase(cast_id, "cancelled")
    assert "the wrong image" in cast["reason"]
    for agent in room.values():
        assert agent.target.read_bytes() != image.raw
    following = daemon.create_cast(image.image_id, machine_ids=ids)
    daemon.wait_phase(following, "done")
    for agent in room.values():
        image.assert_is_on(agent.target)
    lines = daemon.history(cast_id=cast_id)
    assert len(lines) == 2
    for line in lines:
        assert line["state"] == "failed", json.dumps(line)
        assert "cancelled" in line["error"]
        assert line["ended_at"] is not None


def test_a_planned_cast_starts_when_it_is_due_and_not_before(
    daemon: Daemon, room: dict[str, ServiceAgent], machines: dict[str, str], image: GoldenImage
) -> None:
    begins = datetime.now(UTC) + timedelta(seconds=2)
    plan = {"machine_ids": list(machines.values()), "start_at": begins.isoformat(), "name": "later"}
    made = daemon.ask("POST", "/casts", {"image": image.image_id, **plan})
    assert made["phase"] == "planned"
    cast = daemon.wait_phase(made["cast_id"], "done")
    assert datetime.fromisoformat(cast["gathering_at"]) >= begins


def test_simultaneous_casts_share_the_ceiling_and_neither_starves(
    daemon: Daemon,
    room: dict[str, ServiceAgent],
    machines: dict[str, str],
    image: GoldenImage,
    tmp_path: Path,
) -> None:
    other = make_golden_image(tmp_path / "other.dci", 64, seed=6)
    daemon.add_image(other.path)
    cast_ids = [
        daemon.create_cast(golden.image_id, machine_ids=[machine_id])
        for golden, machine_id in zip((image, other), machines.values(), strict=True)
    ]
    sums: list[float] = []

    def ended() -> bool:
        # The first cast is read twice: an equal state before and after also held when the other one was read.
        before, other, after = (
            daemon.ask("GET", f"/casts/{cast_id}") for cast_id in (cast_ids[0], cast_ids[1], cast_ids[0])
        )
        lives = (before, other, after)
        # The state of a cast is up to half a second old: values before its start don't count.
        if all(live["cast"]["phase"] == "casting" and live["elapsed_s"] >= 1.0 for live in lives):
            sums.append(
                other["rate_bytes_per_s"] + max(before["rate_bytes_per_s"], after["rate_bytes_per_s"])
            )
        return all(live["cast"]["ended_at"] is not None for live in lives)

    wait_until("both have ended", ended, describe=daemon.describe)
    casts = [daemon.cast(cast_id) for cast_id in cast_ids]
    assert [cast["phase"] for cast in casts] == ["done", "done"]
    assert sums, "they ran one after the other"
    ceiling = parse_rate_bytes_per_s(CEILING)
    assert statistics.median(sums) <= 1.01 * ceiling
    seconds = seconds_between(
        min(cast["casting_at"] for cast in casts), max(cast["ended_at"] for cast in casts)
    )
    assert sum(cast["bytes_sent"] for cast in casts) <= 1.1 * ceiling * seconds
    for golden, agent in zip((image, other), room.values(), strict=True):
        golden.assert_is_on(agent.target)


def test_a_late_machine_is_finished_too(
    daemon: Daemon,
    room: dict[str, ServiceAgent],
    machines: dict[str, str],
    image: GoldenImage,
    tmp_path: Path,
) -> None:
    daemon.ask("POST", "/rooms", {"name": "Late", "room_id": "late"})
    late = daemon.ask("POST", "/machines", {"name": "pc09", "serial": "SN-pc09", "room_id": "late"})
    for machine_id in machines.values():
        daemon.ask("PATCH", f"/machines/{machine_id}", {"room_id": "late"})
    try:
        cast_id = daemon.create_cast(
            image.image_id, room_id="late", wait_for=2, rate_bytes_per_s=RATE_BYTES_PER_S
        )
        daemon.wait_progress(cast_id, 0.3, machines)
        daemon.ask("POST", f"/casts/{cast_id}/pause")  # the others must not be done before it has started
        with ServiceAgent(tmp_path, "pc09", [daemon]) as agent:
            daemon.wait_joined(cast_id, 3)
            daemon.ask("POST", f"/casts/{cast_id}/resume")
            daemon.wait_phase(cast_id, "done")
            image.assert_is_on(agent.target)
    finally:
        for machine_id in (*machines.values(), late["machine_id"]):
            daemon.ask("PATCH", f"/machines/{machine_id}", {"room_id": None})
    lines = {line["machine_name"]: line for line in daemon.history(cast_id=cast_id)}
    assert lines.keys() == {"pc01", "pc02", "pc09"}
    assert {line["state"] for line in lines.values()} == {"complete"}
    assert lines["pc09"]["machine_id"] == late["machine_id"]


def test_an_agent_without_a_ticket_takes_no_part_in_a_daemons_cast(
    daemon: Daemon, machines: dict[str, str], image: GoldenImage, tmp_path: Path
) -> None:
    cast_id = daemon.create_cast(image.image_id, machine_ids=list(machines.values()), start="manual")
    url = daemon.wait_phase(cast_id, "gathering")["control_url"]
    target = tmp_path / "plain.disk"
    where = ("--interface", "lo", "--sender", url, "--name", "stranger", "--open", "--json")
    with Program(diskcast_agent("receive", "--target", target, *where)) as agent:
        assert agent.wait(LIMIT_S) == JoinRefusedError.exit_code, agent.describe()
    assert not target.exists()
    daemon.wait_joined(cast_id, len(machines))
    daemon.ask("POST", f"/casts/{cast_id}/start")
    daemon.wait_phase(cast_id, "done")
    assert daemon.machines_of(cast_id).keys() == machines.keys()


@pytest.mark.needs_root
def test_a_machine_with_a_failing_disk_is_in_history_with_its_reason_and_does_not_delay_the_others(
    daemon: Daemon,
    room: dict[str, ServiceAgent],
    machines: dict[str, str],
    image: GoldenImage,
    tmp_path: Path,
) -> None:
    failing = Behaviour(faults=(Fault(Operation.WRITE, Action.ERROR, after_bytes=4 << 20),))
    with (
        slow_disk(tmp_path, failing) as disk,
        ServiceAgent(tmp_path, "pc13", [daemon], target=disk.directory / "disk"),
    ):
        ids = wait_online(daemon, [*room, "pc13"])
        cast_id = daemon.create_cast(
            image.image_id, machine_ids=list(ids.values()), rate_bytes_per_s=RATE_BYTES_PER_S
        )
        cast = daemon.wait_phase(cast_id, "failed")
    assert (cast["complete_count"], cast["failed_count"]) == (2, 1)
    for agent in room.values():
        image.assert_is_on(agent.target)
    lines = {line["machine_name"]: line for line in daemon.history(cast_id=cast_id)}
    assert lines["pc13"]["state"] == "failed"
    assert "Input/output error" in lines["pc13"]["error"]
    assert lines["pc13"]["exit_code"] == StorageError.exit_code
    assert {lines[name]["state"] for name in room} == {"complete"}
