"""Boots over the network: the system that a machine boots."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket

from fastapi import Request

from sender.api.guard.guarded_route import ActorOf, PrincipalOf, ServicesOf
from sender.api.request_models.boots import BootInput
from sender.store.records.boots import BootAction, BootAnswer


async def decide_boot(
    services: ServicesOf, actor: ActorOf, principal: PrincipalOf, request: Request, body: BootInput
) -> BootAnswer:
    """Decide the system that a machine boots.

    A boot service asks at every boot. The answer ``live`` has a boot token: the bearer of the machine's first check-in.
    It enrols this machine only, once, within ten minutes.
    """
    answer = await services.boots.decide(body.report(), actor, principal.room_id)
    if answer.action is not BootAction.LIVE:
        return answer
    pins = (services.pin,) if request.url.scheme == "https" else ()
    return dataclasses.replace(answer, servers=_servers(request, body.address), pins=pins)


def _servers(request: Request, machine_address: str) -> tuple[str, ...]:
    """Return the daemon's URL for a machine; none if only programs on this machine can reach the daemon."""
    host, port = request.scope["server"]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_loopback:
        # The boot service runs on this machine: the machine reaches the daemon by another address, if it listens there.
        listening = ipaddress.ip_address(request.app.state.services.config.server.endpoint[0])
        own = _address_towards(machine_address) if listening.is_unspecified else ""
        if not own:
            return ()
        address = ipaddress.ip_address(own)
    shown = f"[{address}]" if address.version == 6 else str(address)
    return (f"{request.url.scheme}://{shown}:{port}",)


def _address_towards(machine_address: str) -> str:
    """Return this machine's address in the direction of another one; empty without a route."""
    if not machine_address:
        return ""
    family = socket.AF_INET6 if ":" in machine_address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((machine_address, 9))  # a datagram socket sends nothing here
        except OSError:
            return ""
        own = str(probe.getsockname()[0])
    return "" if ipaddress.ip_address(own.partition("%")[0]).is_loopback else own
