"""The README says what there is: every command, every option it uses, every exit code."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

from cnnfeat import errors
from cnnfeat.cli import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def command_lines() -> list[str]:
    """Find all `cnnfeat ...` in code blocks and between backquotes."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines = [line.removeprefix("$ ") for line in lines]
    lines += re.findall(r"`(cnnfeat [^`]+)`", TEXT)
    return [line.split("#")[0] for line in lines if line.startswith("cnnfeat ")]


def load(name: str) -> click.Command:
    module, attribute = COMMANDS[name][0].split(":")
    return getattr(import_module(f"cnnfeat.cli.{module}"), attribute)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name: str):
    assert re.search(rf"^\|.*`cnnfeat {name}\b", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_every_command_line_is_one(line: str):
    words = [word for word in shlex.split(line.replace("…", "")) if word]
    if words[1].startswith(("--", "<")):  # of cnnfeat itself, or a placeholder
        return
    command = load(words[1])
    if isinstance(command, click.Group):
        assert len(words) < 3 or words[2].isupper() or words[2] in command.commands
        return
    known = {option for param in command.params for option in param.opts} | {"--help"}
    for word in words[2:]:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{words[1]} has no option {word}"


def test_every_exit_code_is_in_the_table():
    codes = {errors.SKIPPED_EXIT_CODE, 0, 130, 143}
    todo = [errors.CnnfeatError]
    while todo:
        error = todo.pop()
        codes.add(error.exit_code)
        todo.extend(error.__subclasses__())
    table = TEXT.split("| exit code |")[1].split("\n\n")[0]
    for code in codes:
        assert re.search(rf"\b{code}\b", table)


def test_the_two_commands_come_first():
    assert TEXT.index("./scripts/quickstart") < TEXT.index("./scripts/test") < TEXT.index("\n## ")
    for name in ("quickstart", "test"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111


def test_the_house_names_every_room():
    house = TEXT.split("src/cnnfeat/\n")[1].split("```")[0]
    rooms = {
        path.name if path.suffix else f"{path.name}/"
        for path in (ROOT / "src" / "cnnfeat").iterdir()
        if not path.name.startswith("__")
    }
    assert {room for room in rooms if room not in house} == set()


def python_blocks() -> list[str]:
    section = TEXT.split("### From Python\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_python_there_is_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each block in turn, on pictures of the sizes and with the names that it speaks of."""
    import keras
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    images = random.integers(0, 120, (60, 28, 28, 1)).astype(np.uint8)
    labels = np.arange(60) % 2
    images[labels == 1, :14] += 120
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        for folder in ("photos", "more-photos"):
            (tmp_path / folder / "ab"[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(tmp_path / folder / "ab"[label] / f"{number}.png")
    image = keras.Input((28, 28, 1))
    model = keras.Model(image, keras.layers.Conv2D(2, 3, name="conv1")(image))
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (None, 28, 28, 1), name="x")
        keep_prob = v1.placeholder(tf.float32, (), name="keep_prob")
        v1.get_variable("conv1/w", initializer=tf.ones((3, 3, 1, 2)))
        weights = v1.global_variables()[0]
        tf.nn.conv2d(x * keep_prob, weights, 1, "SAME", name="conv1/Conv2D")
        session = v1.Session(graph=graph)
        session.run(v1.global_variables_initializer())
    names = {"images": images, "labels": labels, "model": model, "graph": graph, "session": session}
    names["w"] = session.run(weights)
    blocks = python_blocks()
    assert len(blocks) == 3
    for block in blocks:
        exec(block.replace("epochs=20", "epochs=2"), names)  # noqa: S102 - what it is for
    assert set(names["found"].predicted) == {"a", "b"}
    assert names["machine"].score(images, labels) == 1
    assert (tmp_path / "live.h5").is_file()
