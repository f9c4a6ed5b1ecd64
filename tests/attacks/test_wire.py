"""Attacks by datagrams: outsiders who hear and forge, members who lie, recordings of yesterday."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

from protocol.constants import (
    CONTROL_PORT_DEFAULT,
    DATA_PORT_DEFAULT,
    FEEDBACK_MAC_BYTES,
    GROUP_IPV4_DEFAULT,
    MIB,
    NACK_BLOCKS_MAX,
    REPAIR_SHARE_MAX,
    RESTART_QUESTION_INTERVAL_S,
)
from protocol.model.session_records import JoinGrant
from protocol.sending.sender_session import SenderSession
from protocol.wire.codec import FEEDBACK_PREFIX
from protocol.wire.messages import Nack, Report
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import bind_control_sockets
from sender.cast.session.feedback import FeedbackPort
from sender.cast.session.locked_session import LockedSession
from tests.bench.measurement import first_difference
from tests.simulation.cast import CastModel, SimulatedCast
from tests.simulation.links import shaped
from tests.simulation.receivers import ReceiverModel
from tests.support.network.lab import INTERFACE, LIMIT_S, Host, Network, Program, receive, run, send
from tests.support.network.loopback_cast import pack
from tests.unit.protocol.sending.sender_inputs import feedback, join_request, new_session, transmit_all

CAST_ID = "00c0ffee"
ATTACK_S = 8.0
RATE = "48M"
CLOSED_PORT = 7499
FORGED_PER_S = 10_000
STORED_BYTES = 40 * MIB
"""Seven seconds at that rate."""

OVERTAKEN_MAX = 3
"""Blocks with a forged symbol that overtook the true one: a busy machine may deliver the outsider's copy first."""

QUESTION_SEGMENTS = 12
"""TCP segments to the sender of one question with a connection of its own."""

METRICS = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("image") / "disk.raw"
    source.write_bytes(np.random.default_rng(3).bytes(STORED_BYTES))
    pack(source, source.with_suffix(".dci"))
    return source


def attack(network: Network, host: Host, mode: str, sender: str, seconds: float = ATTACK_S) -> Program:
    where = [INTERFACE, GROUP_IPV4_DEFAULT, str(DATA_PORT_DEFAULT), sender, str(seconds)]
    program = network.start(host, [sys.executable, "-m", "tests.attacks.wire_attacker", mode, *where])
    program.wait_event("ready", LIMIT_S)
    return program


def cast(network: Network, image: Path, *options: str) -> Program:
    # Tests need the program's own limit of time for a whole cast on a busy machine.
    named = ("--cast-id", CAST_ID, "--receiver-timeout", str(LIMIT_S))
    return send(network, image.with_suffix(".dci"), *named, *options)


def join(network: Network, index: int, target: Path, *options: str) -> Program:
    return receive(network, index, target, "--cast", CAST_ID, "--allow-unsigned", *options)


def metric_of(host: Host, port: int, pattern: str) -> dict[str, float]:
    """Return a metric's values by the first group of ``pattern``."""
    text = run(*host.prefix, sys.executable, "-c", METRICS, str(port))
    return {name: float(value) for name, value in re.findall(rf"^{pattern} (\S+)$", text, re.M)}


def received_segments(host: Host) -> int:
    """Return the number of TCP segments that the host has received so far."""
    rows = [line.split() for line in run(*host.prefix, "cat", "/proc/net/snmp").splitlines()]
    names, values = (row for row in rows if row[0] == "Tcp:")
    return int(values[names.index("InSegs")])


@dataclasses.dataclass(frozen=True, slots=True)
class Attacked:
    """A cast to two machines with an outsider beside it; the second machine loses 1 % of its datagrams."""

    image: Path
    targets: tuple[Path, Path]
    agents: tuple[Program, Program]
    sender: Program
    segments: int
    between_s: float
    grtt_s: float


