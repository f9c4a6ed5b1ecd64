"""Check what a sender needs on this machine: the group, send offload, ports, memory."""

from __future__ import annotations

import errno
import importlib.util
import os
import select
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]

from protocol.constants import DATA_HEADER_BYTES, MIB
from protocol.errors import AddressInUseError, ConfigurationError, InterfaceError
from protocol.fec.isal import best_kernel
from protocol.packing.filesystems.free_space import METHODS
from protocol.program.findings import (
    BridgeFacts,
    Finding,
    MediumFacts,
    SocketBuffer,
    fail,
    judge_bridge,
    judge_erasure_coding,
    judge_medium,
    judge_memory,
    judge_reach,
    judge_socket_buffer,
    ok,
    warn,
)
from protocol.program.sandbox import sandbox_problem
from protocol.program.system_tools import find_tool
from protocol.wire.messages import Announce
from sender.addresses import IpAddress
from sender.cast.network.datagram_output import DatagramOutput, SendMode
from sender.cast.network.interfaces import (
    MulticastInterface,
    find_interface,
    list_interfaces,
    symbol_bytes_for,
)
from sender.cast.network.queue_discipline import queue_disciplines
from sender.cast.network.sockets import (
    FEEDBACK_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
    bind_control_sockets,
    open_announce_listener,
    open_data_socket,
)
from sender.imaging.foreign.compressed_raw import DECOMPRESSORS
from sender.imaging.foreign.virtual_disks import QEMU_IMG, QEMU_PACKAGE

MEMORY_BYTES_MAX = 400 * MIB
"""Memory limit of the sender, for any image."""

ANSWER_TIMEOUT_S = 1.0
"""Looped-back datagrams arrive within microseconds; a second allows for a machine that swaps."""

TEST_DATAGRAM_COUNT = 8
TEST_FRAME_BYTES_MAX = 1472
"""Eight datagrams of a loopback interface's size would overflow the small buffer of the listener."""

SENDER_MODULES = ("fastapi", "uvicorn", "asyncio_dgram")
"""Modules that the control API needs besides those of the agent."""

_NETWORK_DEVICES = Path("/sys/class/net")
_LOOP_CONTROL = Path("/dev/loop-control")


def examine(
    interface_name: str | None, *, group: IpAddress, port: int, control: tuple[IpAddress | None, int]
) -> list[Finding]:
    """Run all checks; takes at most a second per interface and changes nothing.

    The test datagrams have a time to live of 0: they never leave this machine.

    Args:
        interface_name: as in ``ip link``; None for all usable interfaces.
        group: multicast address.
        port: UDP port of the data.
        control: address (None for that of the interface) and port of the control API.
    """
    findings = []
    for name in [interface_name] if interface_name else _usable_names(group):
        findings += _check_interface(name, group, port, control)
    findings += [judge_bridge(facts) for facts in _bridges()]
    findings.append(judge_erasure_coding(best_kernel()))
    findings.append(_check_modules())
    findings += judge_free_space()
    findings += judge_foreign_images()
    findings.append(judge_memory(psutil.virtual_memory().available, MEMORY_BYTES_MAX))
    return findings


def _usable_names(group: IpAddress) -> list[str]:
    """Return interfaces that are up with an address of the group's family, or else the loopback interface."""
    names = [
        interface.name
        for interface in list_interfaces().values()
        if interface.up
        and any(
            address.version == group.version and not address.is_loopback for address in interface.addresses
        )
    ]
    return names or ["lo"]


def _check_interface(
    name: str, group: IpAddress, port: int, control: tuple[IpAddress | None, int]
) -> list[Finding]:
    check = f"interface {name}"
    try:
        interface = find_interface(name)
        address = interface.address_for(group)
        symbol_bytes = symbol_bytes_for(interface, group.version)
    except InterfaceError as error:
        return [fail(check, str(error), "ip -brief address")]
    detail = f"up, {address}, MTU {interface.mtu_bytes}: symbols of {symbol_bytes} bytes"
    findings = [ok(check, detail)]
    findings += judge_reach(name, str(address))
    findings += judge_medium(_medium_facts(name))
    findings += judge_queue_disciplines(name, queue_disciplines(interface.index))
    frame_bytes = min(symbol_bytes + DATA_HEADER_BYTES, TEST_FRAME_BYTES_MAX)
    findings += _check_group(interface, address, group, port, frame_bytes)
    findings += _check_ports(interface, address, control)
    return findings


