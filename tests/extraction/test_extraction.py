from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest

from cnnfeat.errors import (
    DataError,
    ImageError,
    Interrupted,
    NetworkError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from cnnfeat.features import FeatureFile, FeatureWriter
from cnnfeat.options import ExtractOptions, ReadOptions
from cnnfeat.records import ImageTarget, ProbeOutput

SIZES = {"train": 130, "test": 40}


def test_every_row_is_its_images(run, check, tmp_path):
    result = run(tmp_path / "f.h5")
    check(tmp_path / "f.h5", SIZES)
    assert result.rows == SIZES
    assert result.skipped == {}
    assert result.size_bytes == (tmp_path / "f.h5").stat().st_size
    assert [output.layer for output in result.layers] == ["conv/a", "fc1"]


@pytest.mark.parametrize("batch_size", [1, 7, 130, 5000])
def test_batch_size_changes_nothing(run, check, tmp_path, batch_size):
    run(tmp_path / "f.h5", batch_size=batch_size)
    check(tmp_path / "f.h5", SIZES)


def test_provenance_is_in_the_root(run, work, tmp_path):
    run(tmp_path / "f.h5", network=work.CountingNetwork(trained_on="mnist"))
    with h5py.File(tmp_path / "f.h5") as file:
        said = dict(file.attrs)
        assert file["train/conv.a"].attrs["tensor"] == "conv/a/out:0"
        assert file["train/conv.a"].attrs["op"] == "Relu"
        assert file["train/conv.a"].attrs["pooling"] == "none"
        assert file["train/conv.a"].attrs["original_shape"].tolist() == [2, 3, 4]
        assert list(file["classes"].asstr()) == ["even", "odd"]
    assert said["network"] == "model.keras" and said["network_sha256"] == "ab" * 32
    assert said["source"] == "counting" and said["source_kind"] == "counting"
    assert said["source_fingerprint_method"] == "a test's word"
    assert json.loads(said["preprocessing"]) == {"scale": "none"}
    assert said["precision"] == "float32" and said["device"] == "cpu"
    assert said["tensorflow"] == "2.21.0"
    assert said["engine"] == "numpy"
    assert said["network_test_accuracy"] == 0.993 and said["network_source"] == "mnist"
    assert said["h5py"] == h5py.__version__
    assert said["created"].endswith("+00:00")


def test_dimensions_are_named(run, tmp_path):
    xarray = pytest.importorskip("xarray")
    run(tmp_path / "f.h5")
    with xarray.open_dataset(tmp_path / "f.h5", group="train", engine="h5netcdf") as found:
        assert found["conv.a"].dims == (
            "sample",
            "conv.a_height",
            "conv.a_width",
            "conv.a_channel",
        )
        assert found["fc1"].dims == ("sample", "fc1_feature")
        assert set(found.coords) == {"id", "label"}


def test_splits_and_limit_choose_rows(run, check, tmp_path):
    run(tmp_path / "a.h5", split=("test",))
    check(tmp_path / "a.h5", {"test": 40})
    run(tmp_path / "b.h5", limit=50)
    check(tmp_path / "b.h5", {"train": 50, "test": 40})


def test_without_labels_none_are_stored(run, check, work, tmp_path):
    source = work.CountingSource(SIZES, labelled=False)
    run(tmp_path / "f.h5", source=source)
    check(tmp_path / "f.h5", SIZES, labelled=False)


def test_bad_image_stops_the_run_by_name(run, work, tmp_path):
    source = work.CountingSource(SIZES, bad={"train": {100}})
    with pytest.raises(ImageError, match=r"train/100\.png: can't be read"):
        run(tmp_path / "f.h5", source=source)
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    "gone",
    [{"train": {0}}, {"train": {129}, "test": {3, 4}}, {"train": set(range(20, 60))}],
)
def test_skipped_samples_shift_nothing(run, check, work, tmp_path, caplog, gone):  # noqa: PLR0917
    source = work.CountingSource(SIZES, bad=gone)
    result = run(tmp_path / "f.h5", source=source, on_error="skip")
    check(tmp_path / "f.h5", SIZES, left_out=gone)
    assert {split: {s.row for s in items} for split, items in result.skipped.items()} == gone
    first = min(gone["train"])
    assert f"left out train/{first}.png: can't be read" in caplog.text
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(tmp_path / "f.h5", group="train", engine="h5netcdf") as found:
        assert found.sizes["sample"] == 130 - len(gone["train"])