@pytest.fixture(scope="module")
def attacked(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    targets = (folder / "0", folder / "1")
    with Network(3) as network:
        outsider = network.receivers[2]
        attackers = [
            attack(network, outsider, mode, network.sender.address) for mode in ("control", "symbols")
        ]
        agents = (
            join(network, 0, targets[0], "--metrics-port", "9101"),
            join(network, 1, targets[1], "--rehearse-loss", "1%"),
        )
        sender = cast(network, image, "--wait-for", "2", "--rate", RATE)
        sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.15)
        before, started_at = received_segments(network.sender), time.monotonic()
        sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.6)
        grtt = metric_of(network.receivers[0], 9101, r"(diskcast_agent_grtt_seconds)")
        sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.8)
        segments = received_segments(network.sender) - before
        between_s = time.monotonic() - started_at
        for program in (*agents, sender, *attackers):
            program.wait(LIMIT_S)
        assert all(attacker.result["count"] > 100 for attacker in attackers)
        (grtt_s,) = grtt.values()
        yield Attacked(image, targets, agents, sender, segments, between_s, grtt_s)


@pytest.mark.needs_root
def test_12_forged_ends_and_verdicts_of_a_listener_are_ignored_and_counted(attacked: Attacked) -> None:
    """A user would lose the cast: one EOT with the token of any symbol ended every agent."""
    for agent in attacked.agents:
        assert agent.exit_code == 0, agent.describe()
        assert agent.result["rejects"]["bad_tag"] > 100
    assert attacked.sender.exit_code == 0, attacked.sender.describe()
    assert attacked.sender.result["ok"] is True