def _medium_facts(interface_name: str) -> MediumFacts:
    state = psutil.net_if_stats()[interface_name]
    return MediumFacts(
        interface_name,
        wireless=(_NETWORK_DEVICES / interface_name / "wireless").exists(),
        speed_mbit_per_s=state.speed,
        half_duplex=state.duplex == psutil.NIC_DUPLEX_HALF,
    )


def judge_queue_disciplines(interface_name: str, kinds: Sequence[str]) -> list[Finding]:
    """Report whether the kernel helps to pace datagrams; any discipline works. Return no finding if it is unknown.

    Args:
        interface_name: as in ``ip link``.
        kinds: kinds of its queue disciplines, the root's first.
    """
    if not kinds:
        return []
    check = f"queue discipline of {interface_name}"
    queueing = set(kinds[1:] or kinds)  # below mq there is one for each queue of the card
    if queueing == {"fq"}:
        return [ok(check, "fq: the kernel also paces the bursts of a cast with --rate or --max-rate")]
    names = ", ".join(sorted(queueing))
    return [ok(check, f"{names}: only the sender paces bursts; fq would help with --rate or --max-rate")]


def _check_group(
    interface: MulticastInterface, address: IpAddress, group: IpAddress, port: int, frame_bytes: int
) -> list[Finding]:
    """Send to the group as a cast does, and count the datagrams that a listener on this machine receives."""
    check = f"multicast on {interface.name}"
    try:
        with (
            open_announce_listener(interface, group, port) as listener,
            open_data_socket(interface, address, group, port, ttl=0) as sock,
        ):
            frame = _test_frame(frame_bytes)
            mode = _send_frames(sock, frame)
            received_count = _count_received(listener, frame)
            send_buffer_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    except InterfaceError as error:
        return [fail(check, str(error), f"ip route replace {group} dev {interface.name}")]
    except OSError as error:
        blocked = error.errno == errno.EPERM
        reason = "a firewall blocks it" if blocked else os.strerror(error.errno or 0)
        fix = f"allow UDP to {group} port {port} through {interface.name}: nft list ruleset"
        return [fail(check, f"can't send to {group}: {reason}", fix)]
    if received_count < TEST_DATAGRAM_COUNT:
        detail = f"received {received_count} of {TEST_DATAGRAM_COUNT} datagrams sent to {group}: is there a firewall?"
        fix = f"allow UDP port {port} to {group} through {interface.name}: nft list ruleset"
        return [fail(check, detail, fix)]
    buffer = SocketBuffer(
        "send buffer", "net.core.wmem_max", "the sending thread waits for the kernel more often"
    )
    return [
        ok(check, f"received all {TEST_DATAGRAM_COUNT} datagrams sent to {group} port {port}"),
        _judge_send_mode(interface, mode),
        judge_socket_buffer(buffer, granted_bytes=send_buffer_bytes, wanted_bytes=SEND_BUFFER_BYTES),
    ]


def _test_frame(frame_bytes: int) -> bytes:
    """Return a datagram that no cast accepts: with the type that the listener accepts, but without the magic."""
    return (b"\0\0\0" + bytes([Announce.WIRE_TYPE]) + b"diskcast doctor").ljust(frame_bytes, b".")


def _send_frames(sock: socket.socket, frame: bytes) -> SendMode:
    """Send the test datagrams through the transmitter's output and return the method that worked."""
    frames = np.frombuffer(frame * TEST_DATAGRAM_COUNT, np.uint8).reshape(TEST_DATAGRAM_COUNT, len(frame))
    output = DatagramOutput(sock, len(frame))
    sent_count = 0
    while sent_count < TEST_DATAGRAM_COUNT:
        sent_count += output.send(frames[sent_count : sent_count + output.frames_per_call])
    return output.mode


def _count_received(listener: socket.socket, frame: bytes) -> int:
    received_count = 0
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while received_count < TEST_DATAGRAM_COUNT and (left_s := deadline - time.monotonic()) > 0:
        if select.select([listener], [], [], left_s)[0]:
            received_count += listener.recv(len(frame) + 1) == frame
    return received_count


