"""Network checks of the agent's doctor: the link, the multicast group, receive offload, a sender, a daemon."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import trio

from protocol.constants import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, UDP_HEADER_BYTES
from protocol.errors import (
    AddressInUseError,
    AmbiguousCastError,
    CertificateError,
    ConfigurationError,
    EnrolmentRefusedError,
    InterfaceError,
    JoinRefusedError,
    NoSenderError,
    ProtocolError,
    SessionError,
)
from protocol.program.findings import (
    Finding,
    MediumFacts,
    SocketBuffer,
    Status,
    fail,
    judge_medium,
    judge_reach,
    judge_socket_buffer,
    ok,
    warn,
)
from protocol.program.peer_trust import PeerTrust
from receiver.reception.network.control_client import ControlClient, retry_until
from receiver.reception.network.data_socket import RECEIVE_BUFFER_BYTES, DataSocket, ReceiveMode
from receiver.reception.network.discovery import CastChoice, listen_for_cast
from receiver.reception.network.http_client import Unreachable
from receiver.reception.network.interface import ReceiveInterface, find_interface
from receiver.reception.network.sender_access import SenderAccess
from receiver.service.machine_credentials import MachineCredentials
from receiver.service.server_client import EXAMPLE_URL, ServerClient

ANSWER_TIMEOUT_S = 1.0
"""Time allowed for looped-back datagrams: they arrive within microseconds, unless the machine swaps."""

LISTEN_S = 1.5
"""Time to listen for a sender: a little longer than its interval between announcements."""

TEST_DATAGRAM_COUNT = 8
TEST_MTU_BYTES_MAX = 1500
"""Largest MTU to test with: the loopback interface's 64 KiB would leave no two datagrams to coalesce."""

# Linux values that the socket module doesn't name: <linux/udp.h>.
_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_CONTROLS_BYTES = socket.CMSG_SPACE(16) + socket.CMSG_SPACE(4)
"""Space for a time stamp and for the size of coalesced datagrams."""

_IPV4_CONF = Path("/proc/sys/net/ipv4/conf")


async def check_network(interface_name: str, *, group: str, port: int) -> list[Finding]:
    """Check the interface and everything that reaches this machine through it."""
    try:
        interface = find_interface(interface_name, group)
    except InterfaceError as error:
        return [fail(f"interface {interface_name}", str(error), "ip -brief address")]
    detail = f"up, {interface.address}, MTU {interface.mtu_bytes}"
    findings = [ok(f"interface {interface_name}", detail)]
    findings += judge_reach(interface_name, interface.address)
    findings += judge_medium(_medium_facts(interface_name))
    findings += await _check_group(interface, group, port)
    if not any(finding.status is Status.FAIL for finding in findings):
        findings.append(await _check_sender(interface, group, port))
    findings += _check_reverse_path(interface_name)
    return findings


async def check_daemon(url: str, token: str, trust: PeerTrust) -> list[Finding]:
    """Check that the daemon has the right certificate, answers and accepts the token, without checking in."""
    check = f"daemon {url}"
    try:
        client = ServerClient(url, MachineCredentials(token), trust)
        state = await client.health()
    except ConfigurationError as error:
        return [fail(check, str(error), f"write for example --server {EXAMPLE_URL} --pin PIN")]
    except CertificateError as error:
        return [fail(check, str(error), "diskcast certificate show, on the daemon's machine")]
    except Unreachable as error:
        return [fail(check, f"no answer: {error}", "start diskcast serve there, and allow TCP to its port")]
    findings = [
        ok(check, "answers")
        if state == "ok"
        else warn(
            check, f"answers, but reports {state!r}", "diskcast doctor --server, on the daemon's machine"
        )
    ]
    try:
        await client.try_token()
    except EnrolmentRefusedError as error:
        findings.append(fail("token", str(error), "diskcast tokens create NAME --role enrol"))
    except Unreachable as error:
        findings.append(warn("token", f"can't be tested: {error}", "try again"))
    else:
        findings.append(ok("token", "accepted" if token else "not required"))
    return findings


def _medium_facts(interface_name: str) -> MediumFacts:
    state = psutil.net_if_stats()[interface_name]
    return MediumFacts(
        interface_name,
        wireless=Path("/sys/class/net", interface_name, "wireless").exists(),
        speed_mbit_per_s=state.speed,
        half_duplex=state.duplex == psutil.NIC_DUPLEX_HALF,
    )