@pytest.mark.needs_root
def test_13_announcements_of_a_restart_cause_no_rejoin_and_one_question_in_five_seconds(
    attacked: Attacked,
) -> None:
    """A user would lose hours: a hundred rejoins in twelve seconds left no time to receive."""
    for agent in attacked.agents:
        assert agent.result["rejoins"] == 0
    most = len(attacked.agents) * (1 + attacked.between_s // RESTART_QUESTION_INTERVAL_S)
    assert 0 < attacked.segments <= most * QUESTION_SEGMENTS


@pytest.mark.needs_root
def test_14_a_round_trip_time_of_4000_s_changes_no_timing(attacked: Attacked) -> None:
    """A user would lose the repairs: an agent that waits for thousands of seconds NACKs nothing."""
    assert attacked.grtt_s < 0.5
    assert (
        attacked.agents[1].result["nacks_sent"] > 0
        or attacked.agents[1].result["blocks_repaired_by_parity"] > 0
    )


@pytest.mark.needs_root
def test_16_an_outsiders_symbols_are_taken_only_for_lost_ones_and_never_written(attacked: Attacked) -> None:
    """A user would lose the image, or the cast: five forged symbols of one block were fatal."""
    clean, lossy = (agent.result for agent in attacked.agents)
    assert clean["rejects"]["replayed"] > 100
    assert clean["blocks_rejected"] <= OVERTAKEN_MAX
    assert lossy["datagrams_received"] <= lossy["datagrams_expected"]
    for target in attacked.targets:
        assert first_difference(attacked.image, target) is None


@pytest.mark.needs_root
def test_19_ten_thousand_forged_nacks_a_second_cost_little_of_the_rate(image: Path, tmp_path: Path) -> None:
    """A user would wait twice as long: each forged NACK took 93 µs of the sender's processor."""
    cpu_s = {}
    for port in (CLOSED_PORT, CONTROL_PORT_DEFAULT):
        with Network(2) as network:
            # The same flood to a closed port: what the kernel and the attacker's own program cost.
            address = f"{network.sender.address},{port}"
            attack(network, network.receivers[1], "feedback", address, LIMIT_S)
            agent = join(network, 0, tmp_path / str(port))
            sender = cast(network, image, "--rate", "100M", "--metrics-port", "9100")
            if port == CONTROL_PORT_DEFAULT:
                sender.wait_event("progress", LIMIT_S, lambda event: event["pass_progress"] > 0.2)
                pattern = r'diskcast_rejected_datagrams_total\{.*reason="(\w+)".*\}'
                assert metric_of(network.sender, 9100, pattern)["bad_mac"] > 1000
            assert agent.wait(LIMIT_S) == 0, agent.describe()
            assert sender.wait(LIMIT_S) == 0, sender.describe()
            assert sender.usage is not None
            cpu_s[port] = sender.usage.cpu_s
            flooded_count = FORGED_PER_S * agent.result["seconds_receiving"]
    # Processor time, since other programs on this machine change the rate: 40 µs would be 0.4 of a core at this flood.
    assert cpu_s[CONTROL_PORT_DEFAULT] - cpu_s[CLOSED_PORT] <= 40e-6 * flooded_count


@pytest.mark.needs_root
def test_22_everything_that_was_recorded_yesterday_has_no_effect(image: Path, tmp_path: Path) -> None:
    """A user would lose the cast: a recorded EOT ended it, recorded NACKs and reports slowed it down."""
    records = tmp_path / "group", tmp_path / "feedback"
    targets = tmp_path / "0", tmp_path / "1"
    for day in range(2):
        verb = "replay" if day else "record"
        with Network(2) as network:
            address = network.sender.address
            places = (network.receivers[1], network.receivers[1] if day else network.sender)
            modes = (verb, f"{verb}-feedback")
            outsiders = [
                attack(network, place, mode, f"{address},{path}", seconds=LIMIT_S)
                for place, mode, path in zip(places, modes, records, strict=True)
            ]
            agent = join(network, 0, targets[day], "--rehearse-loss", "3%")
            sender = cast(network, image, "--rate", RATE, "--metrics-port", "9100")
            rejects: dict[str, float] = {}
            if day:
                for outsider in outsiders:
                    outsider.wait_event("result", LIMIT_S)
                pattern = r'diskcast_rejected_datagrams_total\{.*reason="(\w+)".*\}'
                with contextlib.suppress(Exception):  # the cast may be over
                    rejects = metric_of(network.sender, 9100, pattern)
            assert agent.wait(LIMIT_S) == 0, agent.describe()
            assert sender.wait(LIMIT_S) == 0, sender.describe()
            for outsider in outsiders:
                outsider.close()
        assert all(path.stat().st_size > 1000 for path in records)
        assert first_difference(image, targets[day]) is None
    assert agent.result["rejects"]["bad_tag"] > 100, "yesterday's announcements and symbols"
    assert agent.result["rejoins"] == 0
    assert not rejects or rejects["bad_mac"] > 10, "yesterday's NACKs and reports"


# -- members: a real feedback port on the loopback interface ------------------------------------------------------


class HeldLock(LockedSession):
    """A locked session that measures the processor time of each update: other programs don't count."""

    def __init__(self, session: SenderSession) -> None:
        super().__init__(session, lambda: None)
        self.held_s: list[float] = []

    @contextlib.contextmanager
    def update(self) -> Iterator[tuple[SenderSession, float]]:
        with super().update() as (session, now):
            started_at = time.thread_time()
            yield session, now
            self.held_s.append(time.thread_time() - started_at)


def deliver(session: SenderSession, datagrams: list[bytes]) -> list[float]:
    """Send datagrams to a real feedback port; return for how long each update held the session's lock."""
    lo = find_interface("lo")
    tcp, udp = bind_control_sockets(None, 0, lo, lo.address_for(parse_group("239.1.1.1")))
    destination = udp.getsockname()
    locked = HeldLock(session)

    async def exchange() -> None:
        port = FeedbackPort(udp, locked)
        task = asyncio.create_task(port.run())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            async with asyncio.timeout(LIMIT_S):
                for index, datagram in enumerate(datagrams, 1):
                    sock.sendto(datagram, destination)
                    while port.received_count < index - 20:
                        await asyncio.sleep(0)
                while port.received_count < len(datagrams):
                    await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)

    with tcp, udp:
        asyncio.run(exchange())
    return locked.held_s


def whole_image_nack(grant: JoinGrant, counter: int, block_count: int) -> bytes:
    """Return an authentic NACK of 100 rows that each name the whole image."""
    valid = feedback(grant, counter, Nack(1, 0, ((0, 1, 1),)))
    body = msgpack.packb([1, 0xFFFFFFFF, [[0, block_count, 20]] * 100])
    signed = FEEDBACK_PREFIX.pack(*FEEDBACK_PREFIX.unpack_from(valid)) + body
    return signed + hashlib.blake2s(signed, key=grant.key, digest_size=FEEDBACK_MAC_BYTES).digest()


