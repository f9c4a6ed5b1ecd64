"""Encoder and transmitter threads with real sockets: if they failed, receivers would get wrong bytes or none."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES, PLAN_SYMBOLS_MAX
from protocol.errors import AddressInUseError, ConfigurationError, ImageDamagedError, InterfaceError
from protocol.model.cast_policy import CastPolicy
from protocol.sending.transmission.frame_encoder import FrameEncoder
from protocol.shared.feedback_timing import sent_at_ticks
from protocol.wire.batch import header_view
from sender.addresses import parse_group
from sender.cast.network.datagram_output import DatagramOutput, SendMode
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import (
    bind_control_sockets,
    limit_pacing_rate,
    open_announce_listener,
    open_data_socket,
)
from sender.cast.transmission.batches import BatchQueue, FrameBatch
from sender.cast.transmission.block_loader import BlockLoader
from sender.cast.transmission.encoder_thread import Encoder
from sender.cast.transmission.transmitter import LATENESS_BOUNDS_S, BurstLateness, Transmitter
from tests.shell.loopback import roomy
from tests.shell.sender_rig import SYMBOL_BYTES, Rig, make_rig
from tests.support.network.lab import LIMIT_S

GROUP = parse_group("239.255.68.98")
FRAME_BYTES = DATA_HEADER_BYTES + SYMBOL_BYTES
KINDS = "drzudrrrrr"


@contextlib.contextmanager
def group_member() -> Iterator[tuple[socket.socket, int]]:
    """A socket in the group on lo with a large receive buffer, and its port."""
    lo = find_interface("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        roomy(sock)
        sock.bind((str(GROUP), 0))
        membership = struct.pack("@4s4si", GROUP.packed, bytes(4), lo.index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sock.settimeout(LIMIT_S)
        yield sock, sock.getsockname()[1]


@contextlib.contextmanager
def data_socket(port: int) -> Iterator[socket.socket]:
    lo = find_interface("lo")
    with open_data_socket(lo, lo.address_for(GROUP), GROUP, port, ttl=1) as sock:
        yield sock


@contextlib.contextmanager
def running(function: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Run ``function`` in a thread that ends with the context."""
    thread = threading.Thread(target=function)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(LIMIT_S)
    assert not thread.is_alive()


def expected_frames(rig: Rig) -> NDArray[np.uint8]:
    """Return the frames of the first pass, encoded in one thread."""
    rig.start_casting()
    encoder = FrameEncoder(rig.parameters)
    blocks = BlockLoader(rig.image, rig.parameters)
    parts = []
    with rig.image, rig.locked_session.read() as (session, now):
        while (plan := session.next_plan(now, 100)) is not None:
            parts.append(encoder.encode(plan, blocks.load).copy())
    return np.concatenate(parts)


@pytest.mark.parametrize("mode", list(SendMode))
def test_every_method_of_sending_sends_the_same_datagrams(tmp_path: Path, mode: SendMode) -> None:
    policy = CastPolicy(rate_bytes_per_s=50e6)
    expected = expected_frames(make_rig(tmp_path, KINDS, policy=policy))
    started_at = time.monotonic()
    with group_member() as (member, port), data_socket(port) as sock:
        rig = make_rig(tmp_path, KINDS, port=port, policy=policy)
        queue = BatchQueue()
        transmitter = Transmitter(sock, rig.parameters, rig.locked_session, queue, mode=mode)
        assert transmitter.mode is mode
        encoder = Encoder(
            rig.parameters,
            rig.locked_session,
            BlockLoader(rig.image, rig.parameters),
            queue,
        )

        def stop() -> None:
            rig.locked_session.close()
            queue.close()

        with rig.image, running(encoder.run, stop), running(transmitter.run, stop):
            rig.start_casting()
            received = [member.recv(65536) for _ in range(expected.shape[0])]
    got = np.frombuffer(b"".join(received), np.uint8).reshape(-1, FRAME_BYTES).copy()
    # The timestamps wrap every 6.6 s: a busy machine may take longer for all steps, but not for one.
    stamps = header_view(got)["sent_at"].astype(int)
    steps = np.diff(stamps, prepend=sent_at_ticks(started_at)) % 2**16
    assert (steps[1:] < 2**15).all(), "datagrams are stamped as they leave, in this order"
    assert steps.sum() <= (time.monotonic() - started_at) / 100e-6 + 1
    header_view(got)["sent_at"] = 0
    np.testing.assert_array_equal(got, expected)
    assert header_view(got)["cast_id"][0] == rig.parameters.cast_id
    assert transmitter.statistics.datagrams_sent_count == expected.shape[0]
    assert rig.session.statistics.bytes_transmitted == expected.nbytes


