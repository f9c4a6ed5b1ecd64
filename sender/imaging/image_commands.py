"""The commands ``pack``, ``inspect``, ``verify`` and ``unpack``."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from protocol.constants import BLOCK_BYTES_DEFAULT, HASH_BYTES
from protocol.disk.disk_layout import layout_of
from protocol.disk.partition_table import TableKind
from protocol.errors import UnsignedImageError
from protocol.image.bad_ranges import BadRanges
from protocol.image.block_codec import LEVEL_DEFAULT, LEVEL_MAX, LEVEL_MIN
from protocol.image.image_format import ImageHeader
from protocol.image.manifest import Manifest
from protocol.image.manifest_format import FORMAT_VERSION
from protocol.image.provenance import provenance_of
from protocol.packing.image_start import default_name
from protocol.packing.source_hash import source_sha256_of
from protocol.packing.used_blocks import AreaUsage
from protocol.program.command_line import sigterm_as_interrupt
from protocol.program.options import WholeNumber
from protocol.shared.units import format_bytes, format_duration, parse_size_bytes
from sender.identity.key_options import signing_key_options
from sender.identity.signing_keys import AskPassphrase, default_key_path, ensure_signing_key
from sender.imaging.acquisition_report import AcquisitionReport, write_acquisition_report
from sender.imaging.contents.generalisation import GENERALISED_KEY
from sender.imaging.foreign.import_limits import RAW_BYTES_MAX_DEFAULT, ImportLimits
from sender.imaging.foreign.sniff import ForeignFormat
from sender.imaging.image_file import ImageFile
from sender.imaging.image_progress import emit, show_phases, show_progress
from sender.imaging.image_signature import ImageSignature, SignatureState
from sender.imaging.image_verify import BadBlock, verify_image
from sender.imaging.pack import PackOptions, pack_image
from sender.imaging.statement_fields import StatementFields, sign_statement, statement_options

_json_option = click.option(
    "--json", "json_lines", is_flag=True, help="Print one JSON object per line to stdout."
)
_path = click.Path(path_type=Path)
_jobs_option = click.option(
    "--jobs", type=WholeNumber(), show_default="number of CPUs", metavar="N", help="Number of worker threads."
)


@click.command()
@click.argument("source", type=_path)
@click.option("-o", "--output", type=_path, required=True, metavar="FILE.dci", help="Image file to write.")
@click.option("--name", metavar="NAME", show_default="file name of SOURCE", help="Name of the image.")
@click.option(
    "--block-size",
    default=f"{BLOCK_BYTES_DEFAULT >> 10}KiB",
    show_default=True,
    metavar="SIZE",
    help="Block size: a power of two from 64KiB to 4MiB.",
)
@click.option(
    "--level",
    type=WholeNumber(),
    default=LEVEL_DEFAULT,
    show_default=True,
    help=f"zstd compression level, {LEVEL_MIN} (fastest) to {LEVEL_MAX} (smallest).",
)
@click.option(
    "--every-byte",
    is_flag=True,
    help="Pack free space too, and record the SHA-256 of the disk.",
)
@click.option(
    "--zero-bad-sectors",
    is_flag=True,
    help="With --every-byte: pack unreadable sectors as zeros, list them.",
)
@click.option(
    "--allow-mounted",
    is_flag=True,
    help="Pack a mounted, writable source; its files may be inconsistent.",
)
@click.option(
    "--seed-partition",
    is_flag=True,
    help="Add a partition for settings of single machines.",
)
@click.option(
    "--format",
    "source_format",
    type=click.Choice([member.value for member in ForeignFormat]),
    show_default="detected",
    help="Format of SOURCE.",
)
@click.option(
    "--max-size",
    default=f"{RAW_BYTES_MAX_DEFAULT >> 40}TiB",
    show_default=True,
    metavar="SIZE",
    help="Largest disk that a foreign image may describe.",
)
@click.option(
    "--allow-unsandboxed",
    is_flag=True,
    help="Read foreign images without Landlock; trusted images only.",
)
@statement_options
@signing_key_options
@click.option("--no-sign", is_flag=True, help="Don't sign the image.")
@_jobs_option
@_json_option
def pack(
    source: Path,
    output: Path,
    name: str | None,
    block_size: str,
    level: int,
    jobs: int | None,
    fields: StatementFields,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
    *,
    every_byte: bool,
    zero_bad_sectors: bool,
    allow_mounted: bool,
    seed_partition: bool,
    source_format: str | None,
    max_size: str,
    allow_unsandboxed: bool,
    no_sign: bool,
    json_lines: bool,
) -> None:
    """Pack SOURCE, a disk, a file with a disk's content or another program's image, into an image, and sign it.

    Unmount SOURCE first, or mount it read-only: nothing may write to it during packing. Free space is skipped in
    filesystems whose tools are installed (see `diskcast doctor`). The same content and options always give the same
    image id, and with the same --image-version the same file. FILE.dci appears only when it is complete. The first
    image makes your signing key. With --every-byte an acquisition report is written beside it, signed by the same key.

    \b
    Examples:
      diskcast pack /dev/sda -o lab.dci
      diskcast pack golden.raw -o lab.dci --name "Lab 2026" --level 9
      diskcast pack /dev/sda -o lab.dci --seed-partition --patches daemon
      diskcast pack /dev/sdb -o evidence.dci --every-byte --json
    """  # noqa: D301  click needs the backspace
    options = PackOptions(
        name=name,
        block_bytes=parse_size_bytes(block_size),
        level=level,
        jobs=jobs,
        every_byte=every_byte,
        zero_bad_sectors=zero_bad_sectors,
        allow_mounted=allow_mounted,
        seed_partition=seed_partition,
        format=None if source_format is None else ForeignFormat(source_format),
        limits=ImportLimits(parse_size_bytes(max_size), allow_unsandboxed),
    )

    def show_areas(areas: Sequence[AreaUsage]) -> None:
        for area in areas:
            if json_lines:
                emit("filesystem", **area.to_json())
            else:
                click.echo(str(area))

    key, key_is_new = (None, False) if no_sign else ensure_signing_key(key_path, ask_passphrase)

    def sign(header: ImageHeader) -> ImageHeader:
        if key is None:
            return header
        statement = fields.statement(header.image_id, packed_name, datetime.datetime.now(datetime.UTC))
        return header.with_signature(sign_statement(statement, key), key.public)

    packed_name = default_name(source) if name is None else name
    if key is not None:
        fields.statement(
            bytes(HASH_BYTES), packed_name, datetime.datetime.now(datetime.UTC)
        )  # fails before packing
    with sigterm_as_interrupt(), show_phases(json_lines=json_lines) as updates:
        result = pack_image(
            source, output, options, updates("packing"), show_areas, sign, on_import=updates("unpacking")
        )
    reports: list[Path] = []
    if result.acquisition is not None:
        report = AcquisitionReport(result.acquisition, result.path, result.image_id, packed_name)
        reports = write_acquisition_report(report, key)
    with ImageFile.open(result.path) as image:
        if json_lines:
            areas = [area.to_json() for area in result.areas]
            emit(
                "result",
                ok=True,
                **describe(image),
                filesystems=areas,
                duration_s=round(result.duration_s, 3),
                signing_key_created=key_is_new,
                acquisition_reports=[str(path) for path in reports],
            )
        else:
            click.echo(description_text(image))
            rate = format_bytes(image.manifest.raw_bytes / result.duration_s)
            click.echo(f"packed in  {format_duration(result.duration_s)}, {rate}/s")
            for path in reports:
                click.echo(f"report     {path}")
            if key_is_new and key is not None:
                click.echo(
                    f"new key    {default_key_path()}: back it up. Agents trust it with --trust-key {key.public.text}"
                )


@click.command()
@click.argument("image_path", metavar="FILE.dci", type=_path)
@_json_option
def inspect(image_path: Path, *, json_lines: bool) -> None:
    """Show an image's metadata: name, id, sizes, kinds of blocks, ratio, signature.

    \b
    Examples:
      diskcast inspect lab.dci
      diskcast inspect lab.dci --json
    """  # noqa: D301
    with ImageFile.open(image_path) as image:
        if json_lines:
            emit("result", ok=True, **describe(image))
        else:
            click.echo(description_text(image))


@click.command()
@click.argument("image_path", metavar="FILE.dci", type=_path)
@click.option("--against", type=_path, metavar="TARGET", help="Disk or file to compare with the image.")
@_jobs_option
@_json_option
def verify(image_path: Path, against: Path | None, jobs: int | None, *, json_lines: bool) -> None:
    """Check every byte of an image and its signature, or compare a disk with it, and name the blocks that differ.

    \b
    Examples:
      diskcast verify lab.dci
      diskcast verify lab.dci --against /dev/sdb
      diskcast verify lab.dci --json
    """  # noqa: D301
    if against is not None:
        run_agent("compare", image_path, against, json_lines=json_lines)
    started_s = time.monotonic()

    def show_bad_block(bad: BadBlock) -> None:
        if json_lines:
            emit(
                "bad_block",
                block=bad.block,
                raw_offset=bad.raw_offset,
                file_offset=bad.file_offset,
                reason=bad.reason,
            )

    with ImageFile.open(image_path) as image:
        with show_progress("verifying", json_lines=json_lines) as update:
            report = verify_image(image, jobs=jobs, on_progress=update, on_bad_block=show_bad_block)
        report.raise_if_bad(image)
        signature = ImageSignature.of(image.header)
        if signature.state is SignatureState.INVALID:
            raise UnsignedImageError(f"{image_path}: every block is correct, but {signature.problem}")
        duration_s = time.monotonic() - started_s
        if json_lines:
            emit("result", ok=True, **describe(image), duration_s=round(duration_s, 3))
        else:
            click.echo(
                f"{image_path}: all {report.block_count} blocks are correct ({format_bytes(image.header.file_bytes)} "
                f"read in {format_duration(duration_s)})"
            )
            click.echo("\n".join(signature.lines()))


@click.command(
    context_settings={"ignore_unknown_options": True},
)
@click.argument("image_path", metavar="FILE.dci", type=_path)
@click.argument("target")
@click.argument("options", metavar="[OPTIONS OF restore]...", nargs=-1, type=click.UNPROCESSED)
@_json_option
def unpack(image_path: Path, target: str, options: tuple[str, ...], *, json_lines: bool) -> None:
    """Write an image to TARGET, a disk or a file, without a network, and verify the result.

    TARGET is a path or a selector such as serial=S1. Options of `diskcast-agent restore` may follow it: --full,
    --dry-run, --grow, --partition N, --efi-entry LABEL.

    \b
    Examples:
      diskcast unpack lab.dci /dev/sdb
      diskcast unpack lab.dci /dev/sdb --grow
      diskcast unpack lab.dci disk.raw --json
    """  # noqa: D301
    run_agent("restore", image_path, target, *options, json_lines=json_lines)


def agent_arguments(
    command: str, image_path: Path, target: str | Path, *options: str, json_lines: bool
) -> list[str]:
    """Return the command line of the agent, which alone checks, writes and reads back targets."""
    arguments = [
        sys.executable,
        "-m",
        "receiver",
        command,
        str(image_path),
        "--target",
        str(target),
        *options,
    ]
    return [*arguments, "--json"] if json_lines else arguments


def run_agent(
    command: str, image_path: Path, target: str | Path, *options: str, json_lines: bool
) -> NoReturn:
    """Replace this process with the agent; doesn't return."""
    sys.stdout.flush()
    arguments = agent_arguments(command, image_path, target, *options, json_lines=json_lines)
    os.execv(sys.executable, arguments)  # noqa: S606  # without a shell on purpose


