"""Limits of templates and machines; everything that becomes a seed is bounded before it is built."""

from __future__ import annotations

from typing import Final

from protocol.constants import KIB, MIB

TEMPLATE_BYTES_MAX: Final = MIB
"""A template file; ten times the scripts and files of an elaborate room."""

STORED_TEMPLATE_BYTES_MAX: Final = 128 * KIB
"""A room's template in the daemon's database: below the limit of a request, and twice the largest script."""

TEXT_BYTES_MAX: Final = 64 * KIB
"""One file, script or string after its variables are filled in."""

SEED_CONTENT_BYTES_MAX: Final = MIB
"""All files of one seed: they fit into the partition of 4 MiB, and 500 of them into memory one by one."""

USERS_MAX: Final = 32
GROUPS_MAX: Final = 32
KEYS_MAX: Final = 32
FILES_MAX: Final = 64
SCRIPTS_MAX: Final = 16
ADDRESSES_MAX: Final = 16
"""Addresses, DNS servers or search domains: as many as libc and netplan take without surprises."""

USER_DATA_DEPTH_MAX: Final = 8
USER_DATA_VALUES_MAX: Final = 2000
"""Values in the template's own cloud-config."""

MACHINES_MAX: Final = 5000
"""Lines of a file of machines: five of the largest rooms."""
MACHINES_BYTES_MAX: Final = 8 * MIB
COLUMNS_MAX: Final = 64
CELL_BYTES_MAX: Final = 4 * KIB
"""A cell: an SSH key with 8192 bits of RSA has 1.4 KiB."""

SCRIPT_TIMEOUT_S_MAX: Final = 3600
SCRIPT_TIMEOUT_S_DEFAULT: Final = 300
SCRIPT_LOG_START_BYTES: Final = 48 * KIB
SCRIPT_LOG_END_BYTES: Final = 16 * KIB
"""Output of a first-boot script that is kept, from its start and its end; the rest is discarded as it is written."""
