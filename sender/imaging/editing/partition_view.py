"""A writable copy of one partition of an image, of which only the blocks exist that somebody accesses.

The copy is a file without a name that starts as a hole. A tool of the sandbox edits it as any filesystem in a file;
:mod:`protocol.program.file_watch` stops the tool at each access, and the view reads the image's blocks there, each
checked against its hashes. So an edit of an image of 20 GB decodes a few MiB, needs no privilege, and leaves the image
as it is. The result is the set of blocks that have other bytes than in the image::

    with PartitionView(VerifiedBlocks(image), partition.start_bytes, partition.size_bytes) as view:
        view.run("debugfs", "-w", "-R", "rm /etc/machine-id", view.path)
        changed = view.changed_blocks()

Use a view in one thread.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from protocol.constants import GIB, MIB
from protocol.errors import ConfigurationError, StorageError
from protocol.image.block_codec import block_hash, zero_hash
from protocol.image.manifest import BlockKind
from protocol.program.file_watch import WatchedFile
from protocol.program.sandbox import ForeignTool
from protocol.shared.units import format_bytes
from sender.imaging.verified_blocks import VerifiedBlocks

LOADED_BYTES_MAX: Final = 2 * GIB
"""Content of a view: the metadata of a filesystem of 100 GB. A crafted one can't make a tool unpack the whole image."""

OUTPUT_BYTES_MAX: Final = MIB
"""Reports of tools that edit a filesystem."""

TIME_LIMIT_S: Final = 300.0
"""An edit reads some metadata: seconds. The decoding of as many blocks as a view may have takes a minute."""


class PartitionView:
    """The copy of one partition; it disappears when the context is left."""

    def __init__(
        self,
        blocks: VerifiedBlocks,
        start_bytes: int,
        size_bytes: int,
        *,
        directory: Path | None = None,
        loaded_bytes_max: int = LOADED_BYTES_MAX,
    ) -> None:
        """Create the file.

        Args:
            blocks: reader of the image, which stays open.
            start_bytes: start of the partition.
            size_bytes: its size.
            directory: a folder with space for the accessed blocks; by default the one for temporary files.
            loaded_bytes_max: most content that is taken from the image.

        Raises:
            ConfigurationError: no file can be created there.
        """
        self._blocks = blocks
        self._start_bytes = start_bytes
        self.size_bytes = size_bytes
        self._loaded: set[int] = set()
        self._loaded_bytes_max = loaded_bytes_max
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  closed by __exit__
            os.ftruncate(self._file.fileno(), size_bytes)
        except OSError as error:
            raise ConfigurationError(
                f"can't write in {directory or tempfile.gettempdir()}: {error.strerror}; choose another folder"
            ) from error

    @property
    def fd(self) -> int:
        """The descriptor; parts of the file that weren't accessed yet are holes."""
        return self._file.fileno()

    @property
    def path(self) -> str:
        """The name under which a tool of :meth:`run` opens the copy."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def loaded_block_count(self) -> int:
        """Blocks that somebody accessed."""
        return len(self._loaded)

    def run(
        self,
        *arguments: str,
        reads: Sequence[int] = (),
        writes: Sequence[int] = (),
        read_paths: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
        output_bytes_max: int = OUTPUT_BYTES_MAX,
    ) -> bytes:
        """Run a tool on the copy, in the sandbox, and return its output.

        Args:
            arguments: name of the program, and its arguments; one of them is :attr:`path`.
            reads: descriptors of further files that it opens for reading, as ``/proc/self/fd/N``.
            writes: descriptors of further files without a name that it opens for writing.
            read_paths: files and folders of the system that it reads besides.
            environment: variables beside those of every tool.
            output_bytes_max: longest output, which is held in memory.

        Raises:
            SandboxUnavailableError: this machine can't confine the tool.
            ToolError: the tool is missing, failed, hung or wrote too much.
            ImageDamagedError, ImageChangedError, StorageError: as :meth:`load`.
        """
        tool = ForeignTool(
            arguments,
            reads=reads,
            writes=(self.fd, *writes),
            watched=(WatchedFile(self.fd, self.load),),
            read_paths=read_paths,
            environment=environment,
            written_bytes_max=self.size_bytes,
            time_limit_s=TIME_LIMIT_S,
        )
        return tool.run(output_bytes_max)

    def load(self, offset: int, length: int) -> None:
        """Take the blocks of a range from the image, unless they are there already.

        Raises:
            ImageDamagedError, ImageChangedError: a block can't be read.
            StorageError: a disk failed or is full, or more of the image would be needed than a view may have.
        """
        block_bytes = self._blocks.image.manifest.block_bytes
        stop = min(offset + length, self.size_bytes)
        if offset >= stop:
            return
        first, last = (
            (self._start_bytes + offset) // block_bytes,
            (self._start_bytes + stop - 1) // block_bytes,
        )
        for block in range(first, last + 1):
            if block not in self._loaded:
                self._load(block)

    def read(self, offset: int, length: int) -> bytes:
        """Return a range of the copy, shorter at its end; errors as :meth:`load`."""
        self.load(offset, length)
        return os.pread(self.fd, max(0, min(length, self.size_bytes - offset)), offset)

    def changed_blocks(self) -> dict[int, bytes]:
        """Return the raw bytes of the image's blocks that differ from it; errors as :meth:`load`.

        A block that the image leaves out as unused counts as zeros.
        """
        manifest = self._blocks.image.manifest
        changed = {}
        for block in sorted(self._loaded):
            content = self._content(block)
            expected = (
                zero_hash(len(content))
                if manifest.kind[block] == BlockKind.UNUSED
                else manifest.raw_hash[block].tobytes()
            )
            if block_hash(content) != expected:
                changed[block] = content
        return changed

    def _load(self, block: int) -> None:
        raw = self._blocks.read(block)
        start, piece_start, piece_stop = self._place(block)
        # Zeros are there as a hole; the bound is on memory and space.
        if self._blocks.image.manifest.stored_bytes[block]:
            if (len(self._loaded) + 1) * len(raw) > self._loaded_bytes_max:
                raise StorageError(
                    f"the edit reads more than {format_bytes(self._loaded_bytes_max)} of the image: its filesystem is "
                    "damaged, or too large for such an edit"
                )
            try:
                view = memoryview(raw)[piece_start:piece_stop]
                while view:
                    count = os.pwrite(self.fd, view, start)
                    view, start = view[count:], start + count
            except OSError as error:
                raise StorageError(
                    f"can't write a temporary file: {error.strerror}; free some space"
                ) from error
        self._loaded.add(block)

    def _place(self, block: int) -> tuple[int, int, int]:
        """Return the offset of a block's part in the copy, and that part's range in the block."""
        manifest = self._blocks.image.manifest
        block_start = block * manifest.block_bytes
        low = max(self._start_bytes - block_start, 0)
        high = min(manifest.raw_length(block), self._start_bytes + self.size_bytes - block_start)
        return block_start + low - self._start_bytes, low, high

    def _content(self, block: int) -> bytes:
        start, low, high = self._place(block)
        content = os.pread(self.fd, high - low, start)
        length = self._blocks.image.manifest.raw_length(block)
        if len(content) == length:
            return content
        raw = bytes(self._blocks.read(block))  # the partition's border is within the block
        return raw[:low] + content + raw[high:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