def test_all_samples_skipped_is_an_error(run, work, tmp_path):
    source = work.CountingSource(SIZES, bad={"test": set(range(40))})
    with pytest.raises(DataError, match="all 40 samples of split 'test' were left out"):
        run(tmp_path / "f.h5", source=source, on_error="skip")
    assert not (tmp_path / "f.h5").exists()


def test_float16_is_stored_and_overflow_is_said(run, work, tmp_path, caplog):
    run(tmp_path / "f.h5", dtype="float16")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.layer("train", "fc1").dtype == "float16"
        wanted = work.expected(np.arange(130), shape=(8,), times=1.5).astype("float16")
        np.testing.assert_array_equal(file.read("train", "fc1"), wanted)
    assert "infinite" not in caplog.text

    class Large(work.CountingProbe):
        def __call__(self, images):
            return tuple(values * 1000 for values in super().__call__(images))

    run(tmp_path / "g.h5", probe=Large(), dtype="float16")
    wanted = work.expected(np.arange(130), shape=(8,), times=1.5) * 1000
    n_beyond = int(np.sum(wanted > 65519))
    assert n_beyond > 0
    assert f"{n_beyond} values of train/fc1 are beyond float16" in caplog.text


@pytest.mark.parametrize("kind", ["int32", "uint8", "bool", "int64"])
def test_whole_numbers_keep_their_type(run, tmp_path, kind):
    class Argmax:
        target, preprocessing, unsteady = ImageTarget(), {}, {}
        device, engine = "cpu", "numpy"
        outputs = (ProbeOutput("top", "top:0", "ArgMax", (), kind, (), kind, "none"),)

        def __call__(self, images):
            return (images[:, 0, 0, 0].astype(kind),)

    run(tmp_path / "f.h5", probe=Argmax(), dtype="float16")
    with FeatureFile(tmp_path / "f.h5") as file:
        stored = {"bool": "uint8"}.get(kind, kind)
        assert file.layer("train", "top").dtype == stored
        np.testing.assert_array_equal(
            file.read("train", "top"), np.arange(130).astype(kind).astype(stored)
        )


def test_rows_that_change_shape_are_refused_with_both_shapes(run, work, tmp_path):
    class Free(work.CountingProbe):
        def __call__(self, images):
            first, second = super().__call__(images)
            return np.repeat(first, images.shape[1] // work.SIDE + images.shape[1] % 2, 1), second

    source = work.CountingSource(SIZES, shape_change=100)
    with pytest.raises(NetworkError) as raised:
        run(tmp_path / "f.h5", source=source, probe=Free())
    message = str(raised.value)
    assert "(4, 3, 4)" in message and "(2, 3, 4)" in message and "train/100.png" in message
    assert "--resize" in raised.value.hint


def test_images_that_change_shape_may_give_equal_rows(run, check, work, tmp_path):
    source = work.CountingSource(SIZES, shape_change=101)
    run(tmp_path / "f.h5", source=source)
    check(tmp_path / "f.h5", SIZES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 and at most 1048576, not 0"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"dtype": "float64"}, "dtype must be 'float32' or 'float16', not 'float64'"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', not 'ignore'"),
        ({"split": ("tset",)}, "has no split 'tset'; it has: train, test"),
    ],
)
def test_options_that_cannot_be_are_refused(run, tmp_path, options, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        run(tmp_path / "f.h5", **options)
    assert list(tmp_path.iterdir()) == []


def test_empty_split_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="split 'test' of counting is empty"):
        run(tmp_path / "f.h5", sizes={"train": 5, "test": 0})


def test_existing_output_is_kept_without_overwrite(run, check, tmp_path):
    path = tmp_path / "f.h5"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"f\.h5 exists") as raised:
        run(path)
    assert "--overwrite" in raised.value.hint
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]
    run(path, overwrite=True)
    check(path, SIZES)


def test_folder_as_output_is_refused(run, tmp_path):
    with pytest.raises(OutputExistsError, match="is a folder"):
        run(tmp_path, overwrite=True)


def test_output_folder_is_made(run, check, tmp_path):
    run(tmp_path / "a" / "b" / "f.h5")
    check(tmp_path / "a" / "b" / "f.h5", SIZES)


def test_output_folder_that_cannot_be_made_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"no folder|can't write"):
        run(tmp_path / "file" / "f.h5")