def test_a_fixed_rate_is_kept_in_suitable_bursts_and_their_lateness_is_counted(tmp_path: Path) -> None:
    rate = 12.5e6  # 100 Mbit/s
    symbol_count = 88
    with group_member() as (member, port), data_socket(port) as sock:
        rig = make_rig(tmp_path, KINDS, port=port, policy=CastPolicy(rate_bytes_per_s=rate))
        queue = BatchQueue()
        transmitter = Transmitter(sock, rig.parameters, rig.locked_session, queue)
        rig.start_casting()
        plan = rig.session.next_plan(time.monotonic(), symbol_count)
        assert plan is not None
        frames = np.zeros((symbol_count, FRAME_BYTES), np.uint8)
        batch = FrameBatch(plan, frames, 0.0)
        statistics = transmitter.statistics
        batch_count = 0
        started_at = time.monotonic()
        with rig.image, running(transmitter.run, queue.close):
            # If every burst was late, none had to wait.
            while not statistics.burst_lateness.count:
                for _ in range(10):
                    queue.put(batch)
                for _ in range(10 * symbol_count):
                    member.recv(65536)
                batch_count += 10
        elapsed_s = time.monotonic() - started_at
    assert statistics.datagrams_sent_count == batch_count * symbol_count
    assert statistics.send_calls_count == batch_count * 11, "a millisecond's worth is 8 datagrams"
    # A slow machine may need longer; none may be faster.
    assert batch_count * frames.nbytes <= rate * elapsed_s + 8 * FRAME_BYTES + rate * 0.02
    assert 0 < statistics.burst_lateness.count <= statistics.send_calls_count


def test_lateness_buckets_include_their_bound() -> None:
    lateness = BurstLateness()
    for late_s in (0.0, LATENESS_BOUNDS_S[0], LATENESS_BOUNDS_S[0] * 1.01, LATENESS_BOUNDS_S[-1], 1.0):
        lateness.add(late_s)
    middle = [0] * (len(LATENESS_BOUNDS_S) - 3)
    assert lateness.bucket_counts == [2, 1, *middle, 1, 1]
    assert lateness.count == 5
    assert lateness.sum_s == pytest.approx(1.0 + 2.01 * LATENESS_BOUNDS_S[0] + LATENESS_BOUNDS_S[-1])


@pytest.mark.parametrize(
    ("policy", "limit"),
    [
        (CastPolicy(rate_bytes_per_s=10e6), 20_000_000),
        (CastPolicy(rate_max_bytes_per_s=50e6), 100_000_000),
        (CastPolicy(), 0xFFFF_FFFF),
    ],
    ids=["rate", "max-rate", "automatic"],
)
def test_the_kernel_paces_bursts_only_if_no_higher_rate_can_follow(
    tmp_path: Path, policy: CastPolicy, limit: int
) -> None:
    with group_member() as (_member, port), data_socket(port) as sock:
        rig = make_rig(tmp_path, port=port, policy=policy)
        queue = BatchQueue()
        queue.close()
        with rig.image:
            Transmitter(sock, rig.parameters, rig.locked_session, queue).run()
        assert pacing_limit(sock) == limit


def pacing_limit(sock: socket.socket) -> int:
    value: int = struct.unpack("=I", sock.getsockopt(socket.SOL_SOCKET, 47, 4))[0]  # SO_MAX_PACING_RATE
    return value


def test_a_limit_beyond_32_bits_is_skipped_and_a_refused_one_is_ignored() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        limit_pacing_rate(sock, 2**31)
        assert pacing_limit(sock) == 0xFFFF_FFFF
    limit_pacing_rate(sock, 1e6)  # closed


def test_the_kernel_never_raises_the_pacing_limit_of_a_socket() -> None:
    """The limit therefore doesn't follow an automatic rate; if this fails, the kernel has changed and it could."""
    with socket.socket(
        socket.AF_INET, socket.SOCK_STREAM
    ) as sock:  # TCP sockets report this value, UDP sockets don't
        for rate, paced in ((10_000_000, 10_000_000), (5_000_000, 5_000_000), (100_000_000, 5_000_000)):
            sock.setsockopt(socket.SOL_SOCKET, 47, struct.pack("=I", rate))
            (pacing_rate,) = struct.unpack_from(
                "=Q", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 112), 104
            )
            assert pacing_rate == paced