async def _check_group(interface: ReceiveInterface, group: str, port: int) -> list[Finding]:
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
        join = "source-specific" if data.source_specific else "any-source"
        findings = [ok(check, f"joined on {interface.name}, {join}")]
        loopback = await _check_loopback(data, group, port, frame_bytes)
        findings.append(loopback)
        if loopback.status is Status.OK:
            findings.append(await _check_coalescing(data, group, port, frame_bytes))
        findings.append(
            judge_socket_buffer(
                SocketBuffer(
                    "receive buffer", "net.core.rmem_max", "datagrams are lost whenever this program pauses"
                ),
                granted_bytes=data.memory().buffer_bytes,
                wanted_bytes=RECEIVE_BUFFER_BYTES,
            )
        )
    finally:
        data.close()
    return findings


async def _check_loopback(data: DataSocket, group: str, port: int, frame_bytes: int) -> Finding:
    """Send to the group through the interface, and count the datagrams that the receive path gets back."""
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
            f"only {heard_count} of {TEST_DATAGRAM_COUNT} datagrams sent to {group} came back, perhaps because of a "
            "firewall",
            f"allow UDP port {port} to {group} on {data.interface.name}: see nft list ruleset",
        )
    return ok(check, f"{TEST_DATAGRAM_COUNT} datagrams sent to {group} came back, read by {data.mode}")


async def _check_coalescing(data: DataSocket, group: str, port: int, frame_bytes: int) -> Finding:
    """Check that datagrams sent together arrive coalesced, which is a seventh of the work for the receiver."""
    check = "receive offload"
    fix = "a kernel of version 5.0 or later has UDP GRO and UDP GSO"
    if data.mode is not ReceiveMode.GRO:
        return warn(check, f"the kernel has no UDP GRO: datagrams are read by {data.mode}", fix)
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
        return warn(
            check, "UDP GRO is enabled, but datagrams arrive one by one and are read by recvmmsg", fix
        )
    return ok(check, f"UDP GRO: {largest_bytes // frame_bytes} datagrams came as one message")


async def _check_sender(interface: ReceiveInterface, group: str, port: int) -> Finding:
    """Check that a sender is heard, and that its control API answers."""
    check = "sender"
    try:
        offer = await listen_for_cast(interface, group, port, CastChoice(), wait_s=LISTEN_S)
    except NoSenderError:
        detail = f"no cast was announced within {LISTEN_S:g} s: repeat this while diskcast send waits for receivers"
        return ok(check, detail)
    except AmbiguousCastError as error:
        return warn(check, str(error), "give each cast its own --port, or the agents --image-name NAME")
    try:
        # It gets no secret, so its certificate doesn't matter; a refusal is an answer.
        client = ControlClient(offer.control_url, SenderAccess(PeerTrust(any_certificate=True)))
        with contextlib.suppress(JoinRefusedError):
            await retry_until(trio.current_time() + ANSWER_TIMEOUT_S, client.casts)
    except ConfigurationError as error:
        detail = f"{offer.image_name!r} is announced by {offer.source}, but can't be joined: {error}"
        return fail(check, detail, "upgrade that sender, or look for a rogue one")
    except (SessionError, ProtocolError) as error:
        detail = f"{offer.image_name!r} is announced by {offer.source}, but its control API is unavailable: {error}"
        return fail(
            check, detail, f"allow TCP to {offer.control_url} on the sender: see nft list ruleset there"
        )
    return ok(check, f"{offer.image_name!r} is announced by {offer.source}, and {offer.control_url} answers")


def _check_reverse_path(interface_name: str) -> list[Finding]:
    """Check for strict reverse path filtering, which silently drops a cast whose sender is routed elsewhere."""
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
        f"strict, and there are other interfaces ({', '.join(sorted(others))}): a cast whose sender is routed through "
        "one of them is dropped silently"
    )
    fix = f"sysctl -w net.ipv4.conf.{interface_name}.rp_filter=2"
    return [warn(f"reverse path filter of {interface_name}", detail, fix)]


def _route_command(interface: ReceiveInterface, group: str) -> str:
    if ":" in group:
        return f"ip -6 route add multicast ff00::/8 dev {interface.name} table local"
    return f"ip route replace {group} dev {interface.name}"


def _test_frame(frame_bytes: int) -> bytes:
    """Return a datagram that no receiver mistakes for a cast's: it has no magic."""
    return b"diskcast-agent doctor".ljust(frame_bytes, b".")


def _send_frames(interface: ReceiveInterface, group: str, port: int, frame: bytes) -> None:
    """Send the test datagrams, in one call if the kernel segments.

    Their time to live is 0: they never leave this machine.

    Raises:
        InterfaceError: the kernel refuses.
    """
    try:
        _send_frames_unchecked(interface, group, port, frame)
    except OSError as error:
        raise InterfaceError(
            f"cannot send to group {group} through {interface.name}: {error.strerror}; check the route and the firewall"
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