def test_old_file_stays_until_the_new_one_is_complete(run, check, work, tmp_path):
    path = tmp_path / "f.h5"
    run(path)
    old = path.read_bytes()
    source = work.CountingSource(SIZES, bad={"test": {39}})
    with pytest.raises(ImageError):
        run(path, source=source, overwrite=True)
    assert path.read_bytes() == old
    run(path, resume=True, source=work.CountingSource(SIZES))
    check(path, SIZES)


def test_reader_sees_the_old_file_or_none(run, work, tmp_path):
    path = tmp_path / "f.h5"
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            try:
                with FeatureFile(path) as file:
                    seen.append(file.n_rows("train"))
                    assert len(file.read("train", "fc1")) == seen[-1]
            except FileNotFoundError:
                seen.append(0)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for old, n in ((0, 130), (130, 131)):
            _wait(lambda old=old: old in seen or not reader.is_alive())
            source = work.CountingSource({"train": n, "test": 40}, delay_s=0.005)
            run(path, source=source, overwrite=True)
        _wait(lambda: 131 in seen or not reader.is_alive())
    finally:
        done.set()
        reader.join()
    assert set(seen) == {0, 130, 131}
    assert seen == sorted(seen)


def _wait(condition):
    while not condition():
        time.sleep(0.001)


def _stop_after(n_calls, *, written=None, n_blocks=0):
    """Stop at the call after `n_calls`, but not before `written` has `n_blocks` in its journal."""
    calls = []

    def should_stop():
        calls.append(1)
        if len(calls) <= n_calls:
            return False
        if written is not None:
            journal = written.with_name(f"{written.name}.journal")
            _wait(lambda: journal.read_bytes().count(b"\n") > n_blocks)  # a header, and a line each
        return True

    return should_stop


def test_stop_keeps_finished_blocks_and_resume_goes_on(run, check, work, tmp_path, caplog):
    path = tmp_path / "f.h5"
    with pytest.raises(Interrupted, match=r"stopped after \d+ of 170 samples") as raised:
        run(path, should_stop=_stop_after(8, written=path, n_blocks=4))
    assert "--resume" in raised.value.hint
    assert not path.exists() and (tmp_path / "f.h5.partial").exists()
    source = work.CountingSource(SIZES)
    caplog.set_level(logging.INFO)
    result = run(path, source=source, resume=True)
    check(path, SIZES)
    _, start, _ = source.read_rows[0]
    assert result.n_computed == 170 - start
    assert start >= 16 * 4  # what was in the journal when it stopped is kept
    assert f"going on after {start} of 170 samples" in caplog.text


def _names(file):
    names = []
    file.visit(names.append)
    return names


def test_resumed_file_is_equal_to_an_uninterrupted_one(run, tmp_path):
    run(tmp_path / "whole.h5")
    for stop in range(1, 11):
        path = tmp_path / f"{stop}.h5"
        with pytest.raises(Interrupted):
            run(path, should_stop=_stop_after(stop))
        run(path, resume=True)
        with h5py.File(path) as found, h5py.File(tmp_path / "whole.h5") as wanted:
            for name in _names(wanted):
                assert found[name].attrs.keys() == wanted[name].attrs.keys()
                if isinstance(wanted[name], h5py.Dataset) and wanted[name].dtype != ">f4":
                    assert np.array_equal(found[name][...], wanted[name][...]), name


