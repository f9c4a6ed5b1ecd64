"""The boot service: its parts on each network, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface

import structlog

from protocol.errors import ConfigurationError
from sender.http.server import HttpServer
from sender.netboot.medium import BootMedium, Loader
from sender.netboot.serve.boot_desk import BootDesk
from sender.netboot.serve.boot_files import TFTP_PORT, BootFile, BootFileTable, ServiceAddress
from sender.netboot.serve.daemon_client import BootApiClient
from sender.netboot.serve.dhcp_codec import DhcpMessage, Option
from sender.netboot.serve.dhcp_probe import find_dhcp_servers
from sender.netboot.serve.dhcp_service import DHCP_PORTS, Answer, DhcpPort, bind_error, open_dhcp_socket
from sender.netboot.serve.http_service import http_server
from sender.netboot.serve.isolated_dhcp import LEASE_S, IsolatedDhcp
from sender.netboot.serve.lease_pool import LeasePool
from sender.netboot.serve.machine_sightings import MachineSightings
from sender.netboot.serve.neighbours import find_mac
from sender.netboot.serve.proxy_dhcp import ProxyDhcp
from sender.netboot.serve.served_names import MediumFiles, ServedNames
from sender.netboot.serve.statistics import BootStatistics
from sender.netboot.serve.tftp_service import TftpService

_log = structlog.get_logger(__name__)


class DhcpMode(enum.StrEnum):
    """The part that the service takes in DHCP."""

    PROXY = "proxy"
    """Boot files only, beside the network's own DHCP server."""
    DHCP = "dhcp"
    """Addresses and boot files, on an isolated network."""
    FILES = "files"
    """None: another DHCP server names the boot files."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootNetwork:
    """A network that the service is on.

    Attributes:
        interface_name: this machine's interface.
        address: its address there, with the network's length.
        mtu_bytes: largest IP packet.
    """

    interface_name: str
    address: IPv4Interface
    mtu_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class BootServiceOptions:
    """Options of a boot service.

    Attributes:
        networks: networks to serve.
        mode: its part in DHCP.
        http_port: port of files and scripts.
        secure_boot: give UEFI machines the signed shim and GRUB.
        room: room of unknown machines; None for no room.
        kernel_arguments: further words of every kernel command line.
        pool: first and last address of the mode dhcp; None for the upper half of the network.
    """

    networks: Sequence[BootNetwork]
    mode: DhcpMode
    http_port: int
    secure_boot: bool
    room: str | None
    kernel_arguments: str
    pool: tuple[IPv4Address, IPv4Address] | None = None


async def run_boot_service(
    options: BootServiceOptions,
    medium: BootMedium,
    daemon: BootApiClient,
    report_ready: Callable[[], object],
) -> None:
    """Serve boots until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: a port can't be used, the medium has no loader, or another DHCP server answers in the mode
            dhcp.
    """
    loaders = frozenset(loader for loader in Loader if loader in medium)
    if not loaders:
        raise ConfigurationError(
            f"the boot medium {medium.directory} has no boot loader: install the package ipxe and build it again"
        )
    files = BootFileTable(loaders, options.secure_boot)
    statistics = BootStatistics()
    sightings = MachineSightings()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    desk = BootDesk(
        daemon,
        initrds=medium.initrds,
        kernel_arguments=options.kernel_arguments,
        room=options.room,
        statistics=statistics,
        find_mac=find_mac,
    )
    if options.mode is DhcpMode.DHCP:
        for network in options.networks:
            await require_no_dhcp_server(network.interface_name)
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for network in options.networks:
            service = ServiceAddress(network.address.ip, options.http_port)
            names = ServedNames(service, MediumFiles.of(medium), desk, sightings)
            if options.mode is not DhcpMode.FILES:
                answer = _dhcp_answer(options, network, service, files, statistics)
                await stack.enter_async_context(
                    _dhcp(network, answer, sightings, statistics, alone=options.mode is DhcpMode.DHCP)
                )
            await stack.enter_async_context(_tftp(network, names, statistics))
            servers.append(http_server(_http_listener(service), names, statistics))
        await _run_servers(servers, stop, report_ready)


def _dhcp_answer(
    options: BootServiceOptions,
    network: BootNetwork,
    service: ServiceAddress,
    files: BootFileTable,
    statistics: BootStatistics,
) -> Answer:
    """Return the function that decides the replies of one network."""
    if options.mode is DhcpMode.PROXY:
        proxy = ProxyDhcp(service, files)
        return lambda request, port, _now: proxy.answer(request, port)
    first, last = options.pool or pool_of(network.address)
    outside = [address for address in (first, last) if address not in network.address.network]
    if outside:
        raise ConfigurationError(
            f"the pool's address {outside[0]} isn't in the network {network.address.network} of "
            f"{network.interface_name}: give other addresses with --pool"
        )
    pool = LeasePool(first, last, reserved={network.address.ip}, lease_s=LEASE_S)
    dhcp = IsolatedDhcp(service, network.address.network, files, pool)

    def answer(request: DhcpMessage, port: int, now: float) -> tuple[DhcpMessage, BootFile | None] | None:
        answered = dhcp.answer(request, port, now)
        statistics.set_leases(pool.leased_count(now))
        return answered

    return answer


def pool_of(address: IPv4Interface) -> tuple[IPv4Address, IPv4Address]:
    """Return the default pool of a network: its upper half, at most 256 addresses, without the broadcast address."""
    count = min(address.network.num_addresses // 2, 256)
    last = address.network.broadcast_address - 1
    return last - (count - 2 if count > 2 else 0), last


async def require_no_dhcp_server(interface_name: str) -> None:
    """Check that no DHCP server answers on the network of an interface.

    Raises:
        ConfigurationError: one answers: two servers would lease the same addresses.
    """
    offers = await find_dhcp_servers(interface_name)
    if offers:
        server = offers[0].address_option(Option.SERVER_IDENTIFIER)
        raise ConfigurationError(
            f"a DHCP server answers on {interface_name} ({server}), and two would lease the same addresses: use --mode "
            "proxy beside it"
        )


@contextlib.asynccontextmanager
async def _dhcp(
    network: BootNetwork,
    answer: Answer,
    sightings: MachineSightings,
    statistics: BootStatistics,
    *,
    alone: bool,
) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    transports: list[asyncio.DatagramTransport] = []
    try:
        for port in DHCP_PORTS:

            def make(port: int = port) -> DhcpPort:
                return DhcpPort(
                    port,
                    answer,
                    own_address=network.address.ip,
                    sightings=sightings,
                    statistics=statistics,
                    alone=alone,
                )

            sock = open_dhcp_socket(network.interface_name, port)
            transport, _protocol = await loop.create_datagram_endpoint(make, sock=sock)
            transports.append(transport)
        yield
    finally:
        for transport in transports:
            transport.close()


@contextlib.asynccontextmanager
async def _tftp(network: BootNetwork, names: ServedNames, statistics: BootStatistics) -> AsyncIterator[None]:
    place = (str(network.address.ip), TFTP_PORT)
    try:
        _transport, service = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: TftpService(names, statistics, network.mtu_bytes), local_addr=place
        )
    except OSError as error:
        raise bind_error(error, f"UDP port {TFTP_PORT} of {network.address.ip}") from error
    try:
        yield
    finally:
        await service.close()


def _http_listener(service: ServiceAddress) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(service.address), service.http_port))
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise bind_error(error, f"TCP port {service.http_port} of {service.address}") from error
        raise ConfigurationError(
            f"cannot bind TCP port {service.http_port} of {service.address}: {error.strerror}; choose another with "
            "--http-port"
        ) from error
    return listener


async def _run_servers(
    servers: Sequence[HttpServer], stop: asyncio.Event, report_ready: Callable[[], object]
) -> None:
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.run_until_stopped())
        report_ready()
        await stop.wait()
        _log.info("netboot_stopping")
        for server in servers:
            server.stop()
