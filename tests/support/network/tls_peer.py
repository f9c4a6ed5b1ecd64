"""A TLS server on loopback that records the plaintext of its clients."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sender.identity.certificate import Certificate, ensure_certificate

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"


def make_certificate(directory: Path, name: str = "test") -> Certificate:
    """Return a certificate in ``directory``."""
    return ensure_certificate(directory, name, datetime.now(UTC))


@functools.cache
def shared_certificate() -> Certificate:
    """Return a certificate for all tests of this process that need just any."""
    directory = tempfile.mkdtemp(prefix="diskcast-test-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return make_certificate(Path(directory))


class TlsPeer:
    """A server that answers every request with an empty JSON object.

    Attributes:
        port: its TCP port on 127.0.0.1.
        heard: the plaintext of all clients.
        connection_count: accepted connections, whether or not their handshake succeeded.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.heard = bytearray()
        self.connection_count = 0
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting, and wait until the last client has been served."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connection_count += 1
            client.settimeout(5)
            with (
                client,
                contextlib.suppress(OSError),
                self._context.wrap_socket(client, server_side=True) as stream,
            ):
                self._serve(stream)

    def _serve(self, stream: ssl.SSLSocket) -> None:
        while part := stream.recv(65536):
            self.heard += part
            if b"\r\n\r\n" in part:
                stream.sendall(ANSWER)


@contextlib.contextmanager
def tls_peer(certificate: Certificate) -> Iterator[TlsPeer]:
    """Run a peer with this certificate."""
    peer = TlsPeer(certificate.server_context())
    try:
        yield peer
    finally:
        peer.close()
