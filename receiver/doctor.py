"""Trying out on this machine what a receiver needs: the group, the fast path, the target, memory."""

from __future__ import annotations

import shutil
import socket
import struct
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import trio

from protocol.constants import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, MIB, UDP_HEADER_BYTES
from protocol.errors import (
    AddressInUseError,
    AmbiguousCastError,
    ConfigurationError,
    DiskcastError,
    InterfaceError,
    NoSenderError,
    ProtocolError,
    ServerRefusedError,
    SessionError,
)
from protocol.fec.isal import best_kernel
from protocol.program.findings import (
    Finding,
    MediumFacts,
    SocketBuffer,
    Status,
    fail,
    judge_erasure_coding,
    judge_medium,
    judge_memory,
    judge_reach,
    judge_socket_buffer,
    ok,
    warn,
)
from protocol.shared.units import format_bytes
from receiver.disk.fit.fit_target import fit_tools
from receiver.disk.target import Target
from receiver.reception.network.control_client import ControlClient, retry_until
from receiver.reception.network.data_socket import RECEIVE_BUFFER_BYTES, DataSocket, ReceiveMode
from receiver.reception.network.discovery import CastChoice, listen_for_cast
from receiver.reception.network.http_client import Unreachable
from receiver.reception.network.interface import ReceiveInterface, find_interface
from receiver.service.server_client import EXAMPLE_URL, ServerClient
from receiver.target.open_target import open_target
from receiver.target.selection import choose_target

MEMORY_BYTES_MAX = 300 * MIB
"""The receiver's bound, whatever the image."""

ANSWER_TIMEOUT_S = 1.0
"""What is looped back on this machine arrives within microseconds; a second is for a machine that swaps."""

LISTEN_S = 1.5
"""Somewhat longer than a sender pauses between two announcements."""

TEST_DATAGRAM_COUNT = 8
TEST_MTU_BYTES_MAX = 1500
"""The loopback interface's 64 KiB would leave no two datagrams to coalesce."""

# Linux values that the socket module doesn't name: <linux/udp.h>.
_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_CONTROLS_BYTES = socket.CMSG_SPACE(16) + socket.CMSG_SPACE(4)
"""Room for a time stamp and for the size of the datagrams that came as one."""

_IPV4_CONF = Path("/proc/sys/net/ipv4/conf")


async def examine(
    interface_name: str,
    *,
    group: str,
    port: int,
    target: str | None,
    server: str | None = None,
    token: str = "",
) -> list[Finding]:
    """Try everything that can be tried; takes a few seconds and changes nothing.

    The test datagrams have a time to live of 0: they never leave this machine.

    Args:
        interface_name: as in ``ip link``.
        group: multicast address.
        port: UDP port of the data.
        target: what is to be written, as ``--target`` of a reception says it, if it is known.
        server: URL of the daemon that an agent in service mode would check in with, if there is one.
        token: for it.
    """
    findings = []
    try:
        interface = find_interface(interface_name, group)
    except InterfaceError as error:
        findings.append(fail(f"interface {interface_name}", str(error), "ip -brief address"))
    else:
        detail = f"up, {interface.address}, MTU {interface.mtu_bytes}"
        findings.append(ok(f"interface {interface_name}", detail))
        findings += judge_reach(interface_name, interface.address)
        findings += judge_medium(_medium_facts(interface_name))
        findings += await _try_group(interface, group, port)
        if not any(finding.status is Status.FAIL for finding in findings):
            findings.append(await _try_sender(interface, group, port))
        findings += _judge_reverse_path(interface_name)
    findings.append(judge_erasure_coding(best_kernel()))
    findings.append(judge_memory(psutil.virtual_memory().available, MEMORY_BYTES_MAX))
    if target is not None:
        findings.append(_try_target(target))
    if server is not None:
        findings += await _try_daemon(server, token)
    findings += _judge_fitting()
    return findings


def _medium_facts(interface_name: str) -> MediumFacts:
    state = psutil.net_if_stats()[interface_name]
    return MediumFacts(
        interface_name,
        wireless=Path("/sys/class/net", interface_name, "wireless").exists(),
        speed_mbit_per_s=state.speed,
        half_duplex=state.duplex == psutil.NIC_DUPLEX_HALF,
    )


