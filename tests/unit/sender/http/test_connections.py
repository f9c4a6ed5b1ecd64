"""The table of connections: without it, whoever opens the most connections decides who else is served."""

from __future__ import annotations

import ipaddress

from sender.http.connections import Connection, ConnectionTable
from sender.http.rejections import Api, Rejection, Rejections


class Closed:
    """Records the connections that the table closed."""

    def __init__(self) -> None:
        self.closed: list[Connection] = []

    def watch(self, connection: Connection | None) -> Connection:
        assert connection is not None
        connection.close_now = lambda: self.closed.append(connection)
        return connection


def test_a_full_server_closes_the_oldest_stranger_for_a_newcomer() -> None:
    table, closed = ConnectionTable(4, Rejections(Api.CAST)), Closed()
    opened = [closed.watch(table.open(f"10.0.0.{host}")) for host in range(4)]
    opened[0].admit()
    newcomer = closed.watch(table.open("10.0.0.9"))
    assert closed.closed == [opened[1]]
    assert len(table) == 4
    assert table.rejections.counts == {Rejection.EVICTED: 1}
    opened[1].closed()
    assert len(table) == 4, "an evicted connection counted twice"
    newcomer.closed()
    assert len(table) == 3


def test_a_member_in_a_request_is_never_closed_and_one_at_rest_only_without_strangers() -> None:
    table, closed = ConnectionTable(2, Rejections(Api.CAST)), Closed()
    busy, resting = (closed.watch(table.open(f"10.0.0.{host}")) for host in (1, 2))
    for connection in (busy, resting):
        connection.admit()
    resting.rest()
    stranger = closed.watch(table.open("10.0.0.3"))
    assert closed.closed == [resting]
    stranger.admit()
    assert table.open("10.0.0.4") is None
    assert table.rejections.counts[Rejection.SERVER_FULL] == 1
    stranger.rest()
    stranger.work()
    assert table.open("10.0.0.4") is None, "a member in a request was closed"


def test_one_address_gets_half_and_closes_only_its_own() -> None:
    table, closed = ConnectionTable(8, Rejections(Api.CAST)), Closed()
    other = closed.watch(table.open("10.0.0.2"))
    mine = [closed.watch(table.open("10.0.0.1")) for _ in range(100)]
    assert other not in closed.closed
    assert len(closed.closed) == 96
    assert len(table) == 5
    for connection in mine[-4:]:
        connection.admit()
    assert table.open("10.0.0.1") is None
    assert table.rejections.counts[Rejection.ADDRESS_FULL] == 1
    assert table.open("10.0.0.3") is not None


def test_an_ipv6_host_cannot_use_its_whole_network_as_many_addresses() -> None:
    table, closed = ConnectionTable(8, Rejections(Api.CAST)), Closed()
    for host in range(20):
        closed.watch(table.open(f"2001:db8::{host:x}"))
    assert len(table) == 4
    assert table.open("2001:db8:0:1::1") is not None
    assert len(table) == 5


def test_a_trusted_proxy_may_use_all_connections() -> None:
    table, closed = ConnectionTable(8, Rejections(Api.CAST), [ipaddress.ip_network("10.0.0.0/24")]), Closed()
    for _ in range(8):
        closed.watch(table.open("10.0.0.1"))
    assert len(table) == 8
    assert not closed.closed
    closed.watch(table.open("::ffff:10.0.0.1"))
    assert len(closed.closed) == 1
