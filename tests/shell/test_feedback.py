"""The feedback port: if it failed, NACKs of receivers would be lost, or forged ones accepted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from protocol.model.session_records import JoinGrant, ReceiverState
from protocol.wire.feedback_codec import encode_feedback
from protocol.wire.messages import Nack, Report
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import bind_control_sockets
from sender.cast.session.feedback import FeedbackPort
from tests.shell.sender_rig import Rig, make_rig
from tests.support.network.lab import LIMIT_S


def report(grant: JoinGrant, counter: int, *, key: bytes | None = None) -> bytes:
    fields = {field.name: 0 for field in Report.FIELDS} | {
        "expected_count": 100, "received_count": 90,
        "socket_drop_count": 1, "pool_drop_count": 2, "fill_permille": 300, "bottleneck": 3, "blocks_verified_count": 4,
        "blocks_needed_count": 2, "bytes_written": 5000, "nacks_sent_count": 6, "parity_repaired_count": 7,
    }  # fmt: skip
    message = Report(**fields)
    return _encode(grant, counter, message, key)


def nack(grant: JoinGrant, counter: int, block: int, deficit: int, sequence: int) -> bytes:
    message = Nack(1, sequence & 0xFFFFFFFF, ((block, 1, deficit),))
    return _encode(grant, counter, message, None)


def _encode(grant: JoinGrant, counter: int, message: Nack | Report, key: bytes | None) -> bytes:
    return encode_feedback(
        message,
        cast_id=grant.parameters.cast_id,
        receiver_id=grant.receiver_id,
        counter=counter,
        key=key or grant.key,
    )


def exchange(rig: Rig, datagrams: list[bytes], until: Callable[[FeedbackPort], bool]) -> FeedbackPort:
    """Send ``datagrams`` to a real feedback port and run it until it has received them."""
    lo = find_interface("lo")
    tcp, udp = bind_control_sockets(None, 0, lo, lo.address_for(parse_group("239.1.1.1")))
    destination = udp.getsockname()

    async def run() -> FeedbackPort:
        port = FeedbackPort(udp, rig.locked_session)
        task = asyncio.create_task(port.run())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for datagram in datagrams:
                sock.sendto(datagram, destination)
        async with asyncio.timeout(LIMIT_S):
            while not until(port):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)  # the transport closes its socket on the loop's next turn
        return port

    with rig.image, tcp, udp:
        return asyncio.run(run())


def test_a_report_reaches_its_receivers_record(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    grant = rig.join()
    exchange(rig, [report(grant, 1)], lambda port: port.received_count == 1)
    record = rig.session.receivers[grant.receiver_id]
    assert record.state is ReceiverState.RECEIVING
    assert (record.received_count, record.bytes_written, record.bottleneck) == (90, 5000, "disk")


def test_a_nack_becomes_a_repair_and_wakes_the_event_loops_timers(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, "rrrr")
    grant = rig.start_casting()
    with rig.locked_session.update() as (session, now):
        while (plan := session.next_plan(now, 700)) is not None:
            session.mark_transmitted(plan.next_sequence, 1, now)
            sequence = plan.next_sequence
    exchange(rig, [nack(grant, 1, 2, 3, sequence)], lambda port: port.received_count == 1)
    with rig.locked_session.update() as (session, now):
        plan = session.next_plan(now, 700)
    assert plan is not None
    assert plan.segments["block"].tolist() == [2]
    assert plan.segments["esi"][0] >= plan.segments["k"][0]


def test_garbage_forgeries_and_replays_are_counted_by_reason_and_change_nothing(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    grant = rig.join()
    datagrams = [
        b"",
        b"x",
        bytes(1400),
        bytes(9000),
        report(grant, 5, key=bytes(32)),
        report(grant, 5),
        report(grant, 5),
    ]
    exchange(rig, datagrams, lambda port: port.received_count == len(datagrams))
    rejects = rig.session.rejects
    assert rejects["too_short"] == 2
    assert rejects["bad_magic"] == 2
    assert rejects["bad_mac"] == 1
    assert rejects["replayed"] == 1
    assert rig.session.statistics.reports_received_count == 1
