"""Tests of real agents that wait for a real daemon's casts.

If they fail, an operator has to walk to a machine with a wrong disk, a room starts over because the daemon restarted on
other ports, or an agent obeys an attacker.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol.errors import EnrolmentRefusedError, TargetError
from tests.server.conftest import RATE_BYTES_PER_S, GoldenImage
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent
from tests.support.network.ports import free_port_range
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online

Agents = Callable[..., list[ServiceAgent]]


def result_of(agent: ServiceAgent, cast_id: str) -> dict[str, Any]:
    """Return the agent's result of a cast, printed after it was reported to the daemon."""
    assert agent.program is not None
    result = agent.program.wait_event("cast_result", LIMIT_S, lambda event: event["cast_id"] == cast_id)
    results = [event["cast_id"] for event in agent.program.events if event["event"] == "cast_result"]
    assert results.count(cast_id) == 1, agent.describe()
    return result


def test_a_wrong_target_is_on_record_and_the_machine_takes_the_next_cast(
    tmp_path: Path, image: GoldenImage, agents: Agents
) -> None:
    with Daemon(tmp_path / "d") as daemon:
        daemon.add_image(image.path)
        [agent] = agents("pc01", daemon)
        ids = list(wait_online(daemon, ["pc01"]).values())
        agent.target.mkdir()
        # The required machine has failed: the cast doesn't wait an hour for a machine that won't retry.
        first = daemon.create_cast(image.image_id, machine_ids=ids, max_wait_s=3600.0)
        assert "directory" in daemon.wait_phase(first, "failed")["reason"]
        [line] = daemon.history(cast_id=first)
        assert line["exit_code"] == TargetError.exit_code
        assert "directory" in line["error"]
        agent.target.rmdir()
        second = daemon.create_cast(image.image_id, machine_ids=ids)
        daemon.wait_phase(second, "done")
        image.assert_is_on(agent.target)
        assert not result_of(agent, first)["ok"]
        assert result_of(agent, second)["ok"]
        assert agent.program is not None
        agent.program.signal(signal.SIGTERM)
        assert agent.program.wait(LIMIT_S) == 0, agent.describe()
        assert agent.program.result["ok"]


def test_agents_follow_a_daemon_that_restarts_on_other_ports_during_a_cast(
    tmp_path: Path, image: GoldenImage, agents: Agents
) -> None:
    with Daemon(tmp_path / "d") as daemon:
        daemon.add_image(image.path)
        room = agents("pc01 pc02", daemon)
        ids = list(wait_online(daemon, ["pc01", "pc02"]).values())
        cast_id = daemon.create_cast(image.image_id, machine_ids=ids, rate_bytes_per_s=RATE_BYTES_PER_S)
        daemon.wait_progress(cast_id, 0.3)
        before = daemon.cast(cast_id)
        daemon.kill()
        data_port, *control_ports = free_port_range(4)
        lines = daemon.config_path.read_text().splitlines()
        changed = {
            "data_port": str(data_port),
            "control_ports": json.dumps(f"{control_ports[0]}-{control_ports[-1]}"),
            "group_base": json.dumps("239.255.98.1"),
        }
        lines = [
            f"{key} = {changed[key]}" if (key := line.partition(" ")[0]) in changed else line
            for line in lines
        ]
        daemon.config_path.write_text("\n".join(lines))
        daemon.start()
        after = daemon.wait_phase(cast_id, "done")
        assert after["control_url"] != before["control_url"]
        assert after["port"] == data_port
        for agent in room:
            image.assert_is_on(agent.target)
            result = result_of(agent, cast_id)
            assert agent.program is not None
            agent.program.wait_event("moved", 0.0)
            assert result["rejoins"] >= 1
            assert result["raw_bytes_kept"] == 0, "nothing was scanned again"
            assert result["bytes_written"] < 1.2 * len(image.raw), "what was verified wasn't sent again"


