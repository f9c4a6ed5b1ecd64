"""Programs of diskcast 0.1.0 beside this version: one error that names both versions, never silence.

The datagrams and documents were recorded from the code of 0.1.0 (commit c9ea1cd), whose wire version was 1. Lost if
these fail: after an upgrade of half the programs, a room waits without a reason on either side.
"""

from __future__ import annotations

import json

import pytest
import trio.testing

from protocol.control.control_messages import cast_from_json_untrusted, join_from_json_untrusted
from protocol.errors import JoinRefusedError, WireVersionError
from receiver.reception.network.discovery import CastChoice, listen_for_cast
from receiver.reception.network.interface import find_interface
from tests.shell.loopback import GROUP_IPV4, LoopbackSender
from tests.support.network.ports import free_port_range
from tests.unit.protocol.sending.sender_inputs import new_session

ANNOUNCE = bytes.fromhex(
    "d15c01101234abcd00000000000000019c0101c4200000000000000000000000000000000000000000000000000000000000000000"
    "a6676f6c64656eb4687474703a2f2f31302e302e302e313a3734313140010101010101"
)
REPORT = bytes.fromhex(
    "d15c01211234abcd0000000000000001dc0015000101010101010101010101010101010101010101766e84900426e88ab53261d61ab5a421"
)
JOIN = json.loads(
    '{"agent_id": "agent-1", "name": "pc-1", "inventory": {"serial": "X1"}, "has_manifest": true, "identity": null, '
    '"need": null}'
)
CAST = json.loads(
    '{"cast_id": "1234abcd", "incarnation": 7, "state": "casting", "image_id": "' + "0" * 64 + '", '
    '"image_name": "golden", "raw_bytes": 1048576, "block_bytes": 262144, "manifest_bytes": 4096, '
    '"symbol_bytes": 1440, "group": "239.255.68.98", "port": 7410, '
    '"sender_address": "10.0.0.1", "feedback_port": 7411, "control_url": "http://10.0.0.1:7411", "receiver_count": 0}'
)


@pytest.mark.trio
async def test_an_agent_that_hears_only_an_old_sender_names_both_versions(
    mock_clock: trio.testing.MockClock,
) -> None:
    [port] = free_port_range(1)
    errors: list[WireVersionError] = []

    async def listen() -> None:
        interface = find_interface("lo", GROUP_IPV4)
        try:
            await listen_for_cast(interface, GROUP_IPV4, port, CastChoice(), wait_s=20.0)
        except WireVersionError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        with LoopbackSender(GROUP_IPV4, port) as sender:
            for _ in range(3):
                sender.send(ANNOUNCE)
                await trio.testing.wait_all_tasks_blocked(0.001)
        mock_clock.autojump_threshold = 0.0
    (error,) = errors
    assert "127.0.0.1 speaks wire version 1, this program speaks version 2: upgrade the sender" in str(error)
    assert error.exit_code == 48


def test_a_sender_counts_the_feedback_of_an_old_agent_and_knows_its_version() -> None:
    session = new_session()
    for _ in range(3):
        session.receive_feedback_untrusted(REPORT, 101.0)
    assert session.rejects == {"bad_version": 3}
    assert session.foreign_version == 1


def test_an_old_agent_that_joins_is_refused_with_both_versions() -> None:
    with pytest.raises(
        JoinRefusedError, match="the agent speaks wire version 1, this sender speaks version 2"
    ):
        join_from_json_untrusted(JOIN, block_count=9, address="10.0.0.9")


def test_an_agent_that_is_sent_to_an_old_sender_names_both_versions() -> None:
    with pytest.raises(
        WireVersionError, match="the sender speaks wire version 1, this program speaks version 2"
    ):
        cast_from_json_untrusted(CAST)
