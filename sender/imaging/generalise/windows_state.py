"""The state that Windows's Sysprep left in an image; diskcast only reports it."""

from __future__ import annotations

import codecs
import dataclasses
import re
from typing import Final

from protocol.constants import KIB
from protocol.program.system_tools import ToolError, find_tool
from sender.imaging.editing.partition_copy import PartitionCopy

NTFSCAT: Final = "ntfscat"
_STATE_FILE: Final = "Windows/Setup/State/State.ini"
_KERNEL_FILE: Final = "Windows/System32/ntoskrnl.exe"
_MISSING: Final = "Couldn't open inode: No such file or directory"
_STATE_BYTES_MAX: Final = 64 * KIB
_STATE_KEY: Final = re.compile(r"^\s*ImageState\s*=\s*([A-Z_]{1,64})\s*$", re.MULTILINE)
_GENERALISED: Final = frozenset(
    {"IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE", "IMAGE_STATE_GENERALIZE_RESEAL_TO_AUDIT"}
)
"""States in which Windows makes new identifiers at the next boot (Microsoft's "Windows Setup States")."""


@dataclasses.dataclass(frozen=True, slots=True)
class WindowsState:
    """State of one installation.

    Attributes:
        image_state: value of ``ImageState``; empty if the file has none.
    """

    image_state: str

    @property
    def generalised(self) -> bool:
        """True if Sysprep generalised it, and it hasn't been started since."""
        return self.image_state in _GENERALISED

    @property
    def problem(self) -> str:
        """The missing step, and the fix."""
        state = self.image_state or "unknown"
        return (
            f"Windows isn't generalised (ImageState {state}): run `sysprep /generalize /oobe /shutdown` on the "
            "reference machine, and image it again without starting it"
        )


def parse_state_untrusted(data: bytes) -> WindowsState:
    """Return the state in the text of ``State.ini``."""
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    found = _STATE_KEY.search(data.decode(encoding, "replace").replace("\r", ""))
    return WindowsState(found[1] if found else "")


def read_windows_state(copy: PartitionCopy) -> WindowsState | None:
    """Return the state of Windows in an NTFS filesystem; None if it has no Windows.

    Raises:
        ToolError: ntfscat is missing, or can't read the filesystem; the message is the reason.
        SandboxUnavailableError: this kernel can't confine it.
    """
    if find_tool(NTFSCAT) is None:
        raise ToolError(f"{NTFSCAT} isn't installed: install ntfs-3g")
    state = _read(copy, _STATE_FILE)
    if state is not None:
        return parse_state_untrusted(state)
    return None if _read(copy, _KERNEL_FILE) is None else WindowsState("")


def _read(copy: PartitionCopy, path: str) -> bytes | None:
    """Return the start of a file; None if there is none."""
    data = bytearray()
    output = copy.reader(NTFSCAT, "-f", copy.path, path).output()
    try:
        for piece in output:
            data += piece
            if len(data) >= _STATE_BYTES_MAX:
                break
    except ToolError as error:
        if _MISSING in str(error):
            return None
        raise
    finally:
        output.close()
    return bytes(data[:_STATE_BYTES_MAX])
