"""Every fault that a disk can have while a feature file is written.

See docs/pages/reference/guarantees.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import zlib

import numpy as np
import pytest

from cnnfeat.errors import StorageError
from cnnfeat.features import Disk, FeatureFile, verify_file, writer
from cnnfeat.features.format import Block, BlockNames
from cnnfeat.features.journal import Header, Journal, read_header

SIZES = {"train": 40, "test": 12}
GONE = {"train": {9, 30}}
EVERY = [
    pytest.param(17, id="every 17th"),
    pytest.param(1, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
]


def _record(write, work, disks, tmp_path, *, left_out=None, name="features.h5", **options):
    (tmp_path / "recorded").mkdir(exist_ok=True)
    disk = disks.RecordingDisk()
    source = work.CountingSource(SIZES, bad=left_out)
    write(
        tmp_path / "recorded" / name,
        source=source,
        disk=disk,
        batch_size=8,
        on_error="skip" if left_out else "raise",
        **options,
    )
    return disk.steps


def _go_on(write, check, work, disks, folder, *, left_out=None, overwrite=False):
    """Check what a crash left, resume, and check the outcome; return where reading began."""
    path = folder / "features.h5"
    if path.exists():  # the final name: complete, or not there
        assert verify_file(path).damages == ()
    source = work.CountingSource(SIZES, bad=left_out)
    write(
        path,
        source=source,
        disk=disks.QuickDisk(),
        resume=True,
        overwrite=overwrite,
        batch_size=8,
        on_error="skip" if left_out else "raise",
    )
    check(path, SIZES, left_out=left_out)
    return source.read_rows


@pytest.mark.parametrize("left_out", [None, GONE], ids=["all rows", "samples left out"])
@pytest.mark.parametrize("every", EVERY)
def test_crash_at_every_write_loses_nothing(write, check, work, disks, tmp_path, left_out, every):  # noqa: PLR0917
    steps = _record(write, work, disks, tmp_path, left_out=left_out)
    assert sum(step.kind == "write" for step in steps) > 60
    replay, n_blocks_before = disks.Replay(), 0
    for number, step in enumerate(steps):
        folder = tmp_path / str(number)
        if number % every:
            replay.apply(step)
            continue
        if step.kind == "write" and len(step.data) > 1:  # torn in the middle
            torn = disks.Step("write", step.path, step.data[: len(step.data) // 2], step.offset)
            state = disks.Replay()
            for earlier in [*steps[:number], torn]:
                state.apply(earlier)
            state.save(folder)
            _go_on(write, check, work, disks, folder, left_out=left_out)
            shutil.rmtree(folder)
        replay.apply(step)
        replay.save(folder)
        n_blocks = disks.n_blocks(folder / "features.h5.journal")
        read = _go_on(write, check, work, disks, folder, left_out=left_out)
        if n_blocks is not None:
            assert n_blocks >= n_blocks_before
            n_blocks_before = n_blocks
            assert len(read) == 7 - n_blocks  # no journalled block is computed again
        shutil.rmtree(folder)


@pytest.mark.parametrize("left_out", [None, GONE], ids=["all rows", "samples left out"])
@pytest.mark.parametrize(
    ("synced_data", "synced_names"), [(True, True), (True, False), (False, True)]
)
@pytest.mark.parametrize("every", EVERY)
def test_power_loss_at_every_step_loses_nothing_acknowledged(  # noqa: PLR0917
    write, check, work, disks, tmp_path, left_out, synced_data, synced_names, every
):
    steps = _record(write, work, disks, tmp_path, left_out=left_out)
    replay = disks.Replay()
    for number, step in enumerate(steps):
        replay.apply(step)
        if number % every:
            continue
        folder = tmp_path / str(number)
        replay.save(folder, synced_data=synced_data, synced_names=synced_names)
        _go_on(write, check, work, disks, folder, left_out=left_out)
        shutil.rmtree(folder)
    replay.save(tmp_path / "end", synced_data=True, synced_names=True)
    with FeatureFile(tmp_path / "end" / "features.h5") as file:  # `extract` has returned
        assert file.n_rows("train") == 40 - len((left_out or {}).get("train", ()))
    assert verify_file(tmp_path / "end" / "features.h5").damages == ()


def test_power_loss_keeping_any_of_the_unsynced_writes(write, check, work, disks, tmp_path):
    steps = _record(write, work, disks, tmp_path)
    chance = random.Random(4)
    for trial in range(25):
        end = chance.randrange(len(steps))
        replay = disks.Replay()
        last_sync = {
            step.path: number for number, step in enumerate(steps[:end]) if step.kind == "sync"
        }
        for number, step in enumerate(steps[:end]):
            lost = step.kind == "write" and number > last_sync.get(step.path, -1)
            if not lost or chance.random() < 0.5:
                replay.apply(step)
        replay.save(tmp_path / str(trial))
        if "features.h5" in replay.names:
            assert verify_file(tmp_path / str(trial) / "features.h5").damages == ()
        else:
            _go_on(write, check, work, disks, tmp_path / str(trial))


@pytest.mark.parametrize("every", EVERY)
def test_power_loss_with_an_older_file_keeps_it_until_the_new_one(  # noqa: PLR0917
    write, check, work, disks, tmp_path, every
):
    (tmp_path / "recorded").mkdir()
    write(tmp_path / "recorded" / "features.h5", work.CountingSource({"train": 5}))
    old = (tmp_path / "recorded" / "features.h5").read_bytes()
    steps = _record(write, work, disks, tmp_path, overwrite=True)
    replay = disks.Replay()
    older = disks.File()
    older.data, older.synced = bytearray(old), old
    replay.names["features.h5"] = replay.synced_names["features.h5"] = older
    n_old = 0
    for number, step in enumerate(steps):
        replay.apply(step)
        if number % every:
            continue
        folder = tmp_path / str(number)
        replay.save(folder, synced_data=True, synced_names=True)
        n_old += (folder / "features.h5").read_bytes() == old
        _go_on(write, check, work, disks, folder, overwrite=True)
        shutil.rmtree(folder)
    assert 0 < n_old < len(steps)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("every", EVERY)
def test_disk_that_fails_at_any_write_is_said_and_resumed(  # noqa: PLR0917
    write, check, work, disks, tmp_path, code, every
):
    said = {errno.ENOSPC: "disk is full", errno.EDQUOT: "quota", errno.EFBIG: "larger than"}
    n_good = 0
    while True:
        path = tmp_path / str(n_good) / "features.h5"
        disk = disks.FailingDisk(n_good, code=code)
        source = work.CountingSource(SIZES, bad=GONE)
        try:
            write(path, source=source, disk=disk, batch_size=8, on_error="skip")
            break
        except StorageError as error:
            assert error.exit_code == 5
            assert said.get(code, "input/output error") in str(error)
            assert "--resume" in error.hint
        assert not path.exists()
        _go_on(write, check, work, disks, path.parent, left_out=GONE)
        n_good += every
    assert n_good > 60
    check(path, SIZES, left_out=GONE)


def test_too_little_space_is_said_before_the_first_batch(write, work, tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = 10  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    source = work.CountingSource(SIZES)
    with pytest.raises(StorageError) as raised:
        write(tmp_path / "f.h5", source=source)
    assert f"has {10 * real.f_frsize:,} free" in str(raised.value)
    assert "needs " in str(raised.value) and "--dtype float16" in raised.value.hint
    assert source.read_rows == []
    assert list(tmp_path.iterdir()) == []


def test_journal_cut_anywhere_is_read_up_to_there(write, check, work, disks, tmp_path):
    steps = _record(write, work, disks, tmp_path)
    replay = disks.Replay()
    for step in steps:
        if step.kind == "replace":
            break
        replay.apply(step)
    journal = bytes(replay.names["features.h5.journal"].data)
    for end in np.linspace(0, len(journal), 15).astype(int).tolist():
        folder = tmp_path / str(end)
        replay.save(folder)
        (folder / "features.h5.journal").write_bytes(journal[:end])
        n_whole = max(0, journal[:end].count(b"\n") - 1)
        read = _go_on(write, check, work, disks, folder)
        assert len(read) == 7 - n_whole


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"split":"train","start":0,"stop":-1,"rows":1,"sums":[],"overflows":[],"ids":[],'
        b'"skipped":[]}',
        b'{"split":1,"start":0,"stop":1,"rows":1,"sums":[],"overflows":[],"ids":[],"skipped":[]}',
    ],
    ids=["list", "deep", "negative", "number"],
)
def test_a_journal_is_read_up_to_a_record_that_is_none(disks, tmp_path, line):
    path = tmp_path / "f.h5.journal"
    journal = Journal(path, disk=Disk())
    journal.begin(Header(settings={}, arrays={}, created="", overwrite=False, source_state=b"x"))
    journal.append(Block("train", 0, 8, 8, (2**64 - 1,), (0,)), BlockNames("train", ("a",), ()))
    journal.close()
    whole = path.read_bytes()
    assert disks.n_blocks(path) == 1
    path.write_bytes(whole + b"%08x %s\n" % (zlib.crc32(line), line))
    assert disks.n_blocks(path) == 1
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(line), line) + whole)
    assert read_header(path) is None


@pytest.mark.parametrize("large", [True, False])
def test_only_large_files_leave_the_systems_cache(  # noqa: PLR0917
    write, check, work, tmp_path, monkeypatch, large
):
    class CountingDisk(Disk):
        steps: list[str] = []  # noqa: RUF012 - the test's own

        def sync(self, handle: int) -> None:
            super().sync(handle)
            self.steps.append("sync")

        def forget(self, handle: int) -> None:
            super().forget(handle)
            self.steps.append("forget")

    monkeypatch.setattr(writer, "SYNC_BYTES", 1)
    monkeypatch.setattr(writer, "CACHED_BYTES", 0 if large else 1 << 30)
    disk = CountingDisk()
    write(tmp_path / "f.h5", work.CountingSource(SIZES), disk=disk)
    check(tmp_path / "f.h5", SIZES)
    assert ("forget" in disk.steps) == large
    assert disk.steps[0] == "sync"  # what is not on the medium is never dropped


def test_resumed_file_has_the_bytes_of_an_uninterrupted_one(
    write, work, disks, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, "_now", lambda: "2026-01-01T00:00:00+00:00")
    whole = tmp_path / "whole.h5"
    write(whole, work.CountingSource(SIZES), disk=disks.QuickDisk())
    path = tmp_path / "f.h5"
    for n_good in range(0, 200, 11):  # each goes a little further
        with contextlib.suppress(StorageError):
            source = work.CountingSource(SIZES)
            write(path, source, resume=True, disk=disks.FailingDisk(n_good))
    assert path.read_bytes() == whole.read_bytes()
