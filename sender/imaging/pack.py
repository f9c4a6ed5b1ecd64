"""Pack a disk into an image, through a bounded pipeline of threads.

Each worker takes a span of the disk through all steps while it is in the CPU's cache: read, test for zeros, zstd,
BLAKE3. The caller's thread writes the spans in order, so the image doesn't depend on the number of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from protocol.constants import BLOCK_BYTES_DEFAULT
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.disk.seed_partition import plan_seed_partition
from protocol.errors import ConfigurationError
from protocol.image.bad_ranges import BadRanges
from protocol.image.block_codec import LEVEL_DEFAULT
from protocol.image.image_format import ImageHeader
from protocol.image.manifest_format import check_block_bytes
from protocol.packing.image_start import ImageStart, default_name
from protocol.packing.ordered_pipeline import ordered_map
from protocol.packing.source import Source
from protocol.packing.source_hash import SourceHash
from protocol.packing.source_identity import identify_source
from protocol.packing.source_use import find_source_use, require_unused
from protocol.packing.span_packer import SpanPacker, packer_job_count
from protocol.packing.used_blocks import NO_UNUSED, AreaUsage, UnusedBlocks, find_unused_blocks
from sender.imaging.acquisition_report import Acquisition
from sender.imaging.foreign.import_limits import ImportLimits
from sender.imaging.foreign.open_source import OpenedSource, open_foreign
from sender.imaging.foreign.sniff import ForeignFormat, sniff_format
from sender.imaging.image_writer import ImageWriter
from sender.imaging.seed.overlay_source import OverlaySource
from sender.imaging.seed.prepare_image import SEED_PARTITION_KEY


@dataclasses.dataclass(frozen=True, slots=True)
class PackOptions:
    """Options of the operator; None for a default that depends on the source or the machine."""

    name: str | None = None
    block_bytes: int = BLOCK_BYTES_DEFAULT
    level: int = LEVEL_DEFAULT
    jobs: int | None = None
    every_byte: bool = False
    """Pack free space too and record the SHA-256 of the whole disk: for evidence, not for deployment."""
    zero_bad_sectors: bool = False
    """Pack bad sectors as zeros and list them, instead of failing; only with ``every_byte``."""
    allow_mounted: bool = False
    """Pack a source although something may write to it."""
    seed_partition: bool = False
    """Add a seed partition for machine patches; the source isn't changed."""
    format: ForeignFormat | None = None
    """Format of the source; None to detect it."""
    limits: ImportLimits = dataclasses.field(default_factory=ImportLimits)


@dataclasses.dataclass(frozen=True, slots=True)
class PackResult:
    """The path and the id of the packed image; its manifest has everything else."""

    path: Path
    image_id: bytes
    duration_s: float
    areas: tuple[AreaUsage, ...]
    """Used space of the source's partitions; empty with ``every_byte``."""
    acquisition: Acquisition | None = None
    """Facts for the acquisition report; only with ``every_byte``."""


