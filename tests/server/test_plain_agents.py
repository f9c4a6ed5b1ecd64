"""Tests of plain agents in a daemon's cast: history names the operator's machine that got the image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import httpx

from protocol.control.control_messages import API_BASE, join_to_json
from protocol.program.pinned_tls import unpinned_context
from tests.server.conftest import GoldenImage
from tests.support.network.lab import Program, diskcast_agent
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until
from tests.unit.protocol.sending.sender_inputs import join_request


def test_history_names_a_plain_agents_machine_as_the_operator_does(
    image: GoldenImage, tmp_path: Path
) -> None:
    with Daemon(tmp_path / "daemon") as daemon:
        daemon.add_image(image.path)
        known = daemon.ask("POST", "/machines", {"name": "seat 7", "serial": "PF1XYZ", "asset_tag": "LAB-7"})
        cast_id = daemon.create_cast(image.image_id, machine_ids=[known["machine_id"]], wait_for=2)
        url = daemon.wait_phase(cast_id, "gathering")["control_url"]
        with contextlib.ExitStack() as stack:
            for identity in ("pf1xyz", "elsewhere"):
                target = tmp_path / f"{identity}.disk"
                where = (
                    "--interface",
                    "lo",
                    "--sender",
                    url,
                    "--name",
                    "debian",
                    "--identity",
                    identity,
                    "--open",
                )
                stack.enter_context(Program(diskcast_agent("receive", "--target", target, *where)))
            daemon.wait_phase(cast_id, "done")
        image.assert_is_on(tmp_path / "pf1xyz.disk")
        lines = {line["machine_name"]: line for line in daemon.history(cast_id=cast_id)}
        assert {name: line["state"] for name, line in lines.items()} == {
            "seat 7": "complete",
            "debian": "complete",
        }
        seat, stranger = lines["seat 7"], lines["debian"]
        assert (seat["machine_id"], seat["serial"], seat["asset_tag"]) == (
            known["machine_id"],
            "PF1XYZ",
            "LAB-7",
        )
        assert (stranger["machine_id"], stranger["serial"]) == (None, "")
        assert [line["cast_id"] for line in daemon.history(machine_id=known["machine_id"])] == [cast_id]


def test_an_unknown_machine_does_not_take_another_ones_history_line(
    image: GoldenImage, tmp_path: Path, agents: Callable[..., list[ServiceAgent]]
) -> None:
    with Daemon(tmp_path / "daemon") as daemon:
        daemon.add_image(image.path)
        agents("pc07", daemon)
        machine_id = wait_online(daemon, ["pc07"])["pc07"]
        cast_id = daemon.create_cast(image.image_id, machine_ids=[machine_id], wait_for=3)
        url = daemon.wait_phase(cast_id, "gathering")["control_url"]

        def has_joined(name: str) -> None:
            def joined() -> bool:
                row = daemon.machines_of(cast_id).get(name)
                return row is not None and row["joined_at"] is not None

            wait_until(f"{name} has joined", joined, describe=daemon.describe)

        has_joined("pc07")
        clone = join_request("clone", name="clone", inventory={"machine_id": machine_id})
        where = f"{url}{API_BASE}/casts/{cast_id}/receivers"
        httpx.post(
            where, json=join_to_json(clone), trust_env=False, verify=unpinned_context()
        ).raise_for_status()
        has_joined("clone")
        lines = {line["machine_name"]: line["machine_id"] for line in daemon.history(cast_id=cast_id)}
        assert lines == {"pc07": machine_id, "clone": None}
