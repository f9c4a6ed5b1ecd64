"""The daemon's certificate: the one that the configuration names, or one that the daemon makes itself."""

from __future__ import annotations

from datetime import datetime

from sender.config.sections import ServerSection
from sender.identity.certificate import Certificate, ensure_certificate, load_certificate


def daemon_certificate(server: ServerSection, now: datetime) -> Certificate:
    """Return the daemon's certificate, made in the state directory at the first start.

    Raises:
        ConfigurationError: a file is missing, unreadable, malformed, or readable by other users.
    """
    if server.certificate is not None and server.certificate_key is not None:
        return load_certificate(server.certificate, server.certificate_key)
    return ensure_certificate(server.state_directory, server.name, now)