def pack_image(
    source_path: Path,
    output_path: Path,
    options: PackOptions,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    on_areas: Callable[[Sequence[AreaUsage]], None] = lambda _: None,
    sign: Callable[[ImageHeader], ImageHeader] = lambda header: header,
    on_import: Callable[[int, int], None] = lambda *_: None,
) -> PackResult:
    """Pack a disk, a file with a disk's content, or another program's image into an image file.

    Another program's image is first unpacked into a file without a name beside the output.

    Blocks that no filesystem uses become UNUSED: they are neither read nor stored, see
    :mod:`protocol.packing.used_blocks`. The same source content, name, level, block size and filesystem tools always
    give the same file; the number of jobs, the source's holes and the time don't matter. Memory doesn't grow with the
    source's size or the jobs: 64 MiB of span buffers, as much of compressed blocks, 160 MiB of encoders; with the
    interpreter below 400 MB.

    Args:
        source_path: a file or a block device that nothing writes to during packing.
        output_path: the image; an existing file is replaced only once the new one is complete and durable.
        options: see :class:`PackOptions`.
        on_progress: called in this thread with the raw bytes done and the total raw bytes.
        on_areas: called in this thread with the used space of each partition, before packing starts; not called with
            ``every_byte``.
        sign: returns the header with a signature; the image appears signed under its final name.
        on_import: called in this thread with the bytes done and the total bytes while a foreign image is unpacked.

    Raises:
        ConfigurationError: an option is out of its range, or the output can't be created.
        SourceInUseError: the source is mounted writable.
        SourceError: the source can't be used or read, or changed during packing.
        ForeignImageError, SandboxUnavailableError, MissingDependencyError: see
            :func:`sender.imaging.foreign.open_source.open_foreign`.
        StorageError: the output's disk is full or failed.
    """
    started_s = time.monotonic()
    started = datetime.datetime.now(datetime.UTC)
    _check_options(options)
    name = default_name(source_path) if options.name is None else options.name
    with contextlib.ExitStack() as stack:
        if _is_same_file(source_path, output_path):
            raise ConfigurationError(f"{output_path} is the source itself: choose another output")
        opened = stack.enter_context(
            open_foreign(
                source_path,
                sniff_format(source_path) if options.format is None else options.format,
                output_path.absolute().parent,
                options.limits,
                on_import,
            )
        )
        source, number = opened.source, None
        use = find_source_use(source_path, source.status)
        if not options.allow_mounted:
            require_unused(source_path, use)
        if options.seed_partition:
            source, number = _with_seed_partition(stack, source, options.block_bytes)
        extra: dict[str, object] = {} if number is None else {SEED_PARTITION_KEY: number}
        if opened.provenance is not None:
            extra["provenance"] = opened.provenance.to_metadata()
        if options.zero_bad_sectors:
            source.zero_bad_sectors()
            extra["bad_ranges"] = BadRanges.of(()).encode()  # a placeholder of the same length
        start = ImageStart.of(source, name, options.block_bytes, every_byte=options.every_byte, extra=extra)
        jobs = packer_job_count(options.jobs, level=options.level, block_bytes=options.block_bytes)
        writer = stack.enter_context(ImageWriter(output_path, start.manifest_start, start.manifest_layout))
        unused = NO_UNUSED
        if not options.every_byte:
            unused = _find_unused(source, opened, start, options.block_bytes, may_change=use.may_change)
            on_areas(unused.areas)
        source_hash = SourceHash() if options.every_byte else None
        packer = SpanPacker(
            source,
            unused.ranges,
            block_bytes=options.block_bytes,
            level=options.level,
            every_byte=options.every_byte,
        )
        # Entered last and therefore left first: no worker reads the source after it is closed.
        packed_spans = stack.enter_context(
            contextlib.closing(ordered_map(packer.work, packer.spans(), jobs=jobs))
        )
        for packed in packed_spans:
            writer.append_payload(packed.payload)
            writer.write_rows(
                packed.span.first_block, packed.kind, packed.stored_bytes, packed.stored_hash, packed.raw_hash
            )
            raw_start, raw_stop = packer.raw_range(packed.span)
            if source_hash is not None:
                source_hash.add(packed.raw)
                source_hash.add_zeros(raw_stop - raw_start - len(packed.raw))  # 0 unless the span is a hole
            if packed.span.empty_kind is None:
                source.forget(raw_start, raw_stop - raw_start)
            on_progress(raw_stop, source.raw_bytes)
        source.check_unchanged()
        manifest_start, acquisition = None, None
        if source_hash is not None:
            bad_ranges = source.recovery.bad_ranges
            found = {"bad_ranges": BadRanges.of(bad_ranges).encode()} if options.zero_bad_sectors else {}
            manifest_start = start.with_digest(source_hash.digest(), found)
            acquisition = Acquisition(
                identify_source(source),
                started,
                datetime.datetime.now(datetime.UTC),
                source_hash.digest(),
                tuple(bad_ranges),
                source.recovery.retried_count,
            )
        image_id = writer.commit(manifest_start, sign)
    return PackResult(writer.path, image_id, time.monotonic() - started_s, unused.areas, acquisition)


def _check_options(options: PackOptions) -> None:
    check_block_bytes(options.block_bytes)
    if options.zero_bad_sectors and not options.every_byte:
        raise ConfigurationError(
            "--zero-bad-sectors is for evidence and needs --every-byte: an image with holes in its files must not be "
            "deployed"
        )
    if options.seed_partition and options.every_byte:
        raise ConfigurationError(
            "--every-byte is for evidence, which a seed partition would change: leave out --seed-partition"
        )


def _find_unused(
    source: Source, opened: OpenedSource, start: ImageStart, block_bytes: int, *, may_change: bool
) -> UnusedBlocks:
    """Return the blocks that no filesystem uses, and those that a foreign image knows to be free."""
    unused = find_unused_blocks(source, start.disk_layout, block_bytes, may_change=may_change)
    if opened.unused is None:
        return unused
    return unused.with_free_ranges(opened.unused, block_bytes, opened.source.raw_bytes)


def _with_seed_partition(stack: contextlib.ExitStack, source: Source, block_bytes: int) -> tuple[Source, int]:
    """Return a view of the source with a seed partition, and the partition's number."""
    layout = parse_layout_untrusted(source.read, source.raw_bytes, sector_bytes=source.logical_sector_bytes)
    try:
        plan = plan_seed_partition(source.read, source.raw_bytes, layout, block_bytes)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source.path}: {error}") from error
    return stack.enter_context(OverlaySource.over(source, plan.disk_bytes, plan.writes)), plan.number


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one of them doesn't exist
        return False