def test_unfinished_run_is_not_dropped_by_accident(run, tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(Interrupted):
        run(path, should_stop=_stop_after(8))
    with pytest.raises(OutputExistsError, match="begun and interrupted") as raised:
        run(path)
    assert "--resume" in raised.value.hint and "--overwrite" in raised.value.hint


def test_stop_before_the_first_block_leaves_nothing(run, tmp_path):
    with pytest.raises(Interrupted, match="before the first block"):
        run(tmp_path / "f.h5", should_stop=lambda: True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"network": {"sha256": "cd" * 32}}, "model"),
        ({"network": {"read": ReadOptions(feed=(("gain", 5.0),))}}, "feed"),
        ({"network": {"read": ReadOptions(signature="other")}}, "signature"),
        ({"network": {"read": ReadOptions(input="x")}}, "input"),
        ({"network": {"read": ReadOptions(weights="none")}}, "weights"),
        ({"source": {"name": "digits"}}, "data"),
        ({"source": {"options": {"labels": ":/z", "max_pixels": 9}}}, "labels"),
        ({"source": {"options": {"labels": ":/y", "max_pixels": 8}}}, "max pixels"),
        ({"probe": {"scale": "unit"}}, "scale"),
        ({"probe": {"scale": "none", "layout": "NCHW"}}, "preprocessing"),
        ({"ran_by": "openvino 2026.4.1"}, "engine"),
        ({"precision": "bfloat16"}, "precision"),
        ({"came_to": "gpu:0"}, "device"),
        ({"pool": "avg"}, "pool"),
        ({"batch_size": 17}, "batch size"),
        ({"dtype": "float16"}, "dtype"),
        ({"limit": 100}, "limit"),
        ({"split": ("train",)}, "split"),
        ({"on_error": "skip"}, "on error"),
    ],
)
def test_resume_names_the_setting_that_differs(run, work, tmp_path, options, field):
    path = tmp_path / "f.h5"
    changed = dict(options)
    sources = [work.CountingSource(SIZES) for _ in range(2)]
    for source in sources:
        source.options = {"labels": ":/y", "max_pixels": 9}
    for name, value in changed.pop("source", {}).items():
        setattr(sources[1], name, value)
    probe = work.CountingProbe()
    probe.preprocessing = changed.pop("probe", probe.preprocessing)
    probe.device = changed.pop("came_to", "cpu")
    probe.engine = changed.pop("ran_by", probe.engine)
    network = work.CountingNetwork(probe, **changed.pop("network", {}))
    with pytest.raises(Interrupted):
        run(path, source=sources[0], should_stop=_stop_after(8))
    kept = (tmp_path / "f.h5.partial").read_bytes()
    with pytest.raises(UsageError, match=f"begun with another {field}: "):
        run(path, source=sources[1], network=network, resume=True, **changed)
    assert (tmp_path / "f.h5.partial").read_bytes() == kept


def test_every_option_that_changes_the_result_is_compared(run, work, tmp_path):
    """No list is kept by hand: what a record declares is compared."""
    with pytest.raises(Interrupted):
        run(tmp_path / "f.h5", should_stop=_stop_after(8))
    settings = FeatureWriter.unfinished(tmp_path / "f.h5").settings
    for record in (ReadOptions, ExtractOptions):
        for item in dataclasses.fields(record):
            assert item.name.replace("_", " ") in settings