@pytest.mark.parametrize(
    ("mbit_per_s", "symbols"),
    [(1, 4), (5, 4), (10, 4), (50, 20), (100, 44), (200, 88), (1000, 440), (10_000, PLAN_SYMBOLS_MAX)],
)
def test_batches_are_whole_super_datagrams_if_the_rate_allows_it(
    tmp_path: Path, mbit_per_s: float, symbols: int
) -> None:
    rig = make_rig(tmp_path, "r" * 30, policy=CastPolicy(rate_bytes_per_s=mbit_per_s * 1e6 / 8))
    rig.start_casting()
    queue = BatchQueue()
    encoder = Encoder(
        rig.parameters,
        rig.locked_session,
        BlockLoader(rig.image, rig.parameters),
        queue,
    )
    with rig.image, running(encoder.run, lambda: (rig.locked_session.close(), queue.close())):
        batch = queue.get()
    assert batch is not None
    assert batch.plan.symbol_count == symbols


def test_each_batch_carries_the_time_spent_reading_for_it(tmp_path: Path) -> None:
    policy = CastPolicy(rate_bytes_per_s=20e6)
    whole_pass = len(expected_frames(make_rig(tmp_path, "r" * 4, policy=policy)))
    rig = make_rig(tmp_path, "r" * 4, policy=policy)
    rig.start_casting()
    queue = BatchQueue(1000)
    blocks = BlockLoader(rig.image, rig.parameters)
    encoder = Encoder(rig.parameters, rig.locked_session, blocks, queue)
    symbol_count = 0
    read_s = []
    with rig.image, running(encoder.run, lambda: (rig.locked_session.close(), queue.close())):
        while symbol_count < whole_pass:
            batch = queue.get()
            assert batch is not None
            symbol_count += batch.plan.symbol_count
            read_s.append(batch.read_s)
    assert sum(read_s) == pytest.approx(blocks.read_s)
    assert min(read_s) == 0.0 < blocks.read_s, "a batch of blocks that are in the cache reads nothing"


def test_segmentation_sends_many_datagrams_with_one_call() -> None:
    with group_member() as (member, port), data_socket(port) as sock:
        output = DatagramOutput(sock, FRAME_BYTES)
        assert output.mode is SendMode.SEGMENTATION
        assert output.frames_per_call == 44
        frames = np.arange(44, dtype=np.uint8).repeat(FRAME_BYTES).reshape(44, FRAME_BYTES)
        assert output.send(frames) == 44
        assert [member.recv(65536)[0] for _ in range(44)] == list(range(44))


def test_sendmmsg_replaces_a_refused_segmentation_without_losing_a_frame() -> None:
    with group_member() as (member, port), data_socket(port) as sock:
        # Segmented datagrams need checksums (udp(7)): without them the kernel refuses, as such cards do.
        sock.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        output = DatagramOutput(sock, FRAME_BYTES)
        frames = np.arange(20, dtype=np.uint8).repeat(FRAME_BYTES).reshape(20, FRAME_BYTES)
        assert output.send(frames) == 0
        assert output.mode is SendMode.SENDMMSG
        assert output.send(frames) == 20
        assert [member.recv(65536)[0] for _ in range(20)] == list(range(20))


def test_an_altered_block_ends_the_encoder_with_an_error_that_names_it(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, "rrr")
    path = tmp_path / "image.dci"
    content = bytearray(path.read_bytes())
    content[rig.made.stored_offset(1) + 77] ^= 1
    path.write_bytes(content)
    rig.start_casting()
    encoder = Encoder(
        rig.parameters,
        rig.locked_session,
        BlockLoader(rig.image, rig.parameters),
        BatchQueue(1000),
    )
    with rig.image, pytest.raises(ImageDamagedError, match=r"image\.dci: .*block 1 "):
        encoder.run()


def test_a_truncated_image_file_ends_the_encoder(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, "rrr")
    with (tmp_path / "image.dci").open("r+b") as file:
        file.truncate(rig.made.stored_offset(2) + 5)
    rig.start_casting()
    encoder = Encoder(
        rig.parameters,
        rig.locked_session,
        BlockLoader(rig.image, rig.parameters),
        BatchQueue(1000),
    )
    with rig.image, pytest.raises(ImageDamagedError, match="truncated"):
        encoder.run()


