"""Cut the power at every flush of a run and between all its writes: ``python -m tests.soak.power_cut``.

Like tests/e2e/test_power_cut.py, but with every prefix of the writes after a flush, many more torn and reordered
writes, and agents instead of restores for some of the next runs. Needs root; exit code 1 if a target doesn't survive.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from tests.bench.terminal import run_command
from tests.support.disks.bootable_disk import make_bootable_disk
from tests.support.disks.power_cuts import (
    Recording,
    SmallImage,
    make_small_image,
    record_cast,
    record_restore,
    with_changed_blocks,
)

_Record = Callable[..., Recording]


@click.command()
@click.option("--seed", type=int, help="to repeat a run; drawn and shown otherwise")
@click.option("--torn", "torn_count", default=20, show_default=True, help="torn writes between two flushes")
@click.option("--reordered", "reordered_count", default=40, show_default=True, help="parts kept between two")
@click.option(
    "--casts", "cast_count", default=10, show_default=True, help="next runs by a cast, each recording"
)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="for image and targets")
def main(
    seed: int | None, torn_count: int, reordered_count: int, cast_count: int, directory: Path | None
) -> None:
    """Cut the power at every point of a run."""
    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    click.echo(f"seed {seed}", err=True)
    rng = random.Random(seed)
    totals = {"flushes": 0, "cuts": 0, "casts": 0}
    faults: list[str] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="diskcast-cut-") as name:
        folder = Path(name)
        image = make_small_image(folder, rng.getrandbits(32))
        other_disk = make_bootable_disk(folder / "other.raw", rng.getrandbits(32))
        for title, recording in _recordings(folder, image, other_disk, rng):
            cuts = recording.cuts
            chosen = [
                *cuts.at_flushes(),
                *cuts.suffixes_dropped(),
                *cuts.torn(rng, torn_count),
                *cuts.reordered(rng, reordered_count),
            ]
            found = recording.judge(chosen, folder)
            by_cast = rng.sample(chosen, min(cast_count, len(chosen)))
            found += recording.judge_by_cast(by_cast, folder)
            totals["flushes"] += cuts.flush_count
            totals["cuts"] += len(chosen)
            totals["casts"] += len(by_cast)
            faults += [f"{title}: {one}" for one in found]
            click.echo(
                f"{title}: {cuts.flush_count} flushes, {cuts.entry_count} writes, {len(chosen)} cuts, "
                f"{len(by_cast)} of them by a cast as well: "
                + (f"{len(found)} not survived" if found else "all survived"),
                err=True,
            )
            for one in found[:5]:
                click.echo(f"    {one}", err=True)
    click.echo(json.dumps({"event": "result", "ok": not faults, "seed": seed, **totals, "faults": faults}))
    if faults:
        raise click.exceptions.Exit(1)


def _recordings(
    folder: Path, image: SmallImage, other_disk: bytes, rng: random.Random
) -> list[tuple[str, Recording]]:
    changed = with_changed_blocks(image.raw, sorted(rng.sample(range(80), 6)), rng.getrandbits(32))
    recorders: dict[str, _Record] = {"restore": record_restore, "cast": record_cast}
    bases = {"another system": other_disk, "last week's image": changed, "a new file": b""}
    recordings = []
    for program, record in recorders.items():
        for base_title, base in bases.items():
            for is_device in (True, False) if base else (False,):
                title = f"{program} over {base_title} on a {'device' if is_device else 'file'}"
                run_folder = folder / title.replace(" ", "-")
                run_folder.mkdir()
                recordings.append((title, record(run_folder, image, base, is_device=is_device)))
    return recordings


if __name__ == "__main__":
    run_command(main)