def test_resume_with_other_layers_names_both(run, work, tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(Interrupted):
        run(path, should_stop=_stop_after(8))
    with pytest.raises(UsageError, match=r"another layer: conv/a .*now it is fc1 \(fc1/out:0\)"):
        run(path, resume=True, probe=work.CountingProbe({"fc1": (8,)}))


def test_resume_after_the_source_changed_names_the_file(run, work, tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(Interrupted):
        run(path, should_stop=_stop_after(8))
    source = work.CountingSource(SIZES)
    source.content = "v2"
    with pytest.raises(DataError, match=r"numbers\.bin has changed since") as raised:
        run(path, resume=True, source=source)
    assert raised.value.exit_code == 3


def test_resume_redoes_a_torn_block(run, check, work, tmp_path, caplog):
    path = tmp_path / "f.h5"
    with pytest.raises(Interrupted):
        run(path, should_stop=_stop_after(10, written=path, n_blocks=5))
    with h5py.File(tmp_path / "f.h5.partial") as file:
        place = file["train/fc1"].id.get_offset()
    with (tmp_path / "f.h5.partial").open("r+b") as file:
        file.seek(place + 50 * 8 * 4)  # row 50, in the fourth block of 16
        file.write(b"\xff")
    source = work.CountingSource(SIZES)
    run(path, source=source, resume=True)
    assert source.read_rows[0] == ("train", 48, 64)
    assert "block 4 of" in caplog.text
    check(path, SIZES)


def test_resume_mends_torn_structures(run, check, tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(Interrupted):
        run(path, should_stop=_stop_after(10))
    with (tmp_path / "f.h5.partial").open("r+b") as file:
        file.write(bytes(500))
    run(path, resume=True)
    check(path, SIZES)


def test_resume_without_anything_to_resume_begins(run, check, tmp_path):
    run(tmp_path / "f.h5", resume=True)
    check(tmp_path / "f.h5", SIZES)


def test_resume_of_a_complete_file_does_nothing(run, work, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(tmp_path / "f.h5")
    before = (tmp_path / "f.h5").read_bytes()
    source = work.CountingSource(SIZES)
    assert run(tmp_path / "f.h5", source=source, resume=True).n_computed == 0
    assert source.read_rows == []
    assert "is complete already" in caplog.text
    assert (tmp_path / "f.h5").read_bytes() == before


def test_resume_onto_another_complete_file_is_refused(run, tmp_path):
    run(tmp_path / "f.h5")
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(OutputExistsError, match="holds other features"):
        run(tmp_path / "f.h5", resume=True, batch_size=20)
    assert (tmp_path / "f.h5").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]


def test_error_of_any_stage_comes_out_as_it_was(run, work, tmp_path):
    class Broken(work.CountingProbe):
        def __call__(self, images):
            if images[0, 0, 0, 0] >= 64:
                raise NetworkError("no more")
            return super().__call__(images)

    with pytest.raises(NetworkError, match=r"'train/64\.png' to 'train/79\.png': no more"):
        run(tmp_path / "f.h5", probe=Broken())
    source = work.CountingSource(SIZES)
    run(tmp_path / "f.h5", source=source, resume=True)
    assert source.read_rows[0] == ("train", 64, 80)


def test_auto_batch_size_is_chosen_said_and_kept_for_resume(run, check, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(Interrupted):
        run(
            tmp_path / "f.h5",
            sizes={"train": 40_000},
            batch_size="auto",
            should_stop=_stop_after(6),
        )
    assert "images/s by batch size: 16: " in caplog.text
    n_said = caplog.text.count("images/s by batch size")
    run(tmp_path / "f.h5", sizes={"train": 40_000}, batch_size="auto", resume=True)
    assert caplog.text.count("images/s by batch size") == n_said
    check(tmp_path / "f.h5", {"train": 40_000})


def test_plan_is_said_before_the_first_batch(run, work, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = work.CountingSource(SIZES, bad={"train": {0}})
    with pytest.raises(ImageError):
        run(tmp_path / "f.h5", source=source)
    assert "train: conv.a (130, 2, 3, 4) float32, fc1 (130, 8) float32" in caplog.text
    assert f"will take about {170 * (24 * 4 + 8 * 4 + 8 + 8):,} bytes" in caplog.text


def test_neither_tensorflow_nor_sklearn_is_loaded():
    code = (
        "import sys, cnnfeat.extraction; "
        "print([n for n in ('tensorflow', 'keras', 'sklearn') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


PARTS = {"train": np.arange(130) % 3, "test": np.zeros(40)}
GROUPS = {"train": np.arange(130) * 7}


def _divided(work, **options):
    parts = {split: rows.astype(np.uint8) for split, rows in PARTS.items()}
    return work.CountingSource(SIZES, known={"part": parts, "group": GROUPS}, **options)


def test_parts_and_groups_of_a_source_stand_beside_its_rows(run, check, work, tmp_path):
    run(tmp_path / "f.h5", source=_divided(work))
    check(tmp_path / "f.h5", SIZES)
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.parts("train").tolist() == PARTS["train"].tolist()
        assert file.parts("test").tolist() == [0] * 40
        assert file.groups("train").tolist() == GROUPS["train"].tolist()
        assert file.groups("test") is None


def test_parts_do_not_shift_against_rows_left_out(run, work, tmp_path):
    gone = {"train": {0, 15, 16, 17, 29}}
    source = _divided(work, bad=gone)
    run(tmp_path / "f.h5", source=source, on_error="skip", limit=30)
    kept = [row for row in range(30) if row not in gone["train"]]
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.ids("train") == [f"train/{row}.png" for row in kept]
        assert file.parts("train").tolist() == [row % 3 for row in kept]
        assert file.groups("train").tolist() == [row * 7 for row in kept]
        assert file.parts("test").tolist() == [0] * 30


def test_parts_are_those_of_an_uninterrupted_run_after_a_resume(run, work, tmp_path):
    path, gone = tmp_path / "f.h5", {"train": {3, 40}}
    with pytest.raises(Interrupted):
        run(
            path,
            source=_divided(work, bad=gone),
            on_error="skip",
            should_stop=_stop_after(8, written=path, n_blocks=4),
        )
    run(path, source=_divided(work, bad=gone), on_error="skip", resume=True)
    with FeatureFile(path) as file:
        assert file.parts("train").tolist() == [row % 3 for row in range(130) if row not in (3, 40)]


def test_a_resume_with_parts_that_are_known_only_now_is_refused(run, work, tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(Interrupted):
        run(path, should_stop=_stop_after(8, written=path, n_blocks=4))
    with pytest.raises(UsageError, match="was begun with other arrays"):
        run(path, source=_divided(work), resume=True)