def test_a_block_is_padded_with_zeros_also_in_a_buffer_that_held_a_longer_one(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, "rdrd")
    loader = BlockLoader(rig.image, rig.parameters, cache_bytes=1)  # two buffers
    with rig.image:
        for block in (0, 1, 2, 3, 0, 1, 1):
            symbols = loader.load(1, block)
            stored = rig.made.stored[block]
            flat = symbols.reshape(-1).tobytes()
            assert symbols.shape == (-(-len(stored) // SYMBOL_BYTES), SYMBOL_BYTES)
            assert flat[: len(stored)] == stored
            assert not any(flat[len(stored) :])
        manifest = loader.load(0, 0).reshape(-1).tobytes()
        assert manifest.rstrip(b"\0") == bytes(rig.image.manifest.data).rstrip(b"\0")


def test_datagrams_larger_than_the_mtu_end_the_transmitter_with_the_fix(tmp_path: Path) -> None:
    with group_member() as (_member, port), data_socket(port) as sock:
        rig = make_rig(tmp_path, port=port)
        queue = BatchQueue()
        transmitter = Transmitter(sock, rig.parameters, rig.locked_session, queue, mode=SendMode.SENDTO)
        rig.start_casting()
        plan = rig.session.next_plan(time.monotonic(), 1)
        assert plan is not None
        queue.put(FrameBatch(plan, np.zeros((1, 65500), np.uint8), 0.0))
        queue.put(FrameBatch(plan, np.zeros((1, 65510), np.uint8), 0.0))
        with rig.image, pytest.raises(ConfigurationError, match="--symbol-size"):
            transmitter.run()


def test_a_closed_queue_releases_both_threads() -> None:
    queue = BatchQueue(1)
    results: list[object] = []
    with running(lambda: results.append(queue.get()), queue.close):
        pass
    assert results == [None]
    assert queue.put(FrameBatch(None, np.zeros((1, 1), np.uint8), 0.0)) is False  # type: ignore[arg-type]


def test_an_idle_encoder_is_woken_by_a_join_and_by_nothing_else(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    asked = threading.Semaphore(0)
    plans: list[object] = []

    def symbols_max(_rate: float) -> int:
        asked.release()
        return 44

    with (
        rig.image,
        running(
            lambda: plans.append(rig.locked_session.wait_for_plan(symbols_max)), rig.locked_session.close
        ),
    ):
        assert asked.acquire(timeout=LIMIT_S)
        assert not asked.acquire(blocking=False)
        rig.start_casting()
        assert asked.acquire(timeout=LIMIT_S)
    assert plans
    assert plans[0] is not None


def test_an_update_that_makes_a_timer_due_earlier_wakes_the_event_loop_once(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with rig.image:
        rig.start_casting()
        rig.locked_session.arm_timer()
        rig.wakes.clear()
        with rig.locked_session.update() as (session, now):
            session.end(1, "test", now)  # an EOT is due at once
        with rig.locked_session.update():
            pass
        assert len(rig.wakes) == 1
        assert rig.locked_session.arm_timer() <= 0.001


def test_a_control_port_in_use_is_an_error_that_names_the_option() -> None:
    lo = find_interface("lo")
    address = lo.address_for(GROUP)
    tcp, udp = bind_control_sockets(None, 0, lo, address)
    with tcp, udp:
        port = tcp.getsockname()[1]
        assert udp.getsockname()[1] == port
        with pytest.raises(AddressInUseError, match=rf"TCP port {port} .*--control"):
            bind_control_sockets(None, port, lo, address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(AddressInUseError, match="UDP port"):
            bind_control_sockets(None, other.getsockname()[1], lo, address)


def test_a_control_address_of_another_machine_is_refused() -> None:
    lo = find_interface("lo")
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.77.*--control HOST:PORT"):
        bind_control_sockets(ipaddress.ip_address("192.0.2.77"), 0, lo, lo.address_for(GROUP))


def test_the_error_of_an_unreachable_group_shows_the_missing_route() -> None:
    lo = find_interface("lo")
    group = parse_group("ff12::d15c")
    try:
        address = lo.address_for(group)
    except InterfaceError:
        pytest.skip("lo has no IPv6 address here")
    with contextlib.ExitStack() as stack, pytest.raises(InterfaceError, match="ip -6 route add multicast"):
        stack.enter_context(open_data_socket(lo, address, group, 9, ttl=1))


def test_the_announce_listener_gets_announcements_and_no_data() -> None:
    with open_announce_listener(find_interface("lo"), GROUP, 0) as listener:
        with data_socket(listener.getsockname()[1]) as sock:
            sock.send(bytes([0xD1, 0x5C, 1, 0x01]) + bytes(100))
            sock.send(bytes([0xD1, 0x5C, 1, 0x10]) + bytes(100))
            sock.send(bytes([0xD1, 0x5C, 1, 0x12]) + bytes(100))
        listener.settimeout(LIMIT_S)
        assert listener.recv(100)[3] == 0x10
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(100)
