"""Tests of schedules: a scheduled cast is planned once, by one of several daemons."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sender.config.config_file import load_config
from sender.store.open_store import open_store
from tests.server.conftest import GoldenImage
from tests.support.postgres.server import PostgresServer
from tests.support.programs.serving import Daemon, ServiceAgent, wait_online, wait_until


def test_two_daemons_plan_one_cast_for_a_due_schedule(
    tmp_path: Path,
    image: GoldenImage,
    agents: Callable[..., list[ServiceAgent]],
    postgres: PostgresServer,
) -> None:
    settings = {"server": {"database": postgres.new_database()}}
    with (
        Daemon(tmp_path / "a", settings=settings) as daemon,
        Daemon(tmp_path / "b", settings=settings) as other,
    ):
        for one in (daemon, other):
            one.add_image(image.path)
        (agent,) = agents("pc01", daemon)
        machine_id = wait_online(daemon, ["pc01"])["pc01"]
        plan = {"image": image.image_id, "machine_ids": [machine_id]}
        body = {"name": "nightly", "cron": "0 3 * * *", "time_zone": "Europe/Berlin", "plan": plan}
        schedule_id = daemon.ask("POST", "/schedules", body)["schedule_id"]
        # The next run is moved to the past, because tests don't change the machine's clock.
        store = open_store(load_config(daemon.config_path, {}), upkeep=False)
        with contextlib.closing(store):
            store.schedules.change(schedule_id, next_at=datetime.now(UTC) - timedelta(seconds=1))

        def made() -> dict[str, Any]:
            schedule: dict[str, Any] = other.ask("GET", f"/schedules/{schedule_id}")
            return schedule if schedule["last_cast_id"] else {}

        schedule = wait_until("the cast is made", made, describe=daemon.describe)
        assert datetime.fromisoformat(schedule["next_at"]) > datetime.now(UTC)
        assert schedule["problem"] == ""
        cast = other.wait_phase(schedule["last_cast_id"], "done")
        assert cast["created_by"] == "schedule nightly"
        assert cast["schedule_id"] == schedule_id
        image.assert_is_on(agent.target)
        assert len(other.ask("GET", "/casts")["items"]) == 1
