"""The root of the command line: start-up, exit codes, messages."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest

import cnnfeat.cli
import cnnfeat.cli.flags
from cnnfeat import errors
from cnnfeat.cli import console, main
from cnnfeat.features import write_arrays

PYTHON = sys.executable
HEAVY = {"tensorflow", "keras", "sklearn", "scipy", "h5py", "matplotlib", "PIL", "numpy", "rich"}


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-m", "cnnfeat", *args],
        check=False,
        capture_output=True,
        text=True,
        **options,
    )


def loaded(code: str) -> tuple[str, set[str]]:
    """Run Python; return what it wrote and the modules it had loaded at its end."""
    code = f"import sys\ntry:\n    {code}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout, set(done.stderr.split())


def test_help_loads_nothing_heavy_and_little_more_than_click():
    text, modules = loaded("import cnnfeat.cli; cnnfeat.cli.main(['--help'])")
    assert "Get features out of convolutional networks" in text
    assert not HEAVY & {name.split(".")[0] for name in modules}
    # What is imported is what a start costs, on a machine of any speed.
    assert len(modules - loaded("import click")[1]) <= 50


@pytest.mark.parametrize("name", cnnfeat.cli.COMMANDS)
def test_every_command_has_help_and_says_what_the_list_says(name: str):
    location, summary = cnnfeat.cli.COMMANDS[name]
    module, attribute = location.split(":")
    command = getattr(import_module(f"cnnfeat.cli.{module}"), attribute)
    assert command.name == name
    assert command.help
    assert summary.endswith((".", "..."))
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    for leaf in commands:
        assert leaf.help
        for option in leaf.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts} says nothing of itself"


@pytest.mark.parametrize("name", cnnfeat.cli.COMMANDS)
def test_every_command_prints_its_help_without_tensorflow(name: str):
    text, modules = loaded(f"import cnnfeat.cli; cnnfeat.cli.main([{name!r}, '--help'])")
    assert text.startswith(f"Usage: cnnfeat {name}")
    assert not {"tensorflow", "sklearn"} & modules


def test_a_mistyped_command_offers_the_near_one():
    done = run("trian")
    assert done.returncode == 2
    assert done.stderr == "error: there is no command trian\nhint: did you mean 'train'?\n"


def test_input_is_checked_before_output(cnnfeat, tmp_path):
    for name in ("there.h5", "there.png", "there.html"):
        (tmp_path / name).write_text("")
    for words, said in [
        (["extract", "--model", "gone.keras", "-o", "there.h5"], "no model gone.keras"),
        (["extract", "-o", "there.h5"], "no model artifacts/model.keras"),
        (["svm", "gone.h5", "-o", "."], "no feature file gone.h5"),
        (["report", "--features", "gone.h5", "-o", "there.html"], "no feature file gone.h5"),
        (
            ["plot", "filters", "--layer", "a", "--model", "gone.keras", "-o", "there.png"],
            "no model gone.keras",
        ),
        (["plot", "top", "--unit", "1", "--features", "gone.h5", "-o", "there.png"], "gone.h5"),
        (
            ["plot", "activations", "--layer", "a", "--features", "gone.h5", "-o", "new/x.png"],
            "no feature file gone.h5",
        ),
        (["export", "gone.h5", "--to", "csv", "-o", "there.h5"], "no feature file gone.h5"),
    ]:
        code, _, err = cnnfeat(*words, folder=tmp_path)
        assert code == 2
        assert said in err, err
    assert {path.name for path in tmp_path.iterdir()} == {"there.h5", "there.png", "there.html"}


def test_version():
    assert run("--version").stdout == f"cnnfeat {cnnfeat.__version__}\n"


def invoke(monkeypatch: pytest.MonkeyPatch, action: object, *args: str) -> int:
    """Run `main` with one command that does `action`; return the exit code."""

    @click.command()
    @cnnfeat.cli.flags.common
    def command() -> None:
        action()

    module = type(sys)("cnnfeat.cli.probe")
    module.command = command
    monkeypatch.setitem(sys.modules, "cnnfeat.cli.probe", module)
    monkeypatch.setitem(cnnfeat.cli.COMMANDS, "probe", ("probe:command", "Probe."))
    kept = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            cnnfeat.cli.main(["probe", *args])
    finally:
        signal.signal(signal.SIGTERM, kept)
    return int(caught.value.code)


def raiser(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("bad"), 2),
        (errors.ConfigError("bad"), 2),
        (errors.OutputExistsError("bad"), 2),
        (errors.MissingInputError("bad"), 2),
        (errors.DataError("bad"), 3),
        (errors.FeatureFileError("bad"), 3),
        (errors.NetworkError("bad"), 4),
        (errors.LayerLookupError("bad"), 4),
        (errors.UntrustedModelError("bad"), 4),
        (errors.StorageError("bad"), 5),
        (errors.DownloadError("bad"), 5),
        (errors.Interrupted("bad"), 130),
        (errors.Interrupted("bad", signal_number=15), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(monkeypatch, capsys, error: BaseException, code: int):
    assert invoke(monkeypatch, raiser(error)) == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_shows_message_and_hint(monkeypatch, capsys):
    invoke(monkeypatch, raiser(errors.DataError("no such image", hint="try another")))
    assert capsys.readouterr().err == "error: no such image\nhint: try another\n"


def test_debug_shows_the_traceback(monkeypatch):
    with pytest.raises(errors.DataError):
        invoke(monkeypatch, raiser(errors.DataError("bad")), "--debug")


def test_what_holds_for_all_is_said_once_and_each_warning_is(monkeypatch, capsys):
    def action() -> None:
        for _ in range(2):
            for level in (logging.INFO, logging.WARNING):
                logging.getLogger("cnnfeat").log(level, "pictures are brought to %d×%d", 8, 8)

    for _ in range(2):  # a command doesn't know what another one said
        assert invoke(monkeypatch, action) == 0
        said = "pictures are brought to 8×8\n"
        assert capsys.readouterr().err == said + 2 * f"warning: {said}"


@pytest.mark.parametrize(("words", "told"), [([], False), (["-v"], True), (["-q"], False)])
def test_what_matplotlib_says_of_itself_is_heard_with_v(monkeypatch, words, told):
    assert invoke(monkeypatch, lambda: None, *words) == 0
    said = logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.WARNING)
    assert said == told


def test_sigterm_exits_143(monkeypatch):
    def action() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert invoke(monkeypatch, action) == 143


def test_a_closed_pipe_is_no_traceback():
    command = f"{PYTHON} -m cnnfeat --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode in (0, cnnfeat.cli.BROKEN_PIPE_EXIT_CODE)  # 0: written before the end
    assert done.stderr == ""


def test_a_table_into_a_closed_pipe_is_no_error_of_ours():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [PYTHON, "-m", "cnnfeat", "data", "list"],
            check=False,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (cnnfeat.cli.BROKEN_PIPE_EXIT_CODE, "")


def test_exit_does_not_walk_all_objects_once_more():
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0));"
        "from cnnfeat.cli import main; main(['--version'])"
    )
    done = subprocess.run([PYTHON, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True"


def test_an_option_comes_from_flag_then_environment_then_file(tmp_path, monkeypatch):
    from cnnfeat.cli.train import train

    (tmp_path / "a.toml").write_text("[train]\nepochs = 3\nseed = 30\npatience = 300\n", "utf-8")
    args = ["--config", str(tmp_path / "a.toml"), "--epochs", "1"]
    monkeypatch.setenv("CNNFEAT_TRAIN_EPOCHS", "2")
    monkeypatch.setenv("CNNFEAT_TRAIN_SEED", "20")
    context = train.make_context("train", args, auto_envvar_prefix="CNNFEAT_TRAIN")
    values = {name.rpartition("__")[2]: value for name, value in context.params.items()}
    assert (values["epochs"], values["seed"], values["patience"]) == (1, 20, 300)
    assert values["batch_size"] == 128


def test_a_value_out_of_range_says_the_range():
    done = run("train", "--epochs", "0")
    assert done.returncode == 2
    assert "--epochs must be at least 1 and at most 100000, not 0" in done.stderr
    done = run("train", "--batch-size", "0")
    assert done.returncode == 2
    assert "--batch-size must be at least 1" in done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_names_that_a_terminal_has_no_letters_for_are_escaped(
    cnnfeat_features, monkeypatch, encoding
):
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.BytesIO()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(streams[name], encoding))
    for words in (["info", str(cnnfeat_features)], ["info", "犬.h5"]):
        with pytest.raises(SystemExit):
            main(words)
    for name in streams:
        getattr(sys, name).flush()
    assert b"classes" in streams["stdout"].getvalue()
    assert rb"\u72ac" in streams["stdout"].getvalue()
    assert rb"error: no file \u72ac.h5" in streams["stderr"].getvalue()


@pytest.fixture
def cnnfeat_features(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    X = np.zeros((2, 3), np.float32)
    write_arrays(path, {"all": {"fc": X}}, labels={"all": np.arange(2)}, classes=("犬", "b"))
    return path


def test_hdf5_takes_no_locks(cnnfeat, monkeypatch):
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    cnnfeat("--version")
    assert os.environ["HDF5_USE_FILE_LOCKING"] == "FALSE"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m.png", r"a\x1b[31m.png"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202egnp.a", r"\u202egnp.a"),
        ("\udcff.png", r"\udcff.png"),
        ("犬 é", "犬 é"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text, shown, capsys):
    console.show(text)
    assert capsys.readouterr().out == shown + "\n"
    console.say(text)
    kept = "\n" in text
    assert capsys.readouterr().err == (text if kept else shown) + "\n"


@pytest.mark.parametrize("words", ["Unable to allocate 8.00 TiB for an array", ""])
def test_memory_that_runs_out_is_told_in_one_line(words, monkeypatch, capsys):
    def exhausted(*_: object) -> None:
        raise MemoryError(words)

    monkeypatch.setattr(cnnfeat.cli, "_invoke", exhausted)
    with pytest.raises(SystemExit) as stopped:
        main(["info", "f.h5"])
    assert stopped.value.code == 5
    said = f"error: not enough memory: {words}" if words else "error: not enough memory"
    assert capsys.readouterr().err == f"{said}\n"
