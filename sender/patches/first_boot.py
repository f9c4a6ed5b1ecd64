"""Scripts of the first boot: each with a time limit, its exit code and both ends of its output kept on the machine.

cloud-init runs them once for each instance id, so again after a cast with other settings.
"""

from __future__ import annotations

from typing import Final

from sender.patches.limits import SCRIPT_LOG_END_BYTES, SCRIPT_LOG_START_BYTES
from sender.patches.template import ScriptEntry

FIRST_BOOT_DIRECTORY: Final = "/var/lib/diskcast/first-boot"
"""Scripts; beside each, NAME.exit has its exit code and NAME.log its output."""
_RUNNER: Final = f"{FIRST_BOOT_DIRECTORY}/run"
_LAST_OUTPUT_S: Final = 5
"""Limit of the wait for output that is still in the pipe when a script has ended."""

# A full pipe must not stop the script, and more output than the limit must not fill the disk: the middle is read and
# discarded. A process that the script leaves running keeps the pipe open: its output isn't waited for. Code 124 means
# that the time was over (timeout(1)); 137, that the script had to be killed.
_RUNNER_TEXT: Final = f"""#!/bin/sh
# Run one script of the first boot: run SECONDS NAME
cd {FIRST_BOOT_DIRECTORY} || exit 1
umask 077
rm -f "$2.exit" "$2.log" "$2.pipe"
mkfifo "$2.pipe" || exit 1
{{ stdbuf -o0 head -c {SCRIPT_LOG_START_BYTES}; exec tail -c {SCRIPT_LOG_END_BYTES}; }} <"$2.pipe" >"$2.log" &
timeout -k 10 "$1" "./$2" </dev/null >"$2.pipe" 2>&1
code=$?
rm "$2.pipe"
timeout {_LAST_OUTPUT_S} tail --pid=$! -s 0.1 -f /dev/null
echo "$code" >"$2.exit"
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
