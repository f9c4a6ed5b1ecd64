"""Scripts of the first boot: each with a time limit, its exit code and the start of its output kept on the machine.

cloud-init runs them once for each instance id, so again after a cast with other settings.
"""

from __future__ import annotations

from typing import Final

from sender.patches.limits import SCRIPT_LOG_BYTES_MAX
from sender.patches.template import ScriptEntry

FIRST_BOOT_DIRECTORY: Final = "/var/lib/diskcast/first-boot"
"""Scripts; beside each, NAME.exit has its exit code and NAME.log its output."""
_RUNNER: Final = f"{FIRST_BOOT_DIRECTORY}/run"

# A full pipe must not stop the script, and more output than the limit must not fill the disk: the rest is read and
# discarded. Code 124 means that the time was over (timeout(1)).
_RUNNER_TEXT: Final = f"""#!/bin/sh
# Run one script of the first boot: run SECONDS NAME
cd {FIRST_BOOT_DIRECTORY} || exit 1
umask 077
rm -f "$2.exit" "$2.log"
{{ timeout -k 10 "$1" "./$2" </dev/null 2>&1; echo "$?" >"$2.exit"; }} |
  {{ head -c {SCRIPT_LOG_BYTES_MAX}; cat >/dev/null; }} >"$2.log"
"""


def script_name(script: ScriptEntry) -> str:
    """Return the file name of a script, by which they also sort."""
    return f"{script.order:02}-{script.name}"


def script_files(scripts: tuple[ScriptEntry, ...]) -> list[dict[str, object]]:
    """Return the entries of ``write_files`` for the scripts and their runner."""
    if not scripts:
        return []
    contents = [(_RUNNER, _RUNNER_TEXT)]
    contents += [(f"{FIRST_BOOT_DIRECTORY}/{script_name(script)}", script.content) for script in scripts]
    return [{"path": path, "content": content, "permissions": "0700"} for path, content in contents]


def script_commands(scripts: tuple[ScriptEntry, ...]) -> list[list[str]]:
    """Return the entries of ``runcmd`` that run the scripts in their order; a failed one doesn't stop the next."""
    return [[_RUNNER, str(script.timeout_s), script_name(script)] for script in scripts]