def describe(image: ImageFile) -> dict[str, object]:
    """Return the fields that ``inspect --json`` prints."""
    manifest, header = image.manifest, image.header
    return {
        "image": str(image.path),
        "name": manifest.name,
        "image_id": manifest.image_id.hex(),
        "format_version": FORMAT_VERSION,
        "raw_bytes": manifest.raw_bytes,
        "block_bytes": manifest.block_bytes,
        "block_count": manifest.block_count,
        "payload_bytes": header.payload_bytes,
        "manifest_bytes": header.manifest_bytes,
        "file_bytes": header.file_bytes,
        "ratio": round(manifest.raw_bytes / header.file_bytes, 3),
        "kinds": {
            kind.name.lower(): {
                "block_count": summary.block_count,
                "raw_bytes": summary.raw_bytes,
                "stored_bytes": summary.stored_bytes,
            }
            for kind, summary in manifest.summary().items()
        },
        "metadata": _plain(manifest.metadata),
        "signature": ImageSignature.of(header).to_json(),
    }


def _plain(metadata: Mapping[str, object]) -> dict[str, object]:
    """Return metadata with bytes as hexadecimal text and bad ranges as a list, for JSON."""
    plain = {key: value.hex() if isinstance(value, bytes) else value for key, value in metadata.items()}
    if "bad_ranges" in metadata:
        plain["bad_ranges"] = dataclasses.asdict(BadRanges.decode_untrusted(metadata["bad_ranges"]))
    return plain


