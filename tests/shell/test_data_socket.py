"""The data socket on real loopback multicast: datagrams arrive unchanged in every receive mode.

Lost if these fail: symbols end up at wrong offsets, or a stray datagram crashes an agent.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
import trio
import trio.testing

from protocol.constants import CONTROL_DATAGRAM_BYTES_MAX
from protocol.errors import AddressInUseError, InterfaceError
from receiver.reception.network.data_socket import DataSocket, ReceiveMode, join_group
from receiver.reception.network.interface import ReceiveInterface, find_interface
from receiver.reception.network.recvmmsg import (
    COALESCED_MESSAGES,
    ODD_DATAGRAMS_MAX,
    SINGLE_MESSAGES,
    AgeClock,
    DatagramBatch,
    MessageSlab,
)
from tests.shell.loopback import GROUP_IPV4, LoopbackSender
from tests.support.network.ports import free_port_range

FRAME_BYTES = 1472
SEGMENTS = 44
MODES = list(ReceiveMode)


class Link:
    """A data socket and a sender to it."""

    def __init__(
        self, mode: ReceiveMode, frame_bytes: int = FRAME_BYTES, source: str | None = "127.0.0.1"
    ) -> None:
        [self.port] = free_port_range(1)
        interface = find_interface("lo", GROUP_IPV4)
        self.data = DataSocket(
            interface, GROUP_IPV4, self.port, source=source, frame_bytes=frame_bytes, best_mode=mode
        )
        self.sender = LoopbackSender(GROUP_IPV4, self.port)

    def receive_all(self) -> tuple[np.ndarray, list[bytes]]:
        """Return everything in the queue: loopback delivers before send() returns."""
        frames, datagrams = [], []
        while (batch := self.data.receive_batch()) is not None:
            assert batch.frames.flags.c_contiguous
            frames.append(batch.frames.copy())
            datagrams += batch.datagrams
        return np.concatenate(frames) if frames else np.empty((0, 0), np.uint8), datagrams


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    link = Link(request.param)
    assert link.data.mode is request.param
    with link.sender:
        yield link
    link.data.socket.close()


def random_frames(count: int, frame_bytes: int = FRAME_BYTES, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, frame_bytes), dtype=np.uint8)


def test_super_datagrams_arrive_identical(link: Link) -> None:
    """Full super-datagrams, more than a batch of them, and shorter ones in the middle."""
    counts = [SEGMENTS] * (COALESCED_MESSAGES + 3) + [7] + [SEGMENTS] * 2 + [1, 43]
    sent = random_frames(sum(counts))
    start = 0
    for count in counts:
        link.sender.send_segmented(sent[start : start + count].tobytes(), FRAME_BYTES)
        start += count
    frames, datagrams = link.receive_all()
    assert np.array_equal(frames, sent)
    assert datagrams == []


def test_single_datagrams_arrive_identical(link: Link) -> None:
    sent = random_frames(2 * SINGLE_MESSAGES + 9)
    for frame in sent:
        link.sender.send(frame.tobytes())
    frames, datagrams = link.receive_all()
    assert np.array_equal(frames, sent)
    assert datagrams == []


def test_full_super_datagrams_are_not_copied() -> None:
    """The batch is a view of the slab: a copy would cost a tenth of a second per gigabyte."""
    link = Link(ReceiveMode.GRO)
    with link.sender:
        sent = random_frames(3 * SEGMENTS)
        for start in range(0, 3 * SEGMENTS, SEGMENTS):
            link.sender.send_segmented(sent[start : start + SEGMENTS].tobytes(), FRAME_BYTES)
        batch = link.data.receive_batch()
        assert batch is not None
        assert batch.drained
        slab = link.data._slab
        assert isinstance(slab, MessageSlab)
        assert np.shares_memory(batch.frames, slab._slab)
        assert np.array_equal(batch.frames, sent)
    link.data.socket.close()


def test_mixed_sizes_keep_their_order_within_kind(link: Link) -> None:
    """Control messages between data, a shorter tail on a super-datagram, another cast's frames, nothing at all."""
    sent = random_frames(SEGMENTS + 5)
    other = random_frames(3, 900, seed=2)
    link.sender.send(b"first")
    link.sender.send_segmented(sent[:40].tobytes() + b"tail", FRAME_BYTES)
    link.sender.send(b"")
    link.sender.send_segmented(other.tobytes(), 900)
    link.sender.send_segmented(sent[40:].tobytes(), FRAME_BYTES)
    link.sender.send(b"x" * CONTROL_DATAGRAM_BYTES_MAX)
    frames, datagrams = link.receive_all()
    assert np.array_equal(frames, sent)
    assert datagrams == [
        b"first", b"tail", b"", *(row.tobytes() for row in other), b"x" * CONTROL_DATAGRAM_BYTES_MAX,
    ]  # fmt: skip
    assert link.data.counters.oversize_count == 0


