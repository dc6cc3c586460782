"""Links and pipes in a network's folder: nothing outside is read, and nothing is waited for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network import load_network

SECRET = "root:x:0:0"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), keras.layers.Conv2D(2, 3)])
    model.export(folder, verbose=False)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, and a file outside."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path / "model"


def linked(path: Path, target: str | Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


LINKS = ["saved_model.pb", "variables/variables.index", "assets/words.txt", "fingerprint.pb"]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_leads_out_is_named(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    linked(folder / name, "../secret" if "/" not in name else "../../secret")
    with pytest.raises(UntrustedModelError) as caught:
        load_network(folder)
    assert caught.value.message == (
        f"{folder / name} leads out of {folder}: a model reads no other files"
    )
    assert "cp -rL" in caught.value.hint


def test_a_linked_folder_that_leads_out_is_named(folder: Path) -> None:
    (folder / "variables").rename(folder.parent / "variables")
    linked(folder / "variables", "../variables")
    with pytest.raises(UntrustedModelError, match="variables leads out of"):
        load_network(folder)


def test_it_is_named_too_where_the_graph_was_given(folder: Path) -> None:
    linked(folder / "variables" / "variables.index", folder.parent / "secret")
    with pytest.raises(UntrustedModelError, match=r"variables\.index leads out of"):
        load_network(folder / "saved_model.pb")


def test_links_inside_are_followed(folder: Path) -> None:
    (folder / "variables" / "variables.index").rename(folder / "blob")
    linked(folder / "variables" / "variables.index", "../blob")
    assert load_network(folder).image_shape == (8, 8, 1)


def test_a_checkpoint_has_none_that_lead_out(tmp_path: Path) -> None:
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 1], "x")
        tf.identity(images * tf.compat.v1.get_variable("w", [1]), "out")
        session.run(tf.compat.v1.global_variables_initializer())
        prefix = tf.compat.v1.train.Saver().save(session, str(tmp_path / "a" / "model.ckpt"))
    other = Path(prefix + ".index").rename(tmp_path / "elsewhere")
    Path(prefix + ".index").symlink_to(other)
    unrelated = tmp_path / "a" / "pictures"
    unrelated.symlink_to(tmp_path)
    with pytest.raises(UntrustedModelError, match=r"model\.ckpt\.index leads out of"):
        load_network(prefix)


def test_labels_outside_are_no_classes(tmp_path: Path, saved: Path) -> None:
    model = tmp_path / "download" / "m.keras"
    model.parent.mkdir()
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)]).save(model)
    (tmp_path / "labels.txt").write_text("0 cat\n")
    linked(model.parent / "labels.txt", "../labels.txt")
    assert load_network(model).classes == ()


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(NetworkError):
        load_network(folder)


@pytest.mark.parametrize("name", ["m.pb", "m.pbtxt"])
def test_what_a_file_holds_is_not_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(f"node {{\n  name: {SECRET!r} {SECRET}\n}}")
    with pytest.raises(NetworkError) as caught:
        load_network(path)
    message = caught.value.message
    assert message.startswith(f"{path}: damaged, or no GraphDef, at line 2, column ")
    assert SECRET.split(":", 1)[0] not in message.removeprefix(str(path))