def description_text(image: ImageFile) -> str:
    """Return the text that ``inspect`` prints."""
    manifest, header = image.manifest, image.header
    ratio = manifest.raw_bytes / header.file_bytes
    lines = [
        f"image      {image.path}",
        f"name       {manifest.name}",
        f"image id   {manifest.image_id.hex()}",
        f"disk       {format_bytes(manifest.raw_bytes)} ({manifest.raw_bytes} bytes)",
        f"file       {format_bytes(header.file_bytes)} ({header.file_bytes} bytes), ratio {ratio:.2f}",
        f"blocks     {manifest.block_count} of {format_bytes(manifest.block_bytes)}",
    ]
    for kind, summary in manifest.summary().items():
        if summary.block_count:
            stored = f", stored in {format_bytes(summary.stored_bytes)}" if summary.stored_bytes else ""
            lines.append(
                f"  {kind.name.lower():<8} {summary.block_count}: {format_bytes(summary.raw_bytes)}{stored}"
            )
    lines += _layout_lines(manifest)
    provenance = provenance_of(manifest.metadata)
    if provenance is not None:
        lines.append(f"source     {provenance}")
    if GENERALISED_KEY in manifest.metadata:
        lines.append(f"content    generalised (list version {manifest.metadata[GENERALISED_KEY]})")
    sha256 = source_sha256_of(manifest)
    if sha256 is not None:
        lines.append(f"sha256     {sha256.hex()} (of the whole disk)")
    if "bad_ranges" in manifest.metadata:
        bad = BadRanges.decode_untrusted(manifest.metadata["bad_ranges"])
        lines.append(
            f"bad        {bad.range_count} unreadable ranges, {bad.total_bytes} bytes, zero in the image"
        )
    lines += [f"format     version {FORMAT_VERSION}", *ImageSignature.of(header).lines()]
    return "\n".join(lines)


def _layout_lines(manifest: Manifest) -> list[str]:
    layout = layout_of(manifest.metadata)
    if layout is None:
        return []
    if layout.table is TableKind.NONE:
        return [f"layout     no partition table, {layout.filesystem or 'no known filesystem'}"]
    lines = [f"layout     {layout.table.upper()}, {len(layout.partitions)} partitions"]
    for part in layout.partitions:
        content = "extended" if part.is_extended else part.filesystem or "unknown"
        name = f", {part.name}" if part.name else ""
        lines.append(f"  {part.number:<8} {content}: {format_bytes(part.size_bytes)}{name}")
    return lines
