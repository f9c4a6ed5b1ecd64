"""Machines woken by a real daemon over a real switch. Lost if these fail: nobody switches thirty PCs on by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks.disk_images import make_image
from tests.support.network.lab import (
    INTERFACE,
    LIMIT_S,
    Host,
    Network,
    Program,
    diskcast,
    diskcast_agent,
    run,
    wait_until,
)
from tests.support.programs.serving import Daemon

pytestmark = pytest.mark.needs_root

SECOND_INTERFACE = "eth1"


@pytest.fixture
def network() -> Iterator[Network]:
    """Three machines on the switch; the first one has a second cable, straight to the daemon's second interface."""
    with Network(3) as built:
        first = built.receivers[0].namespace
        peer = ("peer", "name", SECOND_INTERFACE, "netns", first)
        run("ip", "-n", built.sender.namespace, "link", "add", SECOND_INTERFACE, "type", "veth", *peer)
        for namespace, address in ((built.sender.namespace, "10.78.0.1"), (first, "10.78.0.2")):
            run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", SECOND_INTERFACE)
            run("ip", "-n", namespace, "link", "set", SECOND_INTERFACE, "up")
        yield built


def mac_of(host: Host, interface: str = INTERFACE) -> str:
    [link] = json.loads(run("ip", "-j", "-n", host.namespace, "link", "show", interface))
    return str(link["address"])


def sleep_at(network: Network, host: Host, interface: str = INTERFACE) -> Program:
    sniffer = network.start(host, [sys.executable, "-m", "tests.netns.magic_sniffer", interface])
    sniffer.wait_event("ready", LIMIT_S)
    return sniffer


def packets(sniffer: Program) -> list[str]:
    return [event["mac"] for event in sniffer.events if event["event"] == "packet"]


class Operator:
    """Commands in the daemon's namespace."""

    def __init__(self, network: Network, daemon: Daemon) -> None:
        self._network = network
        self._environment = {
            "DISKCAST_SERVER": daemon.url,
            "DISKCAST_PIN": daemon.pin,
            "DISKCAST_TOKEN_FILE": str(daemon.token_file),
        }

    def start(self, *arguments: str) -> Program:
        return self._network.start(
            self._network.sender, diskcast(*arguments, "--json"), environment=self._environment
        )

    def run(self, *arguments: str) -> dict[str, Any]:
        program = self.start(*arguments)
        assert program.wait(LIMIT_S) == 0, program.describe()
        return program.result


@pytest.fixture
def operator(network: Network, tmp_path: Path) -> Iterator[tuple[Operator, Daemon]]:
    """An operator of a daemon that wakes one machine at a time."""
    settings = {"network": {"interface": INTERFACE}, "wake": {"wave_size": 1, "pause_s": 1.5}}
    daemon = Daemon(tmp_path / "daemon", settings=settings, prefix=network.sender.prefix, encrypted=True)
    try:
        daemon.start(ready=False)
        wait_until("its token", daemon.token_file.exists, describe=daemon.describe)
        wait_until("its address", (daemon.state_directory / "api.json").exists, describe=daemon.describe)
        yield Operator(network, daemon), daemon
    finally:
        daemon.close()


def agent(network: Network, host: Host, daemon: Daemon, secret: str, target: Path) -> Program:
    """Start a machine's agent, as its boot does."""
    url = daemon.url.replace("127.0.0.1", network.sender.address)
    argv: Sequence[str | Path] = diskcast_agent(
        "run", "--server", url, "--pin", daemon.pin, "--interface", INTERFACE, "--target", target,
        "--state-directory", target.with_suffix(".state"), "--json",
    )  # fmt: skip
    return network.start(host, argv, environment={"DISKCAST_TOKEN": secret})


def add_room(commands: Operator, network: Network) -> list[str]:
    """Create a room with the network's machines; return their hardware addresses."""
    commands.run("rooms", "create", "lab")
    macs = [mac_of(host) for host in network.receivers]
    for index, mac in enumerate(macs):
        commands.run("machines", "add", f"pc{index + 1}", "--room", "lab", "--mac", mac)
    return macs


def enrolment_secret(commands: Operator) -> str:
    return str(commands.run("tokens", "create", "agents", "--role", "enrol")["secret"])


def test_a_room_is_woken_in_waves_and_the_result_is_recorded(
    network: Network, operator: tuple[Operator, Daemon], tmp_path: Path
) -> None:
    commands, daemon = operator
    macs, secret = add_room(commands, network), enrolment_secret(commands)
    sniffers = [sleep_at(network, host) for host in network.receivers]
    cabled = sleep_at(network, network.receivers[0], SECOND_INTERFACE)

    waking = commands.start("machines", "wake", "--room", "lab")
    for index, (host, mac) in enumerate(zip(network.receivers, macs, strict=True)):
        sniffers[index].wait_event("packet", LIMIT_S, lambda event, mac=mac: event["mac"] == mac)
        agent(network, host, daemon, secret, tmp_path / f"{index}.disk")
    assert waking.wait(LIMIT_S) == 0, waking.describe()

    for sniffer in (*sniffers, cabled):
        assert list(dict.fromkeys(packets(sniffer))) == macs, (
            "every machine's packet, in the order of the waves"
        )
    assert all(1 <= packets(sniffers[2]).count(mac) <= 3 for mac in macs)
    assert {event["source"] for event in cabled.events if event["event"] == "packet"} == {"10.78.0.1"}
    result = waking.result
    assert {machine["name"]: machine["state"] for machine in result["machines"]} == {
        "pc1": "woke",
        "pc2": "woke",
        "pc3": "woke",
    }
    assert [machine["wave"] for machine in result["machines"]] == [1, 2, 3]
    assert set(result["interfaces"]) == {INTERFACE, SECOND_INTERFACE}

    audit = commands.start("history", "audit")
    assert audit.wait(LIMIT_S) == 0, audit.describe()
    ends = [event for event in audit.events if event.get("action") == "wake.end"]
    assert [(end["subject"], end["detail"]["awake"], end["detail"]["asleep"]) for end in ends] == [
        (f"wake {result['wake_id']}", 3, [])
    ]


def test_a_cast_wakes_its_machines_before_they_gather(
    network: Network, operator: tuple[Operator, Daemon], tmp_path: Path
) -> None:
    commands, daemon = operator
    macs, secret = add_room(commands, network), enrolment_secret(commands)
    made = make_image("drzu")
    made.write(daemon.images / "lab.dci")
    sniffers = [sleep_at(network, host) for host in network.receivers]

    def in_library() -> bool:
        listing = commands.start("images", "list")
        assert listing.wait(LIMIT_S) == 0, listing.describe()
        return any(event.get("state") == "available" for event in listing.events)

    wait_until("the image is in the library", in_library, describe=daemon.describe)
    cast = commands.start("casts", "create", "lab.dci", "--room", "lab", "--wake", "--watch")
    for index, (host, mac) in enumerate(zip(network.receivers, macs, strict=True)):
        sniffers[index].wait_event("packet", LIMIT_S, lambda event, mac=mac: event["mac"] == mac)
        agent(network, host, daemon, secret, tmp_path / f"{index}.disk")
    assert cast.wait(LIMIT_S) == 0, cast.describe()
    kinds = [event["event"] for event in cast.events]
    assert kinds.index("wake_started") < kinds.index("receiver_joined")
    for index in range(3):
        assert (tmp_path / f"{index}.disk").stat().st_size == len(made.raw)
