"""Sets: shards read as one file, joined into one, and refused where they aren't one whole set."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.errors import (
    CnnfeatError,
    FeatureFileError,
    Interrupted,
    MissingInputError,
    OutputExistsError,
    UsageError,
)
from cnnfeat.extraction import extract
from cnnfeat.features import FeatureFile, FeatureWriter, sets, verify_file
from cnnfeat.features.inventory import ShardEntry, read_inventory, write_inventory
from cnnfeat.features.merging import merge_shards, seal_set
from cnnfeat.options import ExtractOptions
from cnnfeat.shards import ShardNumber

SIZES = {"train": 130, "test": 40}
BAD = {"train": {0, 50, 51}, "test": set(range(16))}  # all that the first shard has of test


@pytest.fixture
def sealed(made):
    folder, single = made()
    seal_set(folder)
    return folder, single


KNOWN = {
    "part": {"train": (np.arange(130) % 3).astype("uint8")},
    "group": {"train": np.arange(130) * 7, "test": np.arange(40)},
}
KINDS = {
    "plain": {},
    "left out": {"bad": BAD},
    "parts": {"known": KNOWN},
    "short split": {"sizes": {"train": 130, "test": 5}},
    "float16": {"dtype": "float16"},
    "one": {"n_shards": 1},
}


def _same_time(path: Path, other: Path) -> None:
    """Say of a copy that it was made when the other was."""
    with h5py.File(other) as file:
        created = file.attrs["created"]
    with h5py.File(path, "r+") as file:
        assert len(file.attrs["created"]) == len(created)
        file.attrs["created"] = created


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_merged_shards_are_a_single_runs_file(made, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("cnnfeat.features.writer._now", lambda: "2026-11-30T12:00:00+00:00")
    folder, single = made(**kind)
    merge_shards(folder, tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == single.read_bytes()


def test_overflows_of_shards_are_counted_together(made, work, tmp_path, monkeypatch):
    computed = work.CountingProbe.__call__
    large = lambda probe, images: tuple(1000 * rows for rows in computed(probe, images))  # noqa: E731
    monkeypatch.setattr(work.CountingProbe, "__call__", large)
    folder, _ = made(dtype="float16")
    merge_shards(folder, tmp_path / "merged.h5")
    n_beyond = int(np.sum(work.expected(np.arange(130), shape=(8,), times=1.5) * 1000 > 65519))
    assert n_beyond
    with h5py.File(tmp_path / "merged.h5") as file:
        assert file["train/fc1"].attrs["overflowed_to_inf"] == n_beyond


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_set_reads_as_the_file_of_its_rows(made, kind):
    folder, single = made(**kind)
    seal_set(folder)
    with FeatureFile(folder) as found, FeatureFile(single) as wanted:
        assert found.splits == wanted.splits and found.layers == wanted.layers
        assert found.classes == wanted.classes
        assert found.find_layer("conv/a") == "conv.a"
        assert found.provenance.settings == wanted.provenance.settings
        for split in wanted.splits:
            assert found.n_rows(split) == wanted.n_rows(split)
            assert found.n_blocks(split) == wanted.n_blocks(split)
            assert found.ids(split) == wanted.ids(split)
            assert found.ids(split, start=2, stop=4) == wanted.ids(split, start=2, stop=4)
            assert found.skipped(split) == wanted.skipped(split)
            for facts in ("labels", "parts", "groups"):
                one, other = getattr(found, facts)(split), getattr(wanted, facts)(split)
                assert (one is None) == (other is None)
                np.testing.assert_array_equal(one, other)
            sums, others = found.sums(split), wanted.sums(split)
            np.testing.assert_array_equal(sums.stops, others.stops)
            np.testing.assert_array_equal(sums.values, others.values)
            for layer in wanted.layers:
                assert found.layer(split, layer) == wanted.layer(split, layer)
                np.testing.assert_array_equal(found.read(split, layer), wanted.read(split, layer))


@pytest.mark.parametrize("rows", [None, 1, 7, 16, 50, 1000])
def test_blocks_of_a_set_are_those_of_the_file(sealed, rows):
    folder, single = sealed
    with FeatureFile(folder) as found, FeatureFile(single) as wanted:
        pairs = zip(
            found.blocks("train", "fc1", rows=rows),
            wanted.blocks("train", "fc1", rows=rows),
            strict=True,
        )
        for (start, block), (other_start, other) in pairs:
            assert start == other_start
            np.testing.assert_array_equal(block, other)


def test_a_set_that_is_closed_says_what_it_holds(sealed):
    shown = []
    for path in sealed:
        with FeatureFile(path) as file:
            pass
        first, *rest = repr(file).splitlines()
        assert first.endswith(str(path))
        shown.append(rest)
    assert shown[0] == shown[1]


def test_rows_of_a_set_are_taken_in_any_order(sealed, rng):
    folder, single = sealed
    rows = rng.integers(0, 130, 200)
    with FeatureFile(folder) as found, FeatureFile(single) as wanted:
        np.testing.assert_array_equal(
            found.take("train", "fc1", rows), wanted.take("train", "fc1", rows)
        )
        assert found.take("train", "fc1", []).shape == (0, 8)
        with pytest.raises(UsageError, match="rows must lie between 0 and 129"):
            found.take("train", "fc1", [130])
        np.testing.assert_array_equal(
            found.read("train", "fc1", start=40, stop=100),
            wanted.read("train", "fc1", start=40, stop=100),
        )
        with pytest.raises(UsageError, match="has no split 'trian'"):
            found.n_rows("trian")


def test_few_shards_are_open_at_a_time(made, monkeypatch):
    monkeypatch.setattr(sets, "MOST_OPEN", 2)
    folder, _ = made(9)
    seal_set(folder)
    before = _n_open()
    with FeatureFile(folder) as file:
        assert len(file.labels("train")) == 130
        # Each has two: one of them for rows alone.
        assert _n_open() - before <= 2 * 2
    assert _n_open() == before


def _n_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_set_is_verified_shard_by_shard(sealed):
    folder, _ = sealed
    found = verify_file(folder)
    assert found.damages == () and found.n_blocks == (9 + 3) * 5
    shard = folder / "features.0002-of-0003.h5"
    with h5py.File(shard) as file:
        offset = file["train/fc1"].id.get_offset()
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    with FeatureFile(folder) as file, pytest.raises(FeatureFileError) as told:
        list(file.blocks("train", "fc1"))
    assert "features.0002-of-0003.h5: split 'train', layer 'fc1', block 0" in str(told.value)
    (damage,) = verify_file(folder).damages
    assert "features.0002-of-0003.h5" in damage.message


def test_verifying_goes_on_behind_a_shard_that_cant_be_opened(sealed):
    folder, _ = sealed
    shard = folder / "features.0002-of-0003.h5"
    shard.write_bytes(bytes(shard.stat().st_size))
    (damage,) = verify_file(folder).damages
    assert damage.split == "" and "features.0002-of-0003.h5 is no HDF5 file" in damage.message


def _remove_manifest(folder):
    (folder / "manifest.json").unlink()


def _remove_shard(folder):
    (folder / "features.0002-of-0003.h5").unlink()


def _cut_shard(folder):
    os.truncate(folder / "features.0002-of-0003.h5", 100)


def _exchange_shards(folder):
    one, other = folder / "features.0001-of-0003.h5", folder / "features.0002-of-0003.h5"
    shutil.copy(other, one)


def _edit(folder, change):
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _lose_entry(folder):
    _edit(folder, lambda said: said["shards"].pop(1))


def _repeat_entry(folder):
    _edit(folder, lambda said: said["shards"][0].update(name="features.0002-of-0003.h5"))


def _lead_elsewhere(folder):
    _edit(folder, lambda said: said["shards"][1].update(name="../single.h5"))


def _lose_all(folder):
    _edit(folder, lambda said: said["shards"].clear())


def _lose_last(folder):
    _edit(folder, lambda said: said["shards"].pop())


def _lose_a_row(folder):
    _edit(folder, lambda said: said["shards"][1]["rows"].update(train=47))


def _gain_rows(folder):
    _edit(
        folder,
        lambda said: said["shards"][2].update(
            rows={"train": 2**61, "test": 2**61},
            samples={"train": [96, 96 + 2**61], "test": [32, 32 + 2**61]},
        ),
    )


def _gain_a_block(folder):
    _edit(folder, lambda said: said["shards"][1]["blocks"].update(train=10**12))


def _be_newer(folder):
    _edit(folder, lambda said: said.update(version=2))


def _be_torn(folder):
    path = folder / "manifest.json"
    os.truncate(path, path.stat().st_size // 2)


def _be_another(folder):
    (folder / "manifest.json").write_text('{"format": "web app", "version": 1}')


FAULTS = {
    _remove_manifest: "set holds 3 shards and no manifest.json",
    _remove_shard: "shard features.0002-of-0003.h5 is missing",
    _cut_shard: "features.0002-of-0003.h5 has 100 bytes, and manifest.json says",
    _exchange_shards: "features.0001-of-0003.h5 ",
    _lose_entry: "0003-of-0003.h5 has samples 96 to 130 of split 'train', and those before it end",
    _repeat_entry: "features.0002-of-0003.h5 is listed twice",
    _lead_elsewhere: "shard ../single.h5 is missing",
    _lose_all: "manifest.json lists no shard",
    _lose_last: "features.0001-of-0003.h5 holds shard 1/3, not 1/2",
    _lose_a_row: "features.0002-of-0003.h5 isn't the shard that manifest.json lists",
    _gain_rows: "bytes, too few for the 4,611,686,018,427,387,904 rows that manifest.json says",
    _gain_a_block: "features.0002-of-0003.h5 isn't the shard that manifest.json lists",
    _be_newer: "manifest.json has version 2; this cnnfeat reads version 1",
    _be_torn: "manifest.json is no manifest of shards",
    _be_another: "is no manifest of shards: format must be 'cnnfeat-set', not 'web app'",
}


@pytest.mark.parametrize(
    ("fault", "said"), FAULTS.items(), ids=[fault.__name__.strip("_") for fault in FAULTS]
)
def test_a_set_that_is_not_whole_is_refused(sealed, fault, said):
    folder, _ = sealed
    fault(folder)
    with pytest.raises(FeatureFileError) as told, FeatureFile(folder) as file:
        file.labels("train")
    assert said in str(told.value)
    assert told.value.exit_code == 3


def test_a_folder_of_other_things_is_no_set(tmp_path):
    with pytest.raises(FeatureFileError, match=r"is a folder, .* and there are no shards in it"):
        FeatureFile(tmp_path)
    with pytest.raises(MissingInputError, match="is no folder with shards in it"):
        seal_set(tmp_path / "nowhere")


def test_shards_that_are_missing_are_named(made, tmp_path):
    folder, _ = made()
    (folder / "features.0002-of-0003.h5").unlink()
    with pytest.raises(
        FeatureFileError, match=r"1 of 3 shards are missing: features\.0002"
    ) as told:
        merge_shards(folder, tmp_path / "merged.h5")
    assert "--shard 2/3" in told.value.hint
    with pytest.raises(FeatureFileError, match="1 of 3 shards are missing"):
        seal_set(folder)
    assert not (folder / "manifest.json").exists() and not (tmp_path / "merged.h5").exists()


def test_shards_of_other_settings_are_named(made, run_shard):
    folder, _ = made()
    (folder / "features.0002-of-0003.h5").unlink()
    run_shard(folder, dtype="float16")
    with pytest.raises(FeatureFileError) as told:
        seal_set(folder)
    assert (
        "features.0002-of-0003.h5 was made with another dtype than features.0001-of-0003.h5: "
        "float16, not float32" in str(told.value)
    )


@pytest.fixture
def run_shard(work):
    """Make one of three shards in some other way."""

    def call(folder, *, number=2, content="v1", engine="numpy", **options):
        source, probe = work.CountingSource(SIZES), work.CountingProbe()
        source.content, probe.engine = content, engine
        how = ExtractOptions(**{"batch_size": 16, **options})
        shard = ShardNumber(number, 3)
        extract(work.CountingNetwork(probe), source, how, out=folder, shard=shard)

    return call


def test_a_shard_of_a_source_that_has_changed_is_named(made, run_shard):
    folder, _ = made()
    (folder / "features.0002-of-0003.h5").unlink()
    run_shard(folder, content="v2")
    with pytest.raises(
        FeatureFileError, match=r"0002-of-0003\.h5 was made with another data finge"
    ):
        seal_set(folder)


def test_shards_of_two_sets_in_a_folder_are_refused(made, tmp_path):
    folder, _ = made()
    shutil.copy(folder / "features.0001-of-0003.h5", folder / "features.0001-of-0004.h5")
    with pytest.raises(FeatureFileError, match="holds shards of several sets: features"):
        seal_set(folder)


@pytest.mark.parametrize(
    "name", ["0000-of-0003", "0004-of-0003", "00001-of-0003", "0001-of-0000", "٠٠٠١-of-0003"]
)
def test_a_number_that_no_shard_has_is_another_files(made, name):
    folder, _ = made()
    (folder / f"features.{name}.h5").write_bytes(b"junk")
    found = [shard.name for shard in seal_set(folder).shards]
    assert found == [f"features.000{number}-of-0003.h5" for number in (1, 2, 3)]


def test_many_missing_shards_are_counted_and_some_are_named(tmp_path):
    (tmp_path / "features.000000002-of-999999999.h5").touch()
    with pytest.raises(FeatureFileError) as told:
        seal_set(tmp_path)
    assert "999,999,998 of 999,999,999 shards are missing: features.000000001" in str(told.value)
    assert "--shard 1/999999999" in told.value.hint


@pytest.mark.parametrize("older", [1, 2])
def test_shards_with_and_without_digests_are_no_set(made, run_shard, monkeypatch, older):
    folder, _ = made()
    seal_set(folder)
    place = ShardNumber(older, 3)
    (folder / place.file_name).unlink()
    with monkeypatch.context() as patched:
        patched.setattr("cnnfeat.extraction.plan.DIGEST", "nothing")
        run_shard(folder, number=older)
    said = r"another version of cnnfeat than other shards: in split 'train' they don't share digest"
    with pytest.raises(FeatureFileError, match=said) as told:
        seal_set(folder)
    assert "extract --shard and --overwrite" in told.value.hint
    paths = [folder / ShardNumber(number, 3).file_name for number in (1, 2, 3)]
    shards = [sets.ShardFile(path) for path in paths]
    settings = shards[0].provenance.settings
    write_inventory(folder, settings, map(ShardEntry.of, shards))  # as a stranger may
    for shard in shards:
        shard.close()
    with FeatureFile(folder) as file, pytest.raises(FeatureFileError, match=said):
        file.sums("train")
    assert any("don't share digest" in one.message for one in verify_file(folder).damages)


def test_a_shard_under_anothers_name_is_refused(made):
    folder, _ = made()
    shutil.copy(folder / "features.0001-of-0003.h5", folder / "features.0002-of-0003.h5")
    with pytest.raises(FeatureFileError, match=r"0002-of-0003\.h5 holds shard 1/3, not 2/3"):
        seal_set(folder)


def test_a_plain_file_under_a_shards_name_is_refused(made):
    folder, single = made()
    shutil.copy(single, folder / "features.0002-of-0003.h5")
    with pytest.raises(FeatureFileError, match=r"features\.0002-of-0003\.h5 is no shard"):
        seal_set(folder)


def test_a_split_left_out_in_all_shards_is_an_error(made, work, tmp_path):
    bad = {"test": set(range(40))}
    how = ExtractOptions(batch_size=16, on_error="skip")
    for number in (1, 2):
        source = work.CountingSource(SIZES, bad=bad)
        extract(work.CountingNetwork(), source, how, out=tmp_path, shard=ShardNumber(number, 2))
    with pytest.raises(FeatureFileError, match="all samples of split 'test' were left out"):
        seal_set(tmp_path)


def test_a_damaged_shard_is_not_merged(made, tmp_path):
    folder, _ = made()
    shard = folder / "features.0003-of-0003.h5"
    with h5py.File(shard) as file:
        offset = file["test/label"].id.get_offset()
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x07")
    with pytest.raises(FeatureFileError, match=r"0003-of-0003\.h5: split 'test', layer 'label'"):
        merge_shards(folder, tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()


@pytest.mark.parametrize("n_before", [1, 3, 4, 9, 11])
@pytest.mark.parametrize("bad", [None, BAD], ids=["all rows", "left out"])
def test_an_interrupted_merge_goes_on_where_it_was(made, tmp_path, monkeypatch, bad, n_before):
    monkeypatch.setattr("cnnfeat.features.writer._now", lambda: "2026-11-30T12:00:00+00:00")
    folder, single = made(bad=bad)
    counted = iter(range(100))
    with pytest.raises(Interrupted, match=r"stopped after \d+ of \d+ rows") as told:
        merge_shards(folder, tmp_path / "m.h5", should_stop=lambda: next(counted) + 1 == n_before)
    assert "--resume" in told.value.hint
    written = []
    append = FeatureWriter.append_columns
    monkeypatch.setattr(
        FeatureWriter,
        "append_columns",
        lambda writer, *args, **more: (written.append(args[0]), append(writer, *args, **more)),
    )
    merge_shards(folder, tmp_path / "m.h5", resume=True)
    assert len(written) == 12 - n_before
    assert (tmp_path / "m.h5").read_bytes() == single.read_bytes()
    merge_shards(folder, tmp_path / "m.h5", resume=True)  # complete already
    assert len(written) == 12 - n_before


def test_a_manifest_of_many_shards_is_read_as_it_was_written(tmp_path):
    n = 1000
    entries = [
        ShardEntry(
            f"features.{i + 1}.h5", {"all": (i, i + 1)}, {"all": 1}, {"all": 1}, 16, "0" * 16
        )
        for i in range(n)
    ]
    for entry in entries:
        (tmp_path / entry.name).write_bytes(bytes(16))
    write_inventory(tmp_path, {"layer": "fc1"}, iter(entries))
    found = read_inventory(tmp_path)
    assert found.n_rows("all") == n and found.shards == tuple(entries)


def test_another_programs_manifest_is_not_written_over(made):
    folder, _ = made()
    path = folder / "manifest.json"
    path.write_text('{"name": "a web app"}', "utf-8")
    with pytest.raises(OutputExistsError, match=r"manifest\.json is no manifest of shards") as told:
        seal_set(folder)
    assert told.value.hint.startswith("move it elsewhere")
    with pytest.raises(OutputExistsError, match="would be written over"):
        write_inventory(folder, {}, iter(()))
    assert path.read_text("utf-8") == '{"name": "a web app"}'
    path.write_text('{"format": "cnnfeat-set"', "utf-8")  # one of shards, though damaged
    seal_set(folder)
    assert read_inventory(folder).n_rows("train") == 130


def test_a_damaged_manifest_says_what_seals_the_folder(sealed):
    folder, _ = sealed
    _be_torn(folder)
    with pytest.raises(FeatureFileError) as told:
        FeatureFile(folder)
    assert told.value.hint.startswith("cnnfeat merge FOLDER --manifest seals")
    _be_another(folder)
    with pytest.raises(FeatureFileError) as told:
        FeatureFile(folder)
    assert told.value.hint.startswith("move it elsewhere; then cnnfeat merge FOLDER --manifest")


def test_shards_that_leave_samples_out_go_with_such_that_would_have_ended(
    made, run_shard, tmp_path, monkeypatch
):
    """As after a run that a picture has ended, and one that goes on and leaves it out."""
    monkeypatch.setattr("cnnfeat.features.writer._now", lambda: "2026-11-30T12:00:00+00:00")
    bad = {"train": {50, 51}}
    folder, single = made(bad=bad)
    for number in (1, 3):
        (folder / f"features.000{number}-of-0003.h5").unlink()
        run_shard(folder, number=number)
    assert seal_set(folder).settings["on error"] == "skip"
    with FeatureFile(folder) as one, FeatureFile(single) as other:
        assert one.attributes == other.attributes
    merge_shards(folder, tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == single.read_bytes()


def test_a_shard_of_another_engine_is_named_with_what_settles_it(made, run_shard):
    folder, _ = made()
    (folder / "features.0002-of-0003.h5").unlink()
    run_shard(folder, engine="openvino 2026.4.1")
    with pytest.raises(FeatureFileError, match="another engine than features") as told:
        seal_set(folder)
    assert "make it again with the --engine of the others" in told.value.hint


def test_errors_of_sets_have_hints(made):
    folder, _ = made()
    with pytest.raises(CnnfeatError) as told:
        FeatureFile(folder)
    assert told.value.hint.startswith("cnnfeat merge FOLDER --manifest seals")