def test_an_empty_datagram_alone(link: Link) -> None:
    link.sender.send(b"")
    batch = link.data.receive_batch()
    assert batch is not None
    assert batch.frames.shape == (0, FRAME_BYTES)
    assert batch.datagrams == [b""]
    assert link.data.receive_batch() is None


def test_oversize_datagrams_are_counted_and_dropped(link: Link) -> None:
    """One datagram a byte too long, and one longer than the buffer."""
    sent = random_frames(2)
    link.sender.send(sent[0].tobytes())
    link.sender.send(bytes(FRAME_BYTES + 1))
    link.sender.send(bytes(65507))
    link.sender.send(sent[1].tobytes())
    frames, datagrams = link.receive_all()
    assert np.array_equal(frames, sent)
    assert datagrams == []
    assert link.data.counters.oversize_count == 2


def test_a_flood_of_odd_datagrams_is_bounded(link: Link) -> None:
    link.sender.send(b"the first batch shows that nothing is coalesced")
    link.receive_all()
    for number in range(ODD_DATAGRAMS_MAX + 10):
        link.sender.send(b"%d" % number)
    batch = link.data.receive_batch()
    assert batch is not None
    assert batch.datagrams == [b"%d" % number for number in range(ODD_DATAGRAMS_MAX)]
    assert link.data.counters.surplus_count == 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frame_bytes", [96, 1400, 8960])