async def _try_group(interface: ReceiveInterface, group: str, port: int) -> list[Finding]:
    headers_bytes = (IPV6_HEADER_BYTES if ":" in group else IPV4_HEADER_BYTES) + UDP_HEADER_BYTES
    frame_bytes = min(interface.mtu_bytes, TEST_MTU_BYTES_MAX) - headers_bytes
    check = f"group {group} port {port}"
    try:
        data = DataSocket(interface, group, port, source=interface.address, frame_bytes=frame_bytes)
    except AddressInUseError as error:
        return [fail(check, str(error), f"ss -lunp 'sport = :{port}'")]
    except InterfaceError as error:
        return [fail(check, str(error), _route_command(interface, group))]
    try:
        kind = "source-specific" if data.source_specific else "any-source"
        findings = [ok(check, f"joined on {interface.name}, {kind}")]
        loop = await _try_loop(data, group, port, frame_bytes)
        findings.append(loop)
        if loop.status is Status.OK:
            findings.append(await _try_coalescing(data, group, port, frame_bytes))
        buffer_bytes = data.memory().buffer_bytes
        findings.append(
            judge_socket_buffer(
                SocketBuffer(
                    "receive buffer", "net.core.rmem_max", "a pause of this program costs datagrams"
                ),
                granted_bytes=buffer_bytes,
                wanted_bytes=RECEIVE_BUFFER_BYTES,
            )
        )
    finally:
        data.close()
    return findings


async def _try_loop(data: DataSocket, group: str, port: int, frame_bytes: int) -> Finding:
    """Send to the group by the interface and count what the receive path itself hears of it."""
    check = f"multicast on {data.interface.name}"
    frame = _test_frame(frame_bytes)
    try:
        _send_frames(data.interface, group, port, frame)
    except InterfaceError as error:
        return fail(check, str(error), _route_command(data.interface, group))
    heard_count = 0
    with trio.move_on_after(ANSWER_TIMEOUT_S):
        while heard_count < TEST_DATAGRAM_COUNT:
            await data.wait_readable()
            batch = data.receive_batch()
            if batch is not None:
                heard_count += sum(row.tobytes() == frame for row in batch.frames)
    if heard_count < TEST_DATAGRAM_COUNT:
        return fail(
            check,
            f"{heard_count} of {TEST_DATAGRAM_COUNT} datagrams sent to {group} came back: a firewall drops them?",
            f"allow UDP port {port} to {group} by {data.interface.name}: see nft list ruleset",
        )
    return ok(check, f"{TEST_DATAGRAM_COUNT} datagrams sent to {group} came back, read by {data.mode}")


async def _try_coalescing(data: DataSocket, group: str, port: int, frame_bytes: int) -> Finding:
    """Whether datagrams that were sent as one come as one: seven times less work for the receiver."""
    check = "receive offload"
    mend = "a kernel of version 5.0 or later has UDP GRO and UDP GSO"
    if data.mode is not ReceiveMode.GRO:
        return warn(check, f"the kernel has no UDP GRO: datagrams are read by {data.mode}", mend)
    frame = _test_frame(frame_bytes)
    largest_bytes = 0
    _send_frames(data.interface, group, port, frame)
    with trio.move_on_after(ANSWER_TIMEOUT_S):
        heard_bytes = 0
        while heard_bytes < TEST_DATAGRAM_COUNT * frame_bytes:
            await data.wait_readable()
            try:
                payload, controls, _, _ = data.socket.recvmsg(1 << 16, _CONTROLS_BYTES)
            except BlockingIOError:
                continue
            if not payload.startswith(frame):
                continue
            heard_bytes += len(payload)
            coalesced = any((level, kind) == (_SOL_UDP, _UDP_GRO) for level, kind, _ in controls)
            largest_bytes = max(largest_bytes, len(payload) if coalesced else 0)
    if largest_bytes <= frame_bytes:
        return warn(check, "UDP GRO is accepted, but datagrams came one by one; recvmmsg reads them", mend)
    return ok(check, f"UDP GRO: {largest_bytes // frame_bytes} datagrams came as one message")


async def _try_sender(interface: ReceiveInterface, group: str, port: int) -> Finding:
    """Whether a sender is heard, and if so, whether it can be reached: the two halves of the network's part."""
    check = "sender"
    try:
        offer = await listen_for_cast(interface, group, port, CastChoice(), wait_s=LISTEN_S)
    except NoSenderError:
        detail = f"none announces a cast within {LISTEN_S:g} s: run this again while diskcast send waits for receivers"
        return ok(check, detail)
    except AmbiguousCastError as error:
        return warn(check, str(error), "give each cast its own --port, or the agents --image-name NAME")
    client = ControlClient(offer.control_url)
    try:
        await retry_until(trio.current_time() + ANSWER_TIMEOUT_S, client.casts)
    except (SessionError, ProtocolError) as error:
        detail = (
            f"{offer.image_name!r} is announced by {offer.source}, but its control API can't be used: {error}"
        )
        return fail(
            check, detail, f"allow TCP to {offer.control_url} on the sender: see nft list ruleset there"
        )
    return ok(check, f"{offer.image_name!r} is announced by {offer.source}, and {offer.control_url} answers")