def test_20_a_member_that_nacks_everything_holds_no_lock_and_gets_its_share() -> None:
    """A user would wait: one datagram held the sender's lock for seconds, and its repairs took all of the rate."""
    big = SimulatedCast(CastModel((ReceiverModel(shaped(1000)),), image_bytes=50 * 1024 * MIB)).session
    grants = [big.join(join_request(agent), time.monotonic()) for agent in "ab"]
    big.gathering.start_now()
    big.control_datagrams(time.monotonic())
    transmit_some(big)
    largest = tuple((block, NACK_BLOCKS_MAX // 100, 20) for block in range(0, 100_000, 1000))
    datagrams = [whole_image_nack(grants[0], 1, big.image_demand.block_count)]
    datagrams += [
        feedback(grants[0], counter, Nack(1, big._planner.next_sequence & 0xFFFFFFFF, largest))
        for counter in range(2, 200)
    ]
    held_s = deliver(big, datagrams)
    assert big.rejects == {"bad_field": 1}
    # The few slowest are the machine's: garbage collection, or a neighbour's use of the caches. The attack took 0.27 s.
    assert statistics.quantiles(held_s, n=20)[-1] < 0.005
    assert max(held_s) < 0.05

    small = new_session(block_count=4000)
    hostile, _other = (small.join(join_request(agent), 100.0) for agent in "ab")
    small.control_datagrams(100.1)
    now, rate = 100.2, 0.1 * small.rate_bytes_per_s
    counter = 0
    while small.image_demand.wanted_count:
        counter += 1
        everything = Nack(1, small._planner.next_sequence & 0xFFFFFFFF, ((0, 4000, 200),))
        small.receive_feedback_untrusted(feedback(hostile, counter, everything), now)
        plan = small.next_plan(now, 64)
        assert plan is not None
        now += plan.symbol_count * 96 / rate
        small.mark_transmitted(plan.next_sequence, plan.symbol_count * 96, now)
    assert small.image_demand.sent_repair_count * 96 / rate <= REPAIR_SHARE_MAX * (now - 100.2 + 1.1)


def transmit_some(session: SenderSession) -> None:
    """Put the first thousand batches of a pass on the wire."""
    now = time.monotonic()
    for _ in range(1000):
        plan = session.next_plan(now, 704)
        assert plan is not None
        session.mark_transmitted(plan.next_sequence, plan.symbol_count * 1472, now)


def test_21_one_lying_report_costs_a_tenth_of_the_rate_and_no_round_trip_time() -> None:
    """A user would wait: one report lowered a room from 10 Gbit/s to 1 Mbit/s, or set its timing to five seconds."""
    session = new_session(block_count=40)
    grants = [session.join(join_request(str(number)), time.monotonic()) for number in range(9)]
    session.control_datagrams(time.monotonic())
    transmit_all(session, time.monotonic())
    (echo_us,) = list(session._messages.echoes._sent)[-1:]
    honest = {
        "echo_us": echo_us, "expected_count": 1000, "received_count": 1000, "recent_expected_count": 500,
        "recent_received_count": 500, "arriving_bytes_per_s": int(session.rate_bytes_per_s),
    }  # fmt: skip
    zeros = {field.name: 0 for field in Report.FIELDS} | {"blocks_needed_count": 5}
    deliver(session, [feedback(grant, 1, Report(**(zeros | honest))) for grant in grants])
    rate, grtt_s = session.rate_bytes_per_s, session.grtt_s
    lie = {
        "echo_us": echo_us - 3_000_000, "recent_received_count": 1, "arriving_bytes_per_s": 1,
        "socket_drop_count": 10**6, "fill_permille": 1000, "queue_delay_us": 4_000_000, "bottleneck": 3,
        "bytes_written": 1,
    }  # fmt: skip
    deliver(session, [feedback(grants[4], 2, Report(**(zeros | honest | lie)))])
    assert session.statistics.reports_received_count == 10
    assert session.rate_bytes_per_s >= 0.899 * rate
    assert session.grtt_s <= grtt_s