def test_other_frame_sizes(mode: ReceiveMode, frame_bytes: int) -> None:
    """Tiny symbols, whose frames are shorter than control messages, and jumbo frames."""
    link = Link(mode, frame_bytes)
    per_message = min(64, 65507 // frame_bytes)
    with link.sender:
        sent = random_frames(3 * per_message, frame_bytes)
        for start in range(0, len(sent), per_message):
            link.sender.send_segmented(sent[start : start + per_message].tobytes(), frame_bytes)
        link.sender.send(b"c" * 300)
        frames, datagrams = link.receive_all()
    link.data.socket.close()
    assert np.array_equal(frames, sent)
    assert datagrams == [b"c" * 300]


def test_several_agents_on_one_machine_get_every_datagram() -> None:
    [port] = free_port_range(1)
    interface = find_interface("lo", GROUP_IPV4)
    sockets = [
        DataSocket(interface, GROUP_IPV4, port, source="127.0.0.1", frame_bytes=FRAME_BYTES) for _ in range(3)
    ]
    sent = random_frames(SEGMENTS)
    with LoopbackSender(GROUP_IPV4, port) as sender:
        sender.send_segmented(sent.tobytes(), FRAME_BYTES)
    for data in sockets:
        batch = data.receive_batch()
        assert batch is not None
        assert np.array_equal(batch.frames, sent)
        data.socket.close()


def test_other_senders_are_not_heard_until_any_source_is_accepted() -> None:
    link = Link(ReceiveMode.GRO, source="127.0.0.2")
    assert link.data.source_specific
    with link.sender:
        link.sender.send(b"from 127.0.0.1")
        assert link.data.receive_batch() is None
        link.data.accept_any_source()
        assert not link.data.source_specific
        link.sender.send(b"from 127.0.0.1")
        assert link.receive_all()[1] == [b"from 127.0.0.1"]
    link.data.socket.close()


def test_other_groups_on_the_same_port_are_not_heard() -> None:
    link = Link(ReceiveMode.GRO)
    interface = find_interface("lo", GROUP_IPV4)
    other_group = "239.255.68.98"
    other, _ = join_group(interface, other_group, link.port, source=None)
    with LoopbackSender(other_group, link.port) as sender:
        sender.send(b"for the others")
    assert link.data.receive_batch() is None
    assert other.recv(100) == b"for the others"
    other.close()
    link.sender.__exit__(None, None, None)
    link.data.socket.close()


@pytest.mark.parametrize("mode", [ReceiveMode.GRO, ReceiveMode.MMSG], ids=lambda mode: mode.name)
def test_the_age_is_that_of_the_last_frame(mode: ReceiveMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost if this fails: delay in the program looks like delay in the network, and a full link goes unnoticed."""
    # On a busy machine a pause between two readings of the clocks looks like a clock that was set.
    monkeypatch.setattr("receiver.reception.network.recvmmsg.CLOCK_STEP_S", float("inf"))
    link = Link(mode)
    frames = random_frames(2 * SEGMENTS)
    with link.sender:
        link.sender.send_segmented(frames[:SEGMENTS].tobytes(), FRAME_BYTES)
        before_s = time.time()
        link.sender.send_segmented(frames[SEGMENTS:].tobytes(), FRAME_BYTES)
        after_s = time.time()
        link.sender.send(b"a control message behind them")
        started_s = time.time()
        batch = link.data.receive_batch()
        ended_s = time.time()
    link.data.socket.close()
    assert batch is not None
    assert batch.datagrams == [b"a control message behind them"]
    assert batch.age_s is not None
    assert started_s - after_s <= batch.age_s <= ended_s - before_s


def test_without_frames_or_time_stamps_there_is_no_age(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(ReceiveMode.GRO)
    with link.sender:
        link.sender.send(b"control")
        batch = link.data.receive_batch()
    link.data.socket.close()
    assert batch is not None
    assert batch.age_s is None

    monkeypatch.setattr("receiver.reception.network.data_socket._SO_TIMESTAMPNS", 9999)
    link = Link(ReceiveMode.GRO)
    sent = random_frames(SEGMENTS + 1)
    with link.sender:
        link.sender.send_segmented(sent[:SEGMENTS].tobytes(), FRAME_BYTES)
        link.sender.send(sent[SEGMENTS].tobytes())
        batch = link.data.receive_batch()
    link.data.socket.close()
    assert batch is not None
    assert batch.age_s is None
    assert np.array_equal(batch.frames, sent)


def test_ages_are_unknown_across_a_change_of_the_clock() -> None:
    """Lost if this fails: an agent whose clock is set in the middle of a cast sees a full queue until the end."""
    real_s, monotonic_s = 1000.0, 50.0
    clock = AgeClock(lambda: real_s, lambda: monotonic_s)
    assert clock.age_s(999.5, drained=False) == 0.5
    real_s, monotonic_s = 1001.0, 51.0
    assert clock.age_s(1001.1, drained=True) == 0.0
    real_s += 3600.0
    assert clock.age_s(1001.2, drained=False) is None
    assert clock.age_s(1001.3, drained=True) is None
    assert clock.age_s(4600.9, drained=True) == pytest.approx(0.1)


def test_drops_are_counted_when_the_queue_is_full() -> None:
    link = Link(ReceiveMode.GRO)
    link.data.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with link.sender:
        for frame in random_frames(50):
            link.sender.send(frame.tobytes())
        memory = link.data.memory()
        assert memory.drop_count > 0
        assert memory.queued_bytes > 0
        frames, _ = link.receive_all()
        assert frames.shape[0] + memory.drop_count == 50
    link.data.socket.close()


def test_a_small_buffer_is_polled_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without privileges and with the kernel's default limit, two milliseconds would overflow the queue."""
    monkeypatch.setattr("receiver.reception.network.data_socket.RECEIVE_BUFFER_BYTES", 200_000)
    link = Link(ReceiveMode.GRO)
    assert link.data.poll_interval_max_s == 0.0
    link.sender.__exit__(None, None, None)
    link.data.socket.close()


@pytest.mark.trio
async def test_waiting_ends_at_a_datagram_and_at_close() -> None:
    link = Link(ReceiveMode.GRO)
    with link.sender:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.data.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            link.sender.send(b"x")
        assert link.receive_all()[1] == [b"x"]

        async def wait_in_vain() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await link.data.wait_readable()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            link.data.close()


def test_a_port_held_by_another_program() -> None:
    interface = find_interface("lo", GROUP_IPV4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((GROUP_IPV4, 0))
        port = holder.getsockname()[1]
        with pytest.raises(AddressInUseError, match=f"{port}.*--port"):
            join_group(interface, GROUP_IPV4, port, source=None)


def test_an_interface_that_was_removed() -> None:
    interface = ReceiveInterface("gone0", 2**30, "127.0.0.1", 1500)
    with pytest.raises(InterfaceError, match="gone0"):
        join_group(interface, GROUP_IPV4, free_port_range(1)[0], source=None)


def test_no_recvmmsg_in_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything still works, with one call per datagram and without coalescing."""

    def missing() -> None:
        raise OSError(38, "recvmmsg isn't in this C library")

    monkeypatch.setattr("receiver.reception.network.recvmmsg._find_recvmmsg", missing)
    link = Link(ReceiveMode.GRO)
    assert link.data.mode is ReceiveMode.PLAIN
    sent = random_frames(SEGMENTS)
    with link.sender:
        link.sender.send_segmented(sent.tobytes(), FRAME_BYTES)
        frames, _ = link.receive_all()
    link.data.socket.close()
    assert np.array_equal(frames, sent)


def test_ipv6_multicast_on_loopback() -> None:
    group, port = "ff11::d15c:99", free_port_range(1)[0]
    try:
        interface = find_interface("lo", group)
    except InterfaceError as error:
        pytest.skip(f"no IPv6 here: {error}")
    data = DataSocket(interface, group, port, source="::1", frame_bytes=FRAME_BYTES)
    sent = random_frames(3)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.index)
        sender.bind(("::1", 0))
        try:
            for frame in sent:
                sender.sendto(frame.tobytes(), (group, port, 0, interface.index))
        except OSError as error:
            data.socket.close()
            pytest.skip(f"no IPv6 multicast route on lo: {error}")
    batch = data.receive_batch()
    assert isinstance(batch, DatagramBatch)
    assert np.array_equal(batch.frames, sent)
    data.socket.close()