async def _try_daemon(url: str, token: str) -> list[Finding]:
    """Whether the daemon answers, and takes the token; nobody is checked in."""
    check = f"daemon {url}"
    try:
        state = await ServerClient(url, token).health()
    except ConfigurationError as error:
        return [fail(check, str(error), f"write for example --server {EXAMPLE_URL}")]
    except Unreachable as error:
        return [fail(check, f"no answer: {error}", "start diskcast serve there, and allow TCP to its port")]
    findings = [
        ok(check, "answers")
        if state == "ok"
        else warn(check, f"answers, but says {state!r}", "diskcast doctor --server, on the daemon's machine")
    ]
    try:
        await ServerClient(url, token).try_token()
    except ServerRefusedError as error:
        findings.append(fail("token", str(error), "diskcast tokens create NAME --role enrol"))
    except Unreachable as error:
        findings.append(warn("token", f"couldn't be tried: {error}", "try again"))
    else:
        findings.append(ok("token", "taken" if token else "none is needed"))
    return findings


def _judge_fitting() -> list[Finding]:
    """The programs that --grow and --efi-entry start: who doesn't use those lacks nothing."""
    purposes: dict[str, list[str]] = {}
    for purpose, installed, package in fit_tools():
        purposes.setdefault("" if installed else package, []).append(purpose)
    there = purposes.pop("", [])
    detail = "; ".join(there) if purposes else "every program for --grow and --efi-entry is installed"
    findings = [ok("fitting an image to its disk", detail)] if there else []
    for package, lacking in purposes.items():
        detail = f"not possible here: {'; '.join(lacking)}; nothing else needs that"
        findings.append(warn(f"fitting: {package}", detail, f"apt install {package}"))
    return findings


def _route_command(interface: ReceiveInterface, group: str) -> str:
    if ":" in group:
        return f"ip -6 route add multicast ff00::/8 dev {interface.name} table local"
    return f"ip route replace {group} dev {interface.name}"


def _test_frame(frame_bytes: int) -> bytes:
    """A datagram that no cast takes for its own: it has no magic."""
    return b"diskcast-agent doctor".ljust(frame_bytes, b".")


def _send_frames(interface: ReceiveInterface, group: str, port: int, frame: bytes) -> None:
    """Send the test datagrams, in one call where the kernel segments.

    Raises:
        InterfaceError: the kernel refuses.
    """
    try:
        _send_frames_unchecked(interface, group, port, frame)
    except OSError as error:
        raise InterfaceError(
            f"can't send to the group {group} by {interface.name}: {error.strerror}; is there a route, or a firewall?"
        ) from error


def _send_frames_unchecked(interface: ReceiveInterface, group: str, port: int, frame: bytes) -> None:
    ipv6 = ":" in group
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)
        else:
            request = struct.pack("=4s4si", bytes(4), socket.inet_aton(interface.address), interface.index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        sock.bind((interface.address, 0, 0, interface.index) if ipv6 else (interface.address, 0))
        sock.connect((group, port, 0, interface.index) if ipv6 else (group, port))
        segment = (_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", len(frame)))
        try:
            sock.sendmsg([frame * TEST_DATAGRAM_COUNT], [segment])
        except OSError:
            for _ in range(TEST_DATAGRAM_COUNT):
                sock.send(frame)


def _judge_reverse_path(interface_name: str) -> list[Finding]:
    """Strict reverse path filtering drops a cast silently when the route back to its sender is another interface's."""
    modes = []
    for name in ("all", interface_name):
        try:
            modes.append(int((_IPV4_CONF / name / "rp_filter").read_text()))
        except OSError:  # no IPv4, or a container without /proc/sys
            return []
    others = [
        name
        for name, status in psutil.net_if_stats().items()
        if status.isup and name not in (interface_name, "lo")
    ]
    if max(modes) != 1 or not others:
        return []
    detail = (
        f"strict, and there are other interfaces ({', '.join(sorted(others))}): a cast whose sender is routed by one "
        "of them is dropped silently"
    )
    mend = f"sysctl -w net.ipv4.conf.{interface_name}.rp_filter=2"
    return [warn(f"reverse path filter of {interface_name}", detail, mend)]


def _try_target(text: str) -> Finding:
    """Choose and open the target as a cast would, and close it again; a new file isn't left behind."""
    check = f"target {text}"
    try:
        choice = choose_target(text, partition=None, raw_bytes=0)
        with open_target(choice.path, raw_bytes=0, expected=choice.identity) as target:
            return ok(check, _describe_target(target))
    except DiskcastError as error:
        return fail(check, str(error), "choose another: diskcast-agent disks")


def _describe_target(target: Target) -> str:
    if target.is_device:
        size = format_bytes(target.size_bytes)
        return f"{target.path}, a block device of {size} that nothing else uses, read back by {target.readback_mode}"
    free = format_bytes(shutil.disk_usage(target.path.parent).free)
    return f"a file, {free} free on its filesystem, read back by {target.readback_mode}"
