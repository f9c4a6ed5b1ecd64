"""Trying out on this machine what a sender needs: the group, the fast path, the ports, memory."""

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
from sender.imaging.free_space import METHODS
from sender.imaging.system_tools import find_tool

MEMORY_BYTES_MAX = 400 * MIB
"""The sender's bound, whatever the image."""

ANSWER_TIMEOUT_S = 1.0
"""What is looped back on this machine arrives within microseconds; a second is for a machine that swaps."""

TEST_DATAGRAM_COUNT = 8
TEST_FRAME_BYTES_MAX = 1472
"""Eight datagrams of a loopback interface's size would overflow the small buffer of the ear on the group."""

SENDER_MODULES = ("fastapi", "uvicorn", "asyncio_dgram")
"""What the control API needs beyond what the agent has."""

_NETWORK_DEVICES = Path("/sys/class/net")
_LOOP_CONTROL = Path("/dev/loop-control")


def examine(
    interface_name: str | None, *, group: IpAddress, port: int, control: tuple[IpAddress | None, int]
) -> list[Finding]:
    """Try everything that can be tried; takes a second an interface at most and changes nothing.

    The test datagrams have a time to live of 0: they never leave this machine.

    Args:
        interface_name: as in ``ip link``; None for every interface that could carry the cast.
        group: multicast address.
        port: UDP port of the data.
        control: where the control API would listen: address (None for the interface's own) and port.
    """
    findings = []
    for name in [interface_name] if interface_name else _usable_names(group):
        findings += _try_interface(name, group, port, control)
    findings += [judge_bridge(facts) for facts in _bridges()]
    findings.append(judge_erasure_coding(best_kernel()))
    findings.append(_try_modules())
    findings += judge_free_space()
    findings.append(judge_memory(psutil.virtual_memory().available, MEMORY_BYTES_MAX))
    return findings


def _usable_names(group: IpAddress) -> list[str]:
    """Interfaces that are up with an address of the group's family, or else the loopback interface."""
    names = [
        interface.name
        for interface in list_interfaces().values()
        if interface.up
        and any(
            address.version == group.version and not address.is_loopback for address in interface.addresses
        )
    ]
    return names or ["lo"]


