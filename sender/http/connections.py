"""The table of a server's connections: limits in total and per source address, and the choice of one to close.

A connection is a stranger until a request on it presents a valid secret (:func:`admit`). When a limit is reached, the
oldest stranger is closed in favour of the new connection, then the member that has waited longest for its next request.
An attacker's idle connections therefore never keep a member out, and a member in the middle of a request is never cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from starlette.requests import HTTPConnection

from sender.addresses import IpNetwork, contains_address, source_network
from sender.http.rejections import Rejection, Rejections

_STATE_KEY = "connection"


class Connection:
    """A connection from accept to close.

    Attributes:
        network: source address, or the /64 of an IPv6 address.
        member: a request presented a valid secret.
        resting: it waits for its next request.
        close_now: closes it at once; the server changes this as the connection proceeds.
        widen: lets it read more at once, for large bodies of a member.
    """

    def __init__(self, network: str, table: ConnectionTable) -> None:
        """Describe a connection; :meth:`ConnectionTable.open` calls this."""
        self.network = network
        self.member = False
        self.resting = False
        self.close_now: Callable[[], object] = _ignore
        self.widen: Callable[[], object] = _ignore
        self._table = table

    def admit(self) -> None:
        """Turn a stranger into a member: a request presented a valid secret."""
        if not self.member:
            self._table.move(self, member=True, resting=False)

    def rest(self) -> None:
        """Note the end of a response: the connection waits for its next request."""
        self._table.move(self, member=self.member, resting=True)

    def work(self) -> None:
        """Note the start of a request."""
        self._table.move(self, member=self.member, resting=False)

    def closed(self) -> None:
        """Note the end of the connection."""
        self._table.remove(self)

    def count(self, reason: Rejection) -> None:
        """Count a rejection on this connection."""
        self._table.rejections.count(reason)


class ConnectionTable:
    """All connections of a server.

    Attributes:
        rejections: rejected connections and requests.
    """

    def __init__(
        self, connections_max: int, rejections: Rejections, trusted_proxies: Iterable[IpNetwork] = ()
    ) -> None:
        """Hold at most ``connections_max`` connections, at most half of them from one address.

        Args:
            connections_max: limit of all connections.
            rejections: counts rejections.
            trusted_proxies: addresses to which the limit per address doesn't apply.
        """
        self._connections_max = connections_max
        self._per_address_max = max(1, connections_max // 2)
        self._trusted_proxies = tuple(trusted_proxies)
        self.rejections = rejections
        self._all = _Group()
        self._by_network: dict[str, _Group] = {}

    def __len__(self) -> int:
        """Return the number of open connections."""
        return self._all.count

    def open(self, address: str) -> Connection | None:
        """Return a new connection from ``address``, or None if there is no room and none can be closed for it."""
        network = source_network(address)
        group = self._by_network.get(network)
        if (
            group is not None
            and group.count >= self._per_address_max
            and not contains_address(self._trusted_proxies, address)
            and not self._evict(group)
        ):
            self.rejections.count(Rejection.ADDRESS_FULL)
            return None
        if self._all.count >= self._connections_max and not self.evict_one():
            self.rejections.count(Rejection.SERVER_FULL)
            return None
        connection = Connection(network, self)
        self._all.add(connection)
        self._by_network.setdefault(network, _Group()).add(connection)
        return connection

    def evict_one(self) -> bool:
        """Close the connection that is worth least; return False if all are members in the middle of a request."""
        return self._evict(self._all)

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection; do nothing if it isn't in the table."""
        if not self._all.discard(connection):
            return
        group = self._by_network[connection.network]
        group.discard(connection)
        if not group.count:
            del self._by_network[connection.network]

    def move(self, connection: Connection, *, member: bool, resting: bool) -> None:
        """Record a new state of a connection."""
        groups = (self._all, self._by_network.get(connection.network))
        held = [group for group in groups if group is not None and group.discard(connection)]
        connection.member, connection.resting = member, resting
        for group in held:
            group.add(connection)

    def _evict(self, group: _Group) -> bool:
        victim = group.least_worth()
        if victim is None:
            return False
        self.remove(victim)
        self.rejections.count(Rejection.EVICTED)
        victim.close_now()
        return True


class _Group:
    """Connections by state, oldest first."""

    def __init__(self) -> None:
        self._strangers: OrderedDict[Connection, None] = OrderedDict()
        self._resting: OrderedDict[Connection, None] = OrderedDict()
        self._busy: OrderedDict[Connection, None] = OrderedDict()

    @property
    def count(self) -> int:
        return len(self._strangers) + len(self._resting) + len(self._busy)

    def add(self, connection: Connection) -> None:
        self._place(connection)[connection] = None

    def discard(self, connection: Connection) -> bool:
        place = self._place(connection)
        if connection not in place:
            return False
        del place[connection]
        return True

    def least_worth(self) -> Connection | None:
        return next(iter(self._strangers or self._resting), None)

    def _place(self, connection: Connection) -> OrderedDict[Connection, None]:
        if not connection.member:
            return self._strangers
        return self._resting if connection.resting else self._busy


def connection_state(connection: Connection) -> dict[str, object]:
    """Return the state that ASGI passes to each request of a connection."""
    return {_STATE_KEY: connection}


def widen(request: HTTPConnection) -> None:
    """Let the connection of ``request`` read more at once, if it is a member."""
    connection = request.scope.get("state", {}).get(_STATE_KEY)
    if connection is not None and connection.member:
        connection.widen()


def admit(request: HTTPConnection) -> None:
    """Turn the connection of ``request`` into a member; call this when its secret was found valid."""
    connection = request.scope.get("state", {}).get(_STATE_KEY)
    if isinstance(connection, Connection):
        connection.admit()


def count_rejection(request: HTTPConnection, reason: Rejection) -> None:
    """Count a rejected request."""
    connection = request.scope.get("state", {}).get(_STATE_KEY)
    if isinstance(connection, Connection):
        connection.count(reason)


def _ignore() -> None:
    pass
