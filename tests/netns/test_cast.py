"""Whole casts with both programs over real multicast between namespaces: loss, crashes, garbage, late joins.

Tests wait only for events of the programs. The rate is fixed where something must happen while data flows.
"""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import CONTROL_PORT_DEFAULT, DATA_PORT_DEFAULT, GROUP_IPV4_DEFAULT, MIB
from protocol.errors import (
    AmbiguousCastError,
    CastCancelledError,
    InterfaceError,
    ReceiversIncompleteError,
    SenderLostError,
)
from tests.bench.measurement import first_difference
from tests.support.disks.devices import loop_device
from tests.support.network.lab import (
    INTERFACE,
    LIMIT_S,
    Host,
    Network,
    Program,
    diskcast,
    held,
    receive,
    run,
    send,
    wait_until,
)

pytestmark = pytest.mark.needs_root

SLOW_RATE = "48M"
"""6 MB/s: the image takes four seconds, enough for events in the middle."""


STORED_BYTES = 22 * MIB
"""Incompressible bytes of the image."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with every kind of block and a short last one, and its image."""
    folder = tmp_path_factory.mktemp("cast")
    rng = np.random.default_rng(11)
    text = (b"compressible " * (2 * MIB // 13)).ljust(2 * MIB, b".")
    parts = [rng.bytes(12 * MIB), bytes(3 * MIB), text, rng.bytes(10 * MIB), bytes(MIB), rng.bytes(1536)]
    source = folder / "disk.raw"
    source.write_bytes(b"".join(parts))
    pack(source)
    return source


@pytest.fixture(scope="module")
def other_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("other") / "other.raw"
    source.write_bytes(np.random.default_rng(12).bytes(4 * MIB))
    pack(source)
    return source


def pack(source: Path) -> None:
    with Program(diskcast("pack", source, "-o", packed(source), "--json")) as program:
        assert program.wait(LIMIT_S) == 0, program.describe()


def packed(source: Path) -> Path:
    return source.with_suffix(".dci")


CAST_ID = "00c0ffee"


def send_named(network: Network, image: Path, *options: str) -> Program:
    """Return a cast whose agents know its id, so that they needn't listen 2.5 s for others."""
    return send(network, image, "--cast-id", CAST_ID, *options)


def join(network: Network, index: int, target: Path, *options: str) -> Program:
    return receive(network, index, target, "--cast", CAST_ID, *options)


def assert_complete(program: Program, source: Path, target: Path) -> None:
    """Check that the agent succeeded and its target equals the disk."""
    assert program.wait(LIMIT_S) == 0, program.describe()
    assert program.result["ok"] is True
    assert first_difference(source, target) is None


def assert_failed(program: Program, exit_code: int) -> None:
    assert program.wait(LIMIT_S) == exit_code, program.describe()
    assert (program.result["ok"], program.result["exit_code"]) == (False, exit_code)


def wait_progress(sender: Program, share: float) -> None:
    """Wait until the first pass over the image has progressed beyond ``share`` and hasn't ended."""
    sender.wait_event("progress", LIMIT_S, lambda event: share < event["pass_progress"] < 1)


# -- a plain room ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", [True, False], ids=["super-datagrams", "single datagrams"])
@pytest.mark.parametrize("loss_permille", [0, 50], ids=["no loss", "5 % loss"])
def test_three_receivers_get_every_byte(
    image: Path, tmp_path: Path, offload: bool, loss_permille: int
) -> None:
    with Network(3) as network:
        network.set_offload(offload)
        network.set_loss(loss_permille)
        targets = [tmp_path / str(index) for index in range(3)]
        agents = [receive(network, index, target) for index, target in enumerate(targets)]
        sender = send(network, packed(image), "--wait-for", "3")
        for agent, target in zip(agents, targets, strict=True):
            assert_complete(agent, image, target)
        assert sender.wait(LIMIT_S) == 0, sender.describe()
        assert len(sender.result["receivers"]) == 3


def test_feedback_is_lost_too(image: Path, tmp_path: Path) -> None:
    """A lost NACK or REPORT costs time, but doesn't fail the cast."""
    with Network(2) as network:
        network.set_offload(False)
        network.set_loss(50)
        network.set_loss(300, [network.sender])
        agents = [join(network, index, tmp_path / str(index)) for index in range(2)]
        sender = send_named(network, packed(image), "--wait-for", "2")
        for index, agent in enumerate(agents):
            assert_complete(agent, image, tmp_path / str(index))
        assert sender.wait(LIMIT_S) == 0, sender.describe()


def test_slow_link_is_not_drowned(image: Path, tmp_path: Path) -> None:
    """A 100 Mbit/s port among gigabit ones: the rate adapts, and the cast doesn't send the image many times."""
    with Network(2) as network:
        network.set_offload(False)
        network.set_rate(100, [network.receivers[1]])
        agents = [join(network, index, tmp_path / str(index)) for index in range(2)]
        sender = send_named(network, packed(image), "--wait-for", "2")
        for index, agent in enumerate(agents):
            assert_complete(agent, image, tmp_path / str(index))
        assert sender.wait(LIMIT_S) == 0, sender.describe()


def test_loop_device_is_imaged(image: Path, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xa5" * (32 * MIB))
    with loop_device(backing) as device, Network(1) as network:
        agent = join(network, 0, device)
        sender = send_named(network, packed(image), "--wait-for", "1")
        assert agent.wait(LIMIT_S) == 0, agent.describe()
        assert sender.wait(LIMIT_S) == 0, sender.describe()
    content, expected = backing.read_bytes(), image.read_bytes()
    assert content[: len(expected)] == expected
    assert set(content[len(expected) : -MIB]) == {0xA5}, "bytes behind the image's end were touched"
    assert not any(content[-MIB:]), "old backup tables at the disk's end come back to life"


# -- links of other sizes ---------------------------------------------------------------------------------------


def test_a_switch_that_takes_no_jumbo_frames_ends_the_cast_with_the_fix(image: Path, tmp_path: Path) -> None:
    """The small control datagrams pass, so that all receivers join, and no image data ever leaves."""
    with Network(1) as network:
        network.set_offload(False)
        network.set_mtu(9000, *[(host.namespace, INTERFACE) for host in network.hosts])
        join(network, 0, tmp_path / "target")
        sender = send_named(network, packed(image), "--wait-for", "1")
        assert_failed(sender, InterfaceError.exit_code)
        assert "its MTU is 9000" in sender.result["error"]
        assert "choose --symbol-size 1440" in sender.result["error"]


def test_a_machine_whose_mtu_is_too_small_says_so_on_both_sides(image: Path, tmp_path: Path) -> None:
    with Network(2) as network:
        jumbo = [network.sender, network.receivers[1]]
        network.set_mtu(
            9000,
            *[(host.namespace, INTERFACE) for host in jumbo],
            *[(network.switch, host.switch_port) for host in network.hosts],
        )
        small = join(network, 0, tmp_path / "small", "--name", "small")
        large = join(network, 1, tmp_path / "large", "--name", "large")
        sender = send_named(network, packed(image), "--wait-for", "2", "--max-wait", "5")
        assert_failed(small, InterfaceError.exit_code)
        assert_complete(large, image, tmp_path / "large")
        assert_failed(sender, ReceiversIncompleteError.exit_code)
        assert not (tmp_path / "small").exists() or not any((tmp_path / "small").read_bytes())
        [failed] = [receiver for receiver in sender.result["receivers"] if receiver["name"] == "small"]
        assert "the MTU of eth0 is 1500" in failed["error"]


# -- joins and losses --------------------------------------------------------------------------------


def test_late_joiner_gets_the_missed_blocks(image: Path, tmp_path: Path) -> None:
    with Network(2) as network:
        early = join(network, 0, tmp_path / "early", "--name", "early")
        patient = ("--rate", SLOW_RATE, "--receiver-timeout", str(LIMIT_S))
        sender = send_named(network, packed(image), "--wait-for", "1", *patient)
        wait_progress(sender, 0.1)
        url = f"https://{network.sender.address}:{CONTROL_PORT_DEFAULT}"
        with held(early):
            late = join(network, 1, tmp_path / "late", "--name", "late", "--sender", url)
            sender.wait_event("receiver_joined", LIMIT_S, lambda event: event["receiver"] == "late")
        assert_complete(early, image, tmp_path / "early")
        assert_complete(late, image, tmp_path / "late")
        assert sender.wait(LIMIT_S) == 0, sender.describe()


def test_killed_receiver_does_not_delay_the_room(image: Path, tmp_path: Path) -> None:
    with Network(2) as network:
        agents = [join(network, index, tmp_path / str(index)) for index in range(2)]
        sender = send_named(
            network, packed(image), "--wait-for", "2", "--rate", SLOW_RATE, "--receiver-timeout", "6"
        )
        wait_progress(sender, 0.1)
        agents[1].signal(signal.SIGKILL)
        assert_complete(agents[0], image, tmp_path / "0")
        assert_failed(sender, ReceiversIncompleteError.exit_code)
        sender.wait_event("receiver_lost", 0.0)


def test_restarted_receiver_completes(image: Path, tmp_path: Path) -> None:
    """After a power cut in the middle of the cast, a new agent continues on the same disk."""
    with Network(1) as network:
        first = join(network, 0, tmp_path / "target")
        sender = send_named(network, packed(image), "--wait-for", "1", "--rate", SLOW_RATE)
        wait_progress(sender, 0.5)
        first.signal(signal.SIGKILL)
        first.wait(LIMIT_S)
        second = join(network, 0, tmp_path / "target")
        assert_complete(second, image, tmp_path / "target")
        assert sender.wait(LIMIT_S) == 0, sender.describe()
        assert len(sender.result["receivers"]) == 1, (
            "the first agent isn't a machine of its own that was lost"
        )


def test_killed_sender_is_detected(image: Path, tmp_path: Path) -> None:
    with Network(1) as network:
        agent = join(network, 0, tmp_path / "target", "--sender-timeout", "6")
        sender = send_named(network, packed(image), "--wait-for", "1", "--rate", SLOW_RATE)
        wait_progress(sender, 0.1)
        sender.signal(signal.SIGKILL)
        assert_failed(agent, SenderLostError.exit_code)


def test_restarted_sender_continues(image: Path, tmp_path: Path) -> None:
    """The same command after a crash is the same cast: agents rejoin with what they have."""
    with Network(2) as network:
        agents = [join(network, index, tmp_path / str(index)) for index in range(2)]
        options = ("--wait-for", "2", "--rate", SLOW_RATE)
        first = send_named(network, packed(image), *options)
        wait_progress(first, 0.5)
        first.signal(signal.SIGKILL)
        first.wait(LIMIT_S)
        second = send_named(network, packed(image), *options)
        for index, agent in enumerate(agents):
            assert_complete(agent, image, tmp_path / str(index))
        assert second.wait(LIMIT_S) == 0, second.describe()
        assert [agent.result["rejoins"] for agent in agents] == [1, 1]
        assert second.result["bytes_sent"] < 0.6 * STORED_BYTES, "what the room had was sent again"


def test_cancelled_cast_ends_its_receivers(image: Path, tmp_path: Path) -> None:
    with Network(1) as network:
        agent = join(network, 0, tmp_path / "target")
        sender = send_named(network, packed(image), "--wait-for", "1", "--rate", SLOW_RATE)
        wait_progress(sender, 0.1)
        sender.signal(signal.SIGINT)
        assert_failed(agent, CastCancelledError.exit_code)
        assert sender.wait(LIMIT_S) != 0


def test_unplugged_cable_is_only_a_pause(image: Path, tmp_path: Path) -> None:
    with Network(2) as network:
        agents = [join(network, index, tmp_path / str(index)) for index in range(2)]
        sender = send_named(network, packed(image), "--wait-for", "2", "--rate", SLOW_RATE)
        wait_progress(sender, 0.1)
        network.set_link(network.receivers[1], up=False)
        wait_progress(sender, 0.5)
        network.set_link(network.receivers[1], up=True)
        for index, agent in enumerate(agents):
            assert_complete(agent, image, tmp_path / str(index))
        assert sender.wait(LIMIT_S) == 0, sender.describe()


# -- garbage and other casts --------------------------------------------------------------------------------


GARBAGE_COUNT = 700


def start_garbage(network: Network, host: Host, address: str, port: int, sign: Path) -> Program:
    """Start a program that sends garbage once the file ``sign`` exists."""
    argv = [sys.executable, "-m", "tests.netns.garbage", address, str(port), str(GARBAGE_COUNT), sign]
    program = network.start(host, argv)
    program.wait_event("ready", LIMIT_S)
    return program


def test_garbage_is_counted_and_changes_nothing(image: Path, tmp_path: Path) -> None:
    """Random and partly valid datagrams arrive at the feedback port and at the group, from another machine, which a
    source-specific membership filters out, and from the sender's own machine.
    """
    with Network(3) as network:
        feedback = (network.sender.address, CONTROL_PORT_DEFAULT)
        group = (GROUP_IPV4_DEFAULT, DATA_PORT_DEFAULT)
        sign = tmp_path / "sign"
        strangers = [
            start_garbage(network, network.receivers[1], *feedback, sign),
            start_garbage(network, network.receivers[1], *group, sign),
            start_garbage(network, network.sender, *group, sign),
        ]
        agent, last = (join(network, index, tmp_path / str(index)) for index in (0, 2))
        options = ("--receiver-timeout", str(LIMIT_S), "--metrics-port", "9100")
        sender = send_named(network, packed(image), "--wait-for", "2", "--rate", SLOW_RATE, *options)
        wait_progress(sender, 0.1)
        with held(last):
            sign.touch()
            for stranger in strangers:
                assert stranger.wait(LIMIT_S) == 0, stranger.describe()
            wait_until("the sender has seen all", lambda: set(REASONS) <= rejects_of_sender(network).keys())
            at_sender = rejects_of_sender(network)
        assert_complete(agent, image, tmp_path / "0")
        assert_complete(last, image, tmp_path / "2")
        assert sender.wait(LIMIT_S) == 0, sender.describe()
    assert agent.result["blocks_rejected"] == 0
    for rejects in (at_sender, agent.result["rejects"]):
        for reason in REASONS:
            assert rejects[reason] > 0, (reason, rejects)
        # Datagrams of the cast from before a machine's join count as replayed.
        garbage_count = sum(count for reason, count in rejects.items() if reason != "replayed")
        assert garbage_count <= GARBAGE_COUNT, rejects
    assert agent.result["rejects"]["foreign_cast"] > 0


REASONS = ("too_short", "bad_magic", "bad_version", "bad_type", "foreign_cast")
READ_METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9100/metrics", timeout=60).read().decode())
"""


def rejects_of_sender(network: Network) -> dict[str, int]:
    """Return the number of datagrams that the sender rejected, by reason."""
    metrics = run(*network.sender.prefix, sys.executable, "-c", READ_METRICS)
    found = re.findall(r'^diskcast_rejected_datagrams_total\{.*reason="(\w+)".*\} (\S+)$', metrics, re.M)
    return {reason: int(float(count)) for reason, count in found if float(count)}


def test_two_casts_on_one_group_are_distinguished(image: Path, other_image: Path, tmp_path: Path) -> None:
    """Chance must not decide which image a disk gets; with their ids, both casts run side by side."""
    with Network(3) as network:
        first = send(network, packed(image), "--wait-for", "1")
        second_argv = diskcast(
            "send", packed(other_image), "--interface", "eth0", "--open", "--json", "--wait-for", "1"
        )
        second = network.start(network.receivers[2], second_argv)
        ids = {program: program.wait_event("cast_started", LIMIT_S)["cast_id"] for program in (first, second)}
        undecided = receive(network, 0, tmp_path / "undecided")
        assert_failed(undecided, AmbiguousCastError.exit_code)
        assert all(cast_id in undecided.result["error"] for cast_id in ids.values())
        assert not (tmp_path / "undecided").exists()
        agents = [
            receive(network, 0, tmp_path / "first", "--cast", ids[first]),
            receive(network, 1, tmp_path / "second", "--cast", ids[second]),
        ]
        assert_complete(agents[0], image, tmp_path / "first")
        assert_complete(agents[1], other_image, tmp_path / "second")
        assert first.wait(LIMIT_S) == 0, first.describe()
        assert second.wait(LIMIT_S) == 0, second.describe()
