"""The source of machine patches of a cast, from which each joining machine gets its own."""

from __future__ import annotations

from typing import Protocol

from protocol.model.session_records import JoinRequest


class MachinePatches(Protocol):
    """The patches of a cast's machines: of a folder, or of a daemon's rooms."""

    async def find(self, request: JoinRequest) -> bytes | None:
        """Return the id of the joining machine's patch; None to cast the image alone.

        Raises:
            JoinRefusedError: the machine needs a patch, and there is none.
        """

    async def read(self, patch_id: bytes) -> bytes:
        """Return a patch that :meth:`find` has named.

        Raises:
            DiskcastError: it can't be read.
        """

    async def signed_set(self) -> bytes:
        """Return the signed set of all patches; empty if there is none.

        Raises:
            DiskcastError: it can't be read.
        """


class NoPatches:
    """The patches of a cast that gives every machine the image alone."""

    async def find(self, _request: JoinRequest) -> bytes | None:
        """Return None."""
        return None

    async def read(self, patch_id: bytes) -> bytes:
        """Never called: nothing was named."""
        raise LookupError(patch_id.hex())

    async def signed_set(self) -> bytes:
        """Return nothing."""
        return b""
