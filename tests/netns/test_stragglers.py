"""Whole casts in which one machine is far slower than the others, or the link changes in the middle.

Rates are low, so that there is time for events. After the expected event a test makes the slow machine fast, to end
soon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.errors import DroppedError, ReceiversIncompleteError
from protocol.model.bottleneck import Cause
from tests.bench.measurement import first_difference
from tests.support.disks.slow_disk import Behaviour, slow_disk
from tests.support.network.lab import LIMIT_S, Network, Program, diskcast, receive, send

pytestmark = pytest.mark.needs_root

CAST_ID = "00c0ffee"
MAX_RATE = "48M"
"""6 MB/s for the others: the image takes four seconds."""
SLOW_MBIT_PER_S = 4
SLOW_DISK_BYTES_PER_S = 500e3
SLOW_FOR = "500ms"
SLOW = 2
"""Index of the slow machine among three."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of 48 MiB of random bytes, and its image: eight seconds, to find a slow machine on a busy host."""
    source = tmp_path_factory.mktemp("stragglers") / "disk.raw"
    source.write_bytes(np.random.default_rng(13).bytes(48 * MIB))
    with Program(diskcast("pack", source, "-o", packed(source), "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()
    return source


def packed(source: Path) -> Path:
    return source.with_suffix(".dci")


def join(network: Network, index: int, target: Path, *options: str) -> Program:
    return receive(network, index, target, "--cast", CAST_ID, "--name", f"r{index}", *options)


def send_capped(network: Network, image: Path, *options: str) -> Program:
    capped = ("--wait-for", str(len(network.receivers)), "--cast-id", CAST_ID, "--max-rate", MAX_RATE)
    return send(network, packed(image), *capped, *options)


def is_about_slow_one(event: dict[str, Any]) -> bool:
    return bool(event["receiver"] == f"r{SLOW}")


def assert_complete(program: Program, source: Path, target: Path) -> None:
    assert program.wait(LIMIT_S) == 0, program.describe()
    assert program.result["ok"] is True
    assert first_difference(source, target) is None


def test_slow_link_is_demoted_and_completes(image: Path, tmp_path: Path) -> None:
    """By default the slow machine becomes a straggler and gets the rest in the tail."""
    with Network(3) as network:
        network.set_rate(SLOW_MBIT_PER_S, [network.receivers[SLOW]])
        targets = [tmp_path / str(index) for index in range(3)]
        agents = [join(network, index, target) for index, target in enumerate(targets)]
        sender = send_capped(network, image, "--slow-for", SLOW_FOR)
        demoted = sender.wait_event("receiver_demoted", LIMIT_S, is_about_slow_one)
        assert demoted["cause"] == Cause.NETWORK
        assert demoted["rate_bytes_per_s"] < demoted["group_rate_bytes_per_s"]
        sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.4)
        network.set_rate(0, [network.receivers[SLOW]])
        finished = sender.wait_event("main_group_finished", LIMIT_S)
        assert (finished["complete_count"], finished["straggler_count"]) == (2, 1)
        for agent, target in zip(agents, targets, strict=True):
            assert_complete(agent, image, target)
        assert sender.wait(LIMIT_S) == 0, sender.describe()


def test_slow_link_is_dropped_with_its_exit_codes(image: Path, tmp_path: Path) -> None:
    with Network(3) as network:
        network.set_rate(SLOW_MBIT_PER_S, [network.receivers[SLOW]])
        targets = [tmp_path / str(index) for index in range(3)]
        agents = [join(network, index, target) for index, target in enumerate(targets)]
        sender = send_capped(network, image, "--slow", "drop", "--slow-for", SLOW_FOR)
        sender.wait_event("receiver_dropped", LIMIT_S, is_about_slow_one)
        for agent, target in zip(agents[:SLOW], targets, strict=False):
            assert_complete(agent, image, target)
        assert agents[SLOW].wait(LIMIT_S) == DroppedError.exit_code, agents[SLOW].describe()
        assert agents[SLOW].result["exit_code"] == DroppedError.exit_code
        assert sender.wait(LIMIT_S) == ReceiversIncompleteError.exit_code, sender.describe()
        states = {one["name"]: one["state"] for one in sender.result["receivers"]}
        assert states == {"r0": "complete", "r1": "complete", "r2": "dropped"}


def test_slow_disk_is_named(image: Path, tmp_path: Path) -> None:
    """The operator sees which machine is slow, and that its disk is the reason."""
    behaviour = Behaviour(write_bytes_per_s=SLOW_DISK_BYTES_PER_S)
    with slow_disk(tmp_path, behaviour) as disk, Network(3) as network:
        agents = [join(network, index, tmp_path / str(index)) for index in range(SLOW)]
        agents.append(join(network, SLOW, disk.directory / "target", "--memory", "4MiB"))
        # 16 s, and named after one: on a busy host the others are slow for moments, too.
        sender = send_capped(network, image, "--max-rate", "24M", "--slow-for", "1s")
        slow = sender.wait_event("receiver_slow", LIMIT_S, is_about_slow_one)
        disk.set_behaviour(Behaviour())
        assert slow["cause"] == Cause.DISK
        for agent, target in zip(
            agents, [*(tmp_path / str(i) for i in range(SLOW)), disk.storage / "target"], strict=True
        ):
            assert_complete(agent, image, target)
        assert sender.wait(LIMIT_S) == 0, sender.describe()
        assert not [event for event in sender.events if event.get("event") == "receiver_lost"]


def test_link_that_slows_down_and_recovers(image: Path, tmp_path: Path) -> None:
    """A slower link for all machines, for a while, must not lose or demote any of them."""
    with Network(2) as network:
        network.set_rate(60)
        agents = [join(network, index, tmp_path / str(index)) for index in range(2)]
        sender = send_capped(network, image)
        sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.1)
        network.set_rate(12)
        sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.2)
        network.set_rate(60)
        for index, agent in enumerate(agents):
            assert_complete(agent, image, tmp_path / str(index))
        assert sender.wait(LIMIT_S) == 0, sender.describe()
        names = {event["event"] for event in sender.events}
        assert not names & {"receiver_demoted", "receiver_dropped", "receiver_lost", "receiver_failed"}
