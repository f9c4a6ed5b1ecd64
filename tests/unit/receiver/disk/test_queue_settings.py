"""Queue settings of a disk while it is written: on the whole disk, restored afterwards, and never an obstacle."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.disk.inventory.sysfs import DiscardUnit, discard_unit
from receiver.disk.queue_settings import CACHE_SHARE_PERCENT, tuned_queue
from receiver.disk.target import Target


@dataclasses.dataclass
class _Device(Target):
    """A target with a device number; nothing is written to it."""

    fd: int
    is_device: bool = True


@pytest.fixture
def device() -> Iterator[_Device]:
    fd = os.open("/dev/null", os.O_RDONLY)
    yield _Device(fd)
    os.close(fd)


def _sysfs(
    root: Path,
    *,
    scheduler: str = "[mq-deadline] kyber none",
    rotational: str = "0",
    ratio: str = "100",
    partition: bool = False,
) -> Path:
    """Create a disk's folder; /sys/dev/block/1:3 (the number of /dev/null) leads to it or to its first partition."""
    disk = root / "devices" / "pci0" / "sda"
    for name, text in {
        "queue/scheduler": scheduler,
        "queue/rotational": rotational,
        "queue/nr_requests": "64",
        "queue/discard_granularity": "4096",
        "queue/discard_max_bytes": "2147450880",
        "bdi/max_ratio": ratio,
        "discard_alignment": "0",
        "sda1/partition": "1",
        "sda1/discard_alignment": "512",
    }.items():
        path = disk / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (root / "dev" / "block").mkdir(parents=True)
    (root / "dev" / "block" / "1:3").symlink_to(disk / "sda1" if partition else disk)
    return disk


@pytest.mark.parametrize(
    ("scheduler", "rotational", "expected"),
    [
        ("[mq-deadline] kyber none", "0", "none"),
        ("[none] mq-deadline kyber", "1", "mq-deadline"),
        ("[none] mq-deadline", "0", None),
        ("none [mq-deadline]", "1", None),
        ("[none]", "1", None),
        ("none", "0", None),
        ("", "0", None),
        ("[bfq] mq-deadline none", "?", None),
    ],
)
@pytest.mark.parametrize("partition", [False, True])
def test_the_disk_gets_the_scheduler_that_suits_it(
    tmp_path: Path, device: _Device, scheduler: str, rotational: str, expected: str | None, partition: bool
) -> None:
    disk = _sysfs(tmp_path, scheduler=scheduler, rotational=rotational, partition=partition)
    path = disk / "queue" / "scheduler"
    with tuned_queue(device, sysfs=tmp_path) as tuning:
        assert path.read_text().strip() == (expected or scheduler)
        assert list(tuning.changed) == ([path] if expected else [])
        if expected:
            path.write_text(f"bfq [{expected}]\n")  # the format in which the kernel shows its choice
    assert tuning.failures == []
    assert (disk / "bdi" / "max_ratio").read_text() == "100\n"
    if expected:
        assert path.read_text() == scheduler.partition("[")[2].partition("]")[0]


def test_settings_are_set_back_after_a_failure(tmp_path: Path, device: _Device) -> None:
    disk = _sysfs(tmp_path)

    def fail_while_it_is_written() -> None:
        with tuned_queue(device, page_cache=True, sysfs=tmp_path):
            assert (disk / "bdi" / "max_ratio").read_text() == str(CACHE_SHARE_PERCENT)
            (disk / "queue" / "scheduler").write_text("mq-deadline kyber [none]\n")
            (disk / "queue" / "nr_requests").write_text(
                "256\n"
            )  # a default, as every change of scheduler sets it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_while_it_is_written()
    assert (disk / "bdi" / "max_ratio").read_text() == "100"
    assert (disk / "queue" / "scheduler").read_text() == "mq-deadline"
    assert (disk / "queue" / "nr_requests").read_text() == "64\n"


def test_a_setting_changed_by_another_program_stays(tmp_path: Path, device: _Device) -> None:
    disk = _sysfs(tmp_path)
    with tuned_queue(device, page_cache=True, sysfs=tmp_path):
        (disk / "queue" / "scheduler").write_text("mq-deadline [kyber] none\n")
        (disk / "bdi" / "max_ratio").write_text("50\n")
    assert (disk / "queue" / "scheduler").read_text() == "mq-deadline [kyber] none\n"
    assert (disk / "bdi" / "max_ratio").read_text() == "50\n"


def test_a_tighter_bound_on_the_cache_is_kept(tmp_path: Path, device: _Device) -> None:
    disk = _sysfs(tmp_path, ratio="5")
    with tuned_queue(device, page_cache=True, sysfs=tmp_path):
        assert (disk / "bdi" / "max_ratio").read_text() == "5\n"


def test_a_kernel_that_shows_no_settings_is_no_obstacle(tmp_path: Path, device: _Device) -> None:
    """In a container /sys may be missing: the disk is written anyway."""
    with tuned_queue(device, page_cache=True, sysfs=tmp_path) as tuning:
        assert tuning.changed == {}
    assert tuning.failures


def test_settings_that_can_t_be_changed_are_no_obstacle(
    tmp_path: Path, device: _Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container /sys may be read-only."""

    def refuse(path: Path, _text: str) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    _sysfs(tmp_path)
    monkeypatch.setattr(Path, "write_text", refuse)
    with tuned_queue(device, page_cache=True, sysfs=tmp_path) as tuning:
        assert tuning.changed == {}
    assert len(tuning.failures) == 2


def test_a_disk_that_is_unplugged_while_written_is_no_error(tmp_path: Path, device: _Device) -> None:
    disk = _sysfs(tmp_path)
    with tuned_queue(device, page_cache=True, sysfs=tmp_path) as tuning:
        for path in (
            disk / "queue" / "scheduler",
            disk / "bdi" / "max_ratio",
            disk / "queue" / "nr_requests",
        ):
            path.unlink()
    assert len(tuning.failures) == 2


def test_a_file_has_no_settings(tmp_path: Path, device: _Device) -> None:
    disk = _sysfs(tmp_path)
    device.is_device = False
    with tuned_queue(device, page_cache=True, sysfs=tmp_path) as tuning:
        assert (disk / "queue" / "scheduler").read_text() == "[mq-deadline] kyber none\n"
    assert tuning.failures == []


def test_a_partition_discards_in_its_disk_s_units(tmp_path: Path, device: _Device) -> None:
    """A partly covered unit isn't discarded by the device; a unit that reaches beyond the range must not be."""
    number = os.fstat(device.fd).st_rdev
    assert discard_unit(number, tmp_path) == DiscardUnit(0)
    disk = _sysfs(tmp_path, partition=True)
    assert discard_unit(number, tmp_path) == DiscardUnit(4096, 512)
    (disk / "queue" / "discard_max_bytes").write_text("0\n")
    assert discard_unit(number, tmp_path) == DiscardUnit(0)
