"""The limit of open files and sockets of this process."""

from __future__ import annotations

import contextlib
import resource

DESCRIPTORS_WANTED = 65_536
"""Each waiting agent, browser and feedback socket is one. A thousand machines, and as many that reconnect before their
old connections time out, fit many times over."""

DESCRIPTORS_NEEDED = 4_096
"""With fewer, a daemon of one large room may run out: 1024 agents wait, 1024 report, and browsers come on top."""


def descriptor_limit() -> int:
    """Return the limit of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_descriptor_limit() -> int:
    """Raise the limit as far as possible without privileges; return the new limit.

    systemd's default is 1024 with a hard limit of 524288, because select(2) fails beyond 1024. diskcast doesn't use
    select(2) for descriptors that it hasn't just opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid what the limits allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return descriptor_limit()
