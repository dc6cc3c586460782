"""What errors say in a traceback."""

from __future__ import annotations

import traceback

from cnnfeat.errors import DownloadError, Interrupted, OutputExistsError, UsageError


def test_a_traceback_shows_the_hint():
    error = UsageError("there is no layer 'conv9'", hint="did you mean 'conv2'?")
    shown = traceback.format_exception_only(error)
    assert shown[0].endswith("UsageError: there is no layer 'conv9'\n")
    assert shown[1:] == ["hint: did you mean 'conv2'?\n"]
    assert str(error) == "there is no layer 'conv9'"


def test_without_a_hint_there_is_no_note():
    for kind in (UsageError, OutputExistsError, DownloadError, Interrupted):
        assert not hasattr(kind("words"), "__notes__")
        assert kind("words", hint="do this").__notes__ == ["hint: do this"]
