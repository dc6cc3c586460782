"""The command line. Each command lies in its own module, imported when it is run."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from cnnfeat.cli.session import Settings
from cnnfeat.errors import CnnfeatError, Interrupted, StorageError

# name: (module and attribute, what `cnnfeat --help` says of it), in the order people need them
COMMANDS = {
    "train": ("train:train", "Train a small convolutional network."),
    "layers": ("layers:layers", "List a network's layers and the tensors behind them."),
    "extract": ("extract:extract", "Write activations of named layers into a feature file."),
    "merge": ("merge:merge", "Make one feature file, or a set, of the shards in a folder."),
    "svm": ("svm:svm", "Train a support vector machine on the features."),
    "predict": ("predict:predict", "Label pictures with a trained SVM."),
    "run": ("run:run", "Run all stages from one TOML file; redo only what changed."),
    "plot": ("plot:plot", "Draw filters, activations, embeddings, errors ..."),
    "report": ("report:report", "Put everything on one self-contained HTML page."),
    "info": ("artifacts:info", "Say what a file is and where it came from."),
    "verify": ("artifacts:verify", "Check every block of a feature file."),
    "export": ("export:export", "Convert features to npz, csv, parquet, mat, h5ad ..."),
    "data": ("data:data", "List and fetch the sources known by name."),
    "doctor": ("doctor:doctor", "Say what is there to work with, and what to do about gaps."),
}

BROKEN_PIPE_EXIT_CODE = 128 + signal.SIGPIPE
COMPLETION_VARIABLE = "_CNNFEAT_COMPLETE"


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Name the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(import_module(f"cnnfeat.cli.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from cnnfeat import __version__

        click.echo(f"cnnfeat {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CNNFEAT"},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Get features out of convolutional networks and train SVMs on them.

    \b
    cnnfeat train                  a network on MNIST     -> artifacts/model.keras
    cnnfeat extract --layer conv2  its activations        -> artifacts/features.h5
    cnnfeat svm                    an SVM on the features -> artifacts/svm.skops

    cnnfeat COMMAND --help says what a command takes. For completion by Tab, in bash:

    \b
    eval "$(_CNNFEAT_COMPLETE=bash_source cnnfeat)"
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code that says how it went."""
    from cnnfeat.cli.console import fit_streams

    settings = Settings()
    fit_streams()
    # Keras would lock what it reads, and some file systems have no locks. HDF5 asks once.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    atexit.register(gc.freeze)  # else TensorFlow's objects are all walked once more, for 1 s
    signal.signal(signal.SIGTERM, _raise_terminated)
    words = list(sys.argv[1:] if args is None else args)
    code = 0
    try:
        _invoke(words, settings)
        sys.stdout.flush()
    except click.exceptions.Exit as request:
        code = request.exit_code
    except BrokenPipeError:
        # The reader left, as `head` does. Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE_EXIT_CODE
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _tell(error, words)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = 128 + signal.SIGINT
    except CnnfeatError as error:
        if settings.debug:
            raise
        code = _tell(error, words)
    except OSError as error:  # of a file, and of the system: a name too long, no permission
        if settings.debug or error.filename is None:
            raise
        code = _tell(StorageError(f"{os.fsdecode(error.filename)}: {error.strerror}"), words)
    except MemoryError as error:
        if settings.debug:
            raise
        code = _tell(StorageError(f"not enough memory: {error}".removesuffix(": ")), words)
    sys.exit(code)


def _invoke(args: list[str], settings: Settings) -> None:
    """Do what `click.Group.main` does, but leave Ctrl-C and closed pipes to us."""
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "cnnfeat", COMPLETION_VARIABLE, instruction))
    with cli.make_context("cnnfeat", args, obj=settings) as context:
        cli.invoke(context)


def _tell(error: CnnfeatError | click.ClickException, words: Sequence[str]) -> int:
    """Say what went wrong, and return the code to exit with."""
    from cnnfeat.cli.complaint import mistyped, show_error

    told = error if isinstance(error, CnnfeatError) else mistyped(error)
    show_error(told, words, root=cli)
    return told.exit_code


def _raise_terminated(signal_number: int, _frame: object) -> NoReturn:
    raise Interrupted("stopped by SIGTERM", signal_number=signal_number)
