"""How many files and sockets this process may have open."""

from __future__ import annotations

import contextlib
import resource

DESCRIPTORS_WANTED = 65_536
"""Each waiting agent, each browser and each room's feedback is one: a thousand machines, and as many that reconnect
before their old connection is known to be dead, fit many times over."""

DESCRIPTORS_NEEDED = 4_096
"""Below this a daemon of one large room may run out: 1024 agents that wait, 1024 that report, and the rest."""


def raise_descriptor_limit() -> int:
    """Take as many as the system allows without asking; the new limit.

    systemd's default is 1024 with a hard limit of 524288, because select(2) fails beyond 1024: nothing here uses it on
    descriptors that it didn't just open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid what the limits allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