def test_a_machine_resumes_after_a_power_failure(tmp_path: Path, image: GoldenImage, agents: Agents) -> None:
    with Daemon(tmp_path / "d") as daemon:
        daemon.add_image(image.path)
        first, second = agents("pc01 pc02", daemon)
        ids = list(wait_online(daemon, ["pc01", "pc02"]).values())
        cast_id = daemon.create_cast(image.image_id, machine_ids=ids, rate_bytes_per_s=RATE_BYTES_PER_S)
        daemon.wait_progress(cast_id, 0.3, ["pc01"])
        first.kill()
        [again] = agents("pc01", daemon)
        cast = daemon.wait_phase(cast_id, "done")
        assert (cast["complete_count"], cast["required_count"]) == (2, 2)
        for agent in (again, second):
            image.assert_is_on(agent.target)
        result = result_of(again, cast_id)
        assert 0 < result["raw_bytes_kept"] < len(image.raw), "the disk was looked at first"
        states = {line["machine_name"]: line["state"] for line in daemon.history(cast_id=cast_id)}
        assert states == {"pc01": "complete", "pc02": "complete"}


def test_an_agent_needs_an_enrol_token_and_exits_when_its_image_is_written(
    tmp_path: Path, image: GoldenImage
) -> None:
    with Daemon(tmp_path / "d") as daemon:
        daemon.add_image(image.path)
        made = {
            role: daemon.ask("POST", "/tokens", {"name": role, "role": role}) for role in ("enrol", "view")
        }
        files = {role: tmp_path / role for role in made}
        for role, path in files.items():
            path.write_text(made[role]["secret"])
        target = tmp_path / "disk"
        argv = [
            "run",
            "--server",
            daemon.url,
            "--interface",
            "lo",
            "--identity",
            "SN-1",
            "--target",
            target,
            "--json",
        ]
        for options in (["--token-file", files["view"]], []):
            with Program(diskcast_agent(*argv, *options)) as stranger:
                assert stranger.wait(LIMIT_S) == EnrolmentRefusedError.exit_code, stranger.describe()
                assert "enrol" in stranger.result["error"]
        leaving = ["--name", "pc01", "--after-cast", "exit"]
        with Program(diskcast_agent(*argv, *leaving, "--token-file", files["enrol"])) as agent:
            ids = list(wait_online(daemon, ["pc01"]).values())
            assert made["enrol"]["secret"].encode() not in Path(f"/proc/{agent.pid}/cmdline").read_bytes()
            cast_id = daemon.create_cast(image.image_id, machine_ids=ids)
            assert agent.wait(LIMIT_S) == 0, agent.describe()
            assert agent.result["ok"]
        image.assert_is_on(target)
        daemon.wait_phase(cast_id, "done")
        doctor = diskcast_agent("doctor", "--interface", "lo", "--server", daemon.url, "--json")
        with Program([*doctor, "--token-file", str(files["enrol"])]) as trial:
            assert trial.wait(LIMIT_S) == 0, trial.describe()
            states = {event["check"]: event["status"] for event in trial.events[:-1]}
            assert (states[f"daemon {daemon.url}"], states["token"]) == ("ok", "ok")


def test_a_cast_that_is_nearly_over_waits_for_a_machine_that_is_about_to_join(
    tmp_path: Path, image: GoldenImage, agents: Agents
) -> None:
    """It was shown as joining, and failed when the last of the others was complete."""
    with Daemon(tmp_path / "d") as daemon:
        daemon.add_image(image.path)
        names = ("pc01", "pc02", "slow")
        known = [daemon.ask("POST", "/machines", {"name": name, "serial": f"SN-{name}"}) for name in names]
        ids = [machine["machine_id"] for machine in known]
        [first] = agents("pc01", daemon)
        cast_id = daemon.create_cast(
            image.image_id, machine_ids=ids, wait_for=1, rate_bytes_per_s=RATE_BYTES_PER_S
        )
        daemon.wait_phase(cast_id, "casting")
        slow = {
            "agent_id": "slow", "name": "slow", "version": "1", "interface": "eth0", "macs": [],
            "serial": "SN-slow", "asset_tag": "", "inventory": {}, "state": "idle", "cast_id": None,
            "last_result": None, "wait_s": 0,
        }  # fmt: skip
        assert daemon.check_in(slow)["assignment"]["cast_id"] == cast_id
        assert result_of(first, cast_id)["ok"]
        # It takes its time to join; meanwhile even a machine that wasn't there yet is still served.
        [late] = agents("pc02", daemon)
        assert result_of(late, cast_id)["ok"]
        image.assert_is_on(late.target)