def _judge_send_mode(interface: MulticastInterface, mode: SendMode) -> Finding:
    check = f"send offload on {interface.name}"
    if mode is SendMode.SEGMENTATION:
        return ok(check, f"UDP GSO: {TEST_DATAGRAM_COUNT} datagrams left in one call")
    return warn(
        check,
        f"no UDP GSO: sending by {mode} costs several times the processor time",
        f"use kernel 4.18 or later, and checksum offload: ethtool -K {interface.name} tx on",
    )


def _check_ports(
    interface: MulticastInterface, address: IpAddress, control: tuple[IpAddress | None, int]
) -> list[Finding]:
    host, port = control
    listen_address = host or address
    check = f"control port {port} of {listen_address}"
    try:
        tcp, udp = bind_control_sockets(host, port, interface, address)
    except AddressInUseError as error:
        return [fail(check, str(error), f"ss -lptun 'sport = :{port}'")]
    except ConfigurationError as error:
        return [fail(check, str(error), f"choose another one with --control {address}:PORT")]
    with tcp, udp:
        granted_bytes = udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    findings = [ok(check, "TCP for joins and UDP for feedback are free")]
    if listen_address.is_loopback and not address.is_loopback:
        detail = "receivers on other machines can't join through the loopback address"
        findings.append(warn(f"reach of {listen_address}", detail, f"use --control {address}:{port}"))
    buffer = SocketBuffer(
        "feedback buffer", "net.core.rmem_max", "feedback of a large room may be lost and repeated"
    )
    findings.append(
        judge_socket_buffer(buffer, granted_bytes=granted_bytes, wanted_bytes=FEEDBACK_BUFFER_BYTES)
    )
    return findings


def _bridges() -> list[BridgeFacts]:
    """Return the bridges of this machine, which may connect virtual machines or containers as receivers."""
    facts = []
    for settings in sorted(_NETWORK_DEVICES.glob("*/bridge")):
        try:
            snooping = (settings / "multicast_snooping").read_text().strip() != "0"
            querier = (settings / "multicast_querier").read_text().strip() != "0"
        except OSError:  # a kernel built without IGMP snooping floods
            continue
        facts.append(BridgeFacts(settings.parent.name, snooping, querier))
    return facts


def _check_modules() -> Finding:
    missing = [name for name in SENDER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        detail = f"not installed: {', '.join(missing)}"
        return fail("control API", detail, "pip install 'diskcast[sender]'")
    return ok("control API", "all required modules are installed")


def judge_foreign_images() -> list[Finding]:
    """Check for the tools and the sandbox that `pack` needs for images of other programs; no check fails."""
    tools = {QEMU_IMG: QEMU_PACKAGE, **{tool.name: tool.package for tool in DECOMPRESSORS.values()}}
    missing = [tool for tool in tools if find_tool(tool) is None]
    check, problem = "foreign images", sandbox_problem()
    if problem:
        return [warn(check, f"`diskcast pack` refuses them: {problem}", "use a kernel with Landlock")]
    if missing:
        packages = " ".join(tools[tool] for tool in missing)
        return [warn(check, f"{', '.join(missing)} not installed", f"apt install {packages}")]
    return [ok(check, f"read by {', '.join(tools)}, in a sandbox")]


def judge_free_space() -> list[Finding]:
    """Check for which filesystems `pack` can skip free space; it packs others completely, so no check fails."""
    missing = {filesystem: method.missing_tools() for filesystem, method in METHODS.items()}
    known = ", ".join(filesystem for filesystem, tools in missing.items() if not tools)
    findings = [ok("free space", f"skipped when packing {known}")]
    for filesystem, tools in missing.items():
        if tools:
            detail = f"packed as well: {' and '.join(tools)} not installed"
            findings.append(
                warn(f"free space of {filesystem}", detail, f"apt install {METHODS[filesystem].packages}")
            )
    check = "free space in partitions"
    if os.geteuid() != 0:
        unprivileged = ", ".join(filesystem for filesystem, method in METHODS.items() if method.takes_offset)
        findings.append(
            ok(check, f"skipped for {unprivileged}; for all others if `diskcast pack` runs as root")
        )
    elif not _LOOP_CONTROL.exists():
        findings.append(warn(check, "this kernel or container has no loop devices", "modprobe loop"))
    return findings
