"""Check-ins of agents."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from protocol.control.check_in import CHECK_IN, CHECK_IN_ANSWER
from protocol.control.control_messages import parse_json_untrusted
from sender.api.guard.guarded_route import PrincipalOf, ServicesOf
from sender.api.guard.problems import ascii_json
from sender.daemon.enrolment_desk import EnrolmentGrant


async def check_in(services: ServicesOf, principal: PrincipalOf, request: Request) -> Response:
    """Check in a machine and return the cast that it joins.

    With a token for enrolment, or a boot token, the response has the machine's secret, once, or the code of an agent
    that waits for an operator's approval. A boot token works for one machine and one run of its agent. With the
    machine's secret as bearer it has the machine's cast.

    An idle agent may set ``wait_s``: the daemon delays its response for up to that many seconds until there is a cast.
    """
    report = CHECK_IN.decode_untrusted("check-in", parse_json_untrusted(await request.body()))
    address = request.client.host if request.client else ""
    agent = principal.machine_id or EnrolmentGrant(principal.name, principal.room_id, principal.boot_hash)
    stopping: asyncio.Event = request.app.state.stopping
    pending = asyncio.ensure_future(services.check_ins.answer(report, agent, address))
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((pending, stop), return_when=asyncio.FIRST_COMPLETED)
        if not pending.done():
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, "the daemon is stopping: check in again", {"Retry-After": "1"}
            )
        document = CHECK_IN_ANSWER.encode(pending.result())
    finally:
        pending.cancel()
        stop.cancel()
    return Response(ascii_json(document), media_type="application/json")
