"""What can go wrong, as one tree.

::

    CnnfeatError                              exit code
    ├── UsageError         (ValueError)           2    an option or argument that can't be
    │   ├── ConfigError                           2    a key, type or value in a TOML file
    │   ├── OutputExistsError (FileExistsError)   2    an output stands where one would be written
    │   └── MissingInputError (FileNotFoundError) 2    no model or no feature file yet
    ├── DataError          (ValueError)           3    pictures, labels, data files
    │   ├── ImageError                            3    one picture that can't be read
    │   ├── ArchiveError                          3    a zip archive that is damaged, or none
    │   │   └── UnsafeArchiveError                3    one that is made to do harm
    │   └── FeatureFileError                      3    a feature or SVM file, damaged or foreign
    ├── NetworkError       (ValueError)           4    a network that can't be read or used
    │   ├── MisfitError                           4    images whose shape doesn't go through it
    │   ├── LayerLookupError (LookupError)        4    a layer name that means none, or several
    │   └── UntrustedModelError                   4    a model that would do more than compute
    ├── UnendingError                         4    a network that takes longer than one waits for it
    ├── StorageError       (OSError)              5    disk, memory, permissions
    │   ├── LockedError                           5    another process writes the same output
    │   └── DownloadError                         5    no mirror answered with the right bytes
    └── Interrupted                           130, 143  Ctrl-C, SIGTERM

An extraction that finished with samples left out is no error, but exits 6 (`SKIPPED_EXIT_CODE`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SKIPPED_EXIT_CODE = 6


class CnnfeatError(Exception):
    """The root of all errors a user can cause.

    Parameters
    ----------
    message : str
        What was given and what is allowed, in one or two sentences.
    hint : str, optional
        What to do now: a command, an option, near names. A traceback shows it too, as a note.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return self.message


class UsageError(CnnfeatError, ValueError):
    """An option or argument that can't be."""

    exit_code = 2


class ConfigError(UsageError):
    """A key, type or value in a TOML file that can't be."""


class OutputExistsError(UsageError, FileExistsError):
    """An output stands where one would be written."""


class MissingInputError(UsageError, FileNotFoundError):
    """A model or feature file that has not been made yet."""


class DataError(CnnfeatError, ValueError):
    """Pictures, labels or a data file that can't be used."""

    exit_code = 3


class ImageError(DataError):
    """One picture that can't be read."""


class ArchiveError(DataError):
    """A zip archive that can't be read; what it was to be says which error it becomes."""


class UnsafeArchiveError(ArchiveError):
    """One that would write outside itself, or fill the memory."""


class FeatureFileError(DataError):
    """A feature file or an SVM file that is damaged, incomplete or foreign."""


class NetworkError(CnnfeatError, ValueError):
    """A network that can't be read, or can't be used on these pictures."""

    exit_code = 4


class MisfitError(NetworkError):
    """Images whose shape doesn't go through a network, where others may."""


class LayerLookupError(NetworkError, LookupError):
    """A layer name that means no tensor, or several."""


class UntrustedModelError(NetworkError):
    """A model file that would do more than compute."""


class UnendingError(CnnfeatError):
    """A network that takes longer to open or to compute than its user waits.

    No `NetworkError`: nothing goes on without that network.
    """

    exit_code = 4


class StorageError(CnnfeatError, OSError):
    """The disk is full, read-only, or out of reach."""

    exit_code = 5


class LockedError(StorageError):
    """Another process writes the same output."""


class DownloadError(StorageError):
    """No mirror answered, or none with the right bytes."""


class Interrupted(CnnfeatError):  # noqa: N818 - a request, no error
    """The user (Ctrl-C) or the system (SIGTERM) asked to stop.

    Parameters
    ----------
    message : str
        What was saved.
    signal_number : int
        The signal; the exit code is 128 more.
    hint : str, optional
        The command that goes on from here.
    """

    def __init__(self, message: str, *, signal_number: int = 2, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def near_names(name: str, choices: Iterable[str], *, limit: int = 3) -> str:
    """Say which of `choices` a mistyped `name` may have meant: "did you mean 'conv2'?", or ""."""
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), folded, n=limit, cutoff=0.6)
    if not near:
        return ""
    return "did you mean " + " or ".join(repr(folded[match]) for match in near) + "?"
