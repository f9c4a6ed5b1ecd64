"""Attacks by programs that announce casts, and by programs that answer in a daemon's place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT, MIB
from protocol.errors import CertificateError
from tests.support.network.lab import INTERFACE, LIMIT_S, Network, Program, diskcast, diskcast_agent
from tests.support.network.loopback_cast import pack
from tests.support.network.tls_peer import shared_certificate, tls_peer
from tests.support.wire import announcement, forged

CAST_ID = "00c0ffee"
PRECIOUS = b"the disk of a machine that nobody may overwrite" * 1000


def disk_image(folder: Path, name: str, seed: int) -> tuple[bytes, Path]:
    """Pack a random disk; return its bytes and the image."""
    source = folder / f"{name}.raw"
    source.write_bytes(np.random.default_rng(seed).bytes(2 * MIB))
    return source.read_bytes(), pack(source, folder / f"{name}.dci")


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(2) as network:
        yield network


def start_sender(network: Network, host: int | None, image: Path, config: Path, *options: str) -> Program:
    """Start ``diskcast send`` as a user with keys of its own, at the sender or at a receiver's host."""
    place = network.sender if host is None else network.receivers[host]
    argv = diskcast("send", image, "--interface", INTERFACE, "--cast-id", CAST_ID, "--json", *options)
    return network.start(place, ["env", f"XDG_CONFIG_HOME={config}", *argv])


def start_agent(network: Network, target: Path, *options: str) -> Program:
    argv = diskcast_agent("receive", "--target", target, "--interface", INTERFACE, "--json", *options)
    return network.start(network.receivers[0], argv)


@pytest.mark.needs_root
def test_01_a_rogue_that_announces_the_same_cast_writes_nothing(network: Network, tmp_path: Path) -> None:
    """A user would lose every disk of the room: the rogue's image would be "verified"."""
    _, rogue_image = disk_image(tmp_path, "rogue", 1)
    rogue = start_sender(network, 1, rogue_image, tmp_path / "rogue-keys", "--open")
    rogue.wait_event("cast_started", LIMIT_S)
    # The code of a sender that isn't there (any more): only the rogue announces its cast.
    content, image = disk_image(tmp_path, "real", 2)
    started = start_sender(network, None, image, tmp_path / "keys")
    code = started.wait_event("cast_started", LIMIT_S)["join_code"]
    started.close()
    target = tmp_path / "target"
    target.write_bytes(PRECIOUS)
    victim = start_agent(network, target, "--join", code, "--wait", "4")
    assert victim.wait(LIMIT_S) == CertificateError.exit_code, victim.describe()
    assert victim.result["error_class"] == "CertificateError"
    assert target.read_bytes() == PRECIOUS

    # Both announce it now, and the agent finds the one that proves itself, whoever is heard last.
    victim = start_agent(network, target, "--join", code)
    real = start_sender(network, None, image, tmp_path / "keys")
    assert victim.wait(LIMIT_S) == 0, victim.describe()
    assert target.read_bytes()[: len(content)] == content
    assert real.wait(LIMIT_S) == 0, real.describe()
    assert not [event for event in rogue.events if event["event"] == "receiver_joined"]


def test_04_a_false_daemon_gets_no_token(tmp_path: Path) -> None:
    """A user would lose the token, with which the attacker could then take part in every cast."""
    token = "dct_enrol_" + "s3cret" * 8
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    with tls_peer(shared_certificate()) as false_daemon:
        argv = diskcast_agent("run", "--target", tmp_path / "disk", "--interface", "lo", "--identity", "pc1")
        argv += ["--server", false_daemon.url, "--pin", "a" * 52, "--json"]
        argv += ["--token-file", str(tmp_path / "token")]
        with Program(argv) as agent:
            refused = agent.wait_event("unanswered", LIMIT_S)
            assert "isn't trusted" in refused["reason"]
            # The next try is as silent as the first.
            deadline_s = time.monotonic() + LIMIT_S
            while false_daemon.connection_count < 2:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
    assert not false_daemon.heard, "everything that the false daemon could decrypt"


ANNOUNCE_RIVAL = f"""
import socket, sys, time
group, port = {GROUP_IPV4_DEFAULT!r}, {DATA_PORT_DEFAULT}
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
while True:
    sock.sendto(bytes.fromhex(sys.argv[1]), (group, port))
    time.sleep(0.05)
"""


@pytest.mark.needs_root
def test_15_a_forged_rival_at_the_start_does_not_end_the_cast(network: Network, tmp_path: Path) -> None:
    """A user would lose every cast: one datagram in its first seconds would end it."""
    content, image = disk_image(tmp_path, "real", 3)
    message = announcement(incarnation=7, control_url=f"https://{network.receivers[1].address}:1")
    datagram = forged(message, cast_id=int(CAST_ID, 16))
    network.start(network.receivers[1], ["python3", "-c", ANNOUNCE_RIVAL, datagram.hex()])
    sender = start_sender(network, None, image, tmp_path / "keys")
    code = sender.wait_event("cast_started", LIMIT_S)["join_code"]
    note = sender.wait_event("note", LIMIT_S)
    assert "without being its sender" in note["text"]
    target = tmp_path / "target"
    agent = start_agent(network, target, "--join", code)
    assert agent.wait(LIMIT_S) == 0, agent.describe()
    assert sender.wait(LIMIT_S) == 0, sender.describe()
    assert target.read_bytes()[: len(content)] == content
