"""Processes that are stopped, killed, out of room or not alone.

See docs/pages/reference/guarantees.md.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess

import pytest

from cnnfeat.errors import Interrupted, LockedError
from cnnfeat.features import FeatureWriter, verify_file

SIZES = {"train": 40, "test": 12}
WORKER_SIZES = {"train": 2000, "test": 500}


def _start(command, *words, **options):
    process = subprocess.Popen(
        [*command, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def _hold(command, *words, at=10):
    """Start a worker and wait until it holds before its batch number `at`; `_end` lets it go."""
    process = _start(command, *words, "--hold", at)
    assert process.stdout.readline() == "holding\n", process.stderr.read()
    return process


def _end(process):
    # Not communicate(): it would miss what readline() has read ahead.
    process.stdin.close()
    out, err = process.stdout.read(), process.stderr.read()
    code = process.wait()
    process.stdout.close()
    process.stderr.close()
    return code, out, err


def test_power_loss_after_a_stop_keeps_the_blocks_it_spoke_of(run, check, work, disks, tmp_path):
    disk = disks.RecordingDisk()
    (tmp_path / "recorded").mkdir()
    calls = []
    with pytest.raises(Interrupted) as raised:
        run(
            tmp_path / "recorded" / "features.h5",
            source=work.CountingSource(SIZES),
            disk=disk,
            batch_size=8,
            should_stop=lambda: calls.append(1) or len(calls) > 6,
        )
    n_said = int(raised.value.message.split()[2])
    assert n_said > 0
    replay = disks.Replay()
    for step in disk.steps:
        replay.apply(step)
    replay.save(tmp_path / "end", synced_data=True, synced_names=True)
    source = work.CountingSource(SIZES)
    run(tmp_path / "end" / "features.h5", source=source, resume=True, batch_size=8)
    check(tmp_path / "end" / "features.h5", SIZES)
    begins = [("train", n) for n in range(40)] + [("test", n) for n in range(12)]
    assert source.read_rows[0][:2] == begins[n_said]


def test_file_size_limit_is_said_before_the_first_batch(worker_command, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = _start(worker_command, tmp_path / "f.h5", preexec_fn=limit)
    code, out, err = _end(process)
    assert (code, err) == (5, "")
    assert "may write files of 200,000" in out
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit_that_comes_later_ends_in_order(worker_command, check, tmp_path):
    process = _hold(worker_command, tmp_path / "f.h5")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    code, out, err = _end(process)
    assert code == 5, (out, err)
    assert "larger than" in out
    assert err == ""
    process = _start(worker_command, tmp_path / "f.h5", "--resume")
    assert _end(process)[0] == 0
    check(tmp_path / "f.h5", WORKER_SIZES)


def test_full_small_disk_ends_in_order(worker_command, check, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        process = _start(worker_command, folder / "f.h5", "--rows", 20_000)
        code, out, err = _end(process)
        assert (code, err) == (5, "") and "free" in out
        process = _hold(worker_command, folder / "f.h5")
        with (folder / "filler").open("wb") as filler, pytest.raises(OSError, match="No space"):
            filler.write(bytes(4 << 20))
        code, out, err = _end(process)
        assert (code, err) == (5, ""), (out, err)
        assert "the disk is full" in out
        (folder / "filler").unlink()
        process = _start(worker_command, folder / "f.h5", "--resume")
        assert _end(process)[0] == 0
        check(folder / "f.h5", WORKER_SIZES)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _kill_at_random_times(command, check, disks, path, *, n_kills, chance):
    """Kill the worker n times, also while it resumes; it must always be able to go on.

    Half the times at some batch, which a machine of any speed reaches; half at some time, which
    may also be before the first batch or after the last.
    """
    n_finished, n_blocks = 0, 0
    overwrite: list[str] = []
    for _ in range(n_kills):
        at = chance.choice([["--hold", chance.randrange(60)], ["--delay", 0.004]])
        process = _start(command, path, *at, "--bad", 77, "--resume", *overwrite)
        if "--delay" in at or process.stdout.readline() == "holding\n":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=chance.uniform(0, 0.45 if "--delay" in at else 0.01))
            process.kill()
        code, out, err = _end(process)
        assert code in (0, -signal.SIGKILL), (out, err)
        found = disks.n_blocks(path.with_name(path.name + ".journal"))
        if code == 0:
            check(path, WORKER_SIZES, left_out={"train": {77}})
            n_finished += 1
            n_blocks = 0
            overwrite = []
            if chance.random() < 0.5:
                path.unlink()
            else:  # the next one begins anew over a complete file
                overwrite = ["--overwrite"]
                _begin_anew(command, path)
        elif found is not None:
            assert found >= n_blocks or path.exists()
            n_blocks = found
        if path.exists():
            assert verify_file(path).damages == ()
    process = _start(command, path, "--bad", 77, "--resume", *overwrite)
    assert _end(process)[0] == 0
    check(path, WORKER_SIZES, left_out={"train": {77}})
    return n_finished


def _begin_anew(command, path):
    process = _hold(command, path, "--overwrite", "--bad", 77)
    process.kill()
    _end(process)


@pytest.mark.slow
def test_kill_at_8_random_times_loses_nothing(worker_command, check, disks, tmp_path):
    _kill_at_random_times(
        worker_command, check, disks, tmp_path / "f.h5", n_kills=8, chance=random.Random(1)
    )


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kill_at_300_random_times_loses_nothing(worker_command, check, disks, tmp_path):
    n_finished = _kill_at_random_times(
        worker_command, check, disks, tmp_path / "f.h5", n_kills=300, chance=random.Random(2)
    )
    assert 10 < n_finished < 290


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_in_order_before_another_batch(worker_command, check, tmp_path, number):
    process = _hold(worker_command, tmp_path / "f.h5", at=20)
    process.send_signal(number)
    code, out, err = _end(process)
    assert (code, err) == (128 + number, "")
    said = re.match(r"Interrupted: stopped after ([\d,]+) of 2,500 samples", out)
    n_kept = int(said[1].replace(",", ""))
    assert 20 * 50 - 8 * 50 <= n_kept <= 20 * 50  # up to 8 batches wait to be written
    process = _start(worker_command, tmp_path / "f.h5", "--resume")
    assert _end(process)[0] == 0
    check(tmp_path / "f.h5", WORKER_SIZES)


def test_second_writer_fails_at_once_and_names_the_first(worker_command, run, check, tmp_path):
    process = _hold(worker_command, tmp_path / "f.h5")
    # Were the second to wait for the first, which waits for `_end`, this would never end.
    with pytest.raises(LockedError, match=f"being written by process {process.pid}"):
        run(tmp_path / "f.h5", overwrite=True)
    with pytest.raises(LockedError, match=f"being written by process {process.pid}"):
        FeatureWriter.check(tmp_path / "f.h5")  # asked before anything is loaded
    assert _end(process)[0] == 0
    check(tmp_path / "f.h5", WORKER_SIZES)


def test_one_writer_wins_each_race(worker_command, check, tmp_path):
    racers = [_start(worker_command, "--rows", 400, "--hold", 0, "--overwrite") for _ in range(2)]
    for number in range(12):
        path = tmp_path / f"{number}.h5"
        for racer in racers:
            racer.stdin.write(f"{path}\n")
            racer.stdin.flush()
        said = [racer.stdout.readline().strip() for racer in racers]
        assert said.count("holding") == 1  # until the other has had its answer
        winner, loser = racers if said[0] == "holding" else reversed(racers)
        assert f"written by process {winner.pid}" in said[racers.index(loser)]
        winner.stdin.write("\n")
        winner.stdin.flush()
        assert winner.stdout.readline() == "done\n"
        check(path, {"train": 400, "test": 100})
    for racer in racers:
        assert _end(racer)[0] == 0


def test_lock_of_a_dead_process_does_not_block(worker_command, run, check, tmp_path):
    path = tmp_path / "f.h5"
    process = _hold(worker_command, path)
    process.kill()
    _end(process)
    assert (tmp_path / "f.h5.lock").read_text() == str(process.pid)
    run(path, overwrite=True)
    check(path, {"train": 130, "test": 40})


def test_lock_file_of_a_dead_process_whose_number_lives_does_not_block(run, check, tmp_path):
    (tmp_path / "f.h5.lock").write_text(str(os.getppid()))
    run(tmp_path / "f.h5")
    check(tmp_path / "f.h5", {"train": 130, "test": 40})


def test_two_names_of_one_file_are_one_output(worker_command, run, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    process = _hold(worker_command, tmp_path / "real" / "f.h5")
    with pytest.raises(LockedError):
        run(tmp_path / "link" / "f.h5", overwrite=True)
    process.kill()
    _end(process)