def _try_interface(
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
    findings += _try_group(interface, address, group, port, frame_bytes)
    findings += _try_ports(interface, address, control)
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
    """Whether the kernel helps to space the datagrams; any discipline will do, and nothing to say where it isn't known.

    Args:
        interface_name: as in ``ip link``.
        kinds: of its queue disciplines, the root's first.
    """
    if not kinds:
        return []
    check = f"queue discipline of {interface_name}"
    queueing = set(kinds[1:] or kinds)  # below mq, one for each queue of the card
    if queueing == {"fq"}:
        return [ok(check, "fq: the kernel, too, spaces the bursts of a cast with --rate or --max-rate")]
    names = ", ".join(sorted(queueing))
    return [ok(check, f"{names}: the sender spaces bursts alone; fq would help with --rate or --max-rate")]


def _try_group(
    interface: MulticastInterface, address: IpAddress, group: IpAddress, port: int, frame_bytes: int
) -> list[Finding]:
    """Send to the group as a cast would and count what comes back to an ear on this machine."""
    check = f"multicast on {interface.name}"
    try:
        with (
            open_announce_listener(interface, group, port) as ear,
            open_data_socket(interface, address, group, port, ttl=0) as sock,
        ):
            frame = _test_frame(frame_bytes)
            mode = _send_frames(sock, frame)
            heard_count = _count_heard(ear, frame)
            send_buffer_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    except InterfaceError as error:
        return [fail(check, str(error), f"ip route replace {group} dev {interface.name}")]
    except OSError as error:
        blocked = error.errno == errno.EPERM
        reason = "a firewall forbids it" if blocked else os.strerror(error.errno or 0)
        mend = f"allow UDP to {group} port {port} by {interface.name}: see nft list ruleset"
        return [fail(check, f"sending to {group} failed: {reason}", mend)]
    if heard_count < TEST_DATAGRAM_COUNT:
        detail = f"{heard_count} of {TEST_DATAGRAM_COUNT} datagrams sent to {group} came back: a firewall drops them?"
        mend = f"allow UDP port {port} to {group} by {interface.name}: see nft list ruleset"
        return [fail(check, detail, mend)]
    buffer = SocketBuffer(
        "send buffer", "net.core.wmem_max", "the sending thread waits for the kernel more often"
    )
    return [
        ok(check, f"{TEST_DATAGRAM_COUNT} datagrams sent to {group} port {port} came back"),
        _judge_send_mode(interface, mode),
        judge_socket_buffer(buffer, granted_bytes=send_buffer_bytes, wanted_bytes=SEND_BUFFER_BYTES),
    ]


def _test_frame(frame_bytes: int) -> bytes:
    """A datagram that no cast takes for its own, with the type that the ear lets through but without the magic."""
    return (b"\0\0\0" + bytes([Announce.WIRE_TYPE]) + b"diskcast doctor").ljust(frame_bytes, b".")


def _send_frames(sock: socket.socket, frame: bytes) -> SendMode:
    """Send the test datagrams through the transmitter's own output and return the way that worked."""
    frames = np.frombuffer(frame * TEST_DATAGRAM_COUNT, np.uint8).reshape(TEST_DATAGRAM_COUNT, len(frame))
    output = DatagramOutput(sock, len(frame))
    sent_count = 0
    while sent_count < TEST_DATAGRAM_COUNT:
        sent_count += output.send(frames[sent_count : sent_count + output.frames_per_call])
    return output.mode


def _count_heard(ear: socket.socket, frame: bytes) -> int:
    heard_count = 0
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while heard_count < TEST_DATAGRAM_COUNT and (left_s := deadline - time.monotonic()) > 0:
        if select.select([ear], [], [], left_s)[0]:
            heard_count += ear.recv(len(frame) + 1) == frame
    return heard_count


def _judge_send_mode(interface: MulticastInterface, mode: SendMode) -> Finding:
    check = f"send offload on {interface.name}"
    if mode is SendMode.SEGMENTATION:
        return ok(check, f"UDP GSO: {TEST_DATAGRAM_COUNT} datagrams left in one call")
    return warn(
        check,
        f"no UDP GSO: datagrams leave by {mode}, which costs several times the processor time",
        f"a kernel of version 4.18 or later, and checksum offload: ethtool -K {interface.name} tx on",
    )


def _try_ports(
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
        return [fail(check, str(error), f"choose another with --control {address}:PORT")]
    with tcp, udp:
        granted_bytes = udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    findings = [ok(check, "TCP for joins and UDP for feedback are free")]
    if listen_address.is_loopback and not address.is_loopback:
        detail = "receivers on other machines can't join through the loopback address"
        findings.append(warn(f"reach of {listen_address}", detail, f"--control {address}:{port}"))
    buffer = SocketBuffer(
        "feedback buffer", "net.core.rmem_max", "a large room's answers may be lost and repeated"
    )
    findings.append(
        judge_socket_buffer(buffer, granted_bytes=granted_bytes, wanted_bytes=FEEDBACK_BUFFER_BYTES)
    )
    return findings


def _bridges() -> list[BridgeFacts]:
    """This machine's bridges, for receivers that are virtual machines or containers behind them."""
    facts = []
    for settings in sorted(_NETWORK_DEVICES.glob("*/bridge")):
        try:
            snooping = (settings / "multicast_snooping").read_text().strip() != "0"
            querier = (settings / "multicast_querier").read_text().strip() != "0"
        except OSError:  # a kernel built without IGMP snooping floods
            continue
        facts.append(BridgeFacts(settings.parent.name, snooping, querier))
    return facts


def _try_modules() -> Finding:
    missing = [name for name in SENDER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        detail = f"the control API needs what isn't installed: {', '.join(missing)}"
        return fail("control API", detail, "pip install 'diskcast[sender]'")
    return ok("control API", "everything it needs is installed")


def judge_free_space() -> list[Finding]:
    """Which filesystems can be asked what they don't use; what can't be is packed whole, so nothing here is fatal."""
    missing = {filesystem: method.missing_tools() for filesystem, method in METHODS.items()}
    known = ", ".join(filesystem for filesystem, tools in missing.items() if not tools)
    findings = [ok("free space", f"not packed of {known}")]
    for filesystem, tools in missing.items():
        if tools:
            detail = f"packed too, for lack of {' and '.join(tools)}"
            findings.append(
                warn(f"free space of {filesystem}", detail, f"apt install {METHODS[filesystem].packages}")
            )
    check = "free space in partitions"
    if find_tool("losetup") is None:
        detail = "losetup, which shows tools a partition alone, isn't installed"
        findings.append(warn(check, detail, "apt install mount util-linux"))
    elif os.geteuid() != 0:
        alone = ", ".join(filesystem for filesystem, method in METHODS.items() if method.takes_offset)
        findings.append(ok(check, f"not packed of {alone}; of all others when `diskcast pack` runs as root"))
    elif not _LOOP_CONTROL.exists():
        findings.append(warn(check, "this kernel or container has no loop devices", "modprobe loop"))
    return findings
