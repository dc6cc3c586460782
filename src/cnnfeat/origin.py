"""How features came to be, as a file says it; and the same network, opened as it was then.

A feature file's root and a saved machine's metadata hold the same facts. Paths in them are a
stranger's words: they are followed into the folder of the file that holds them and into the
current folder, and nowhere else unless the user names the path too. Trust is never recorded.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cnnfeat.address import APPLICATION
from cnnfeat.errors import ConfigError, FeatureFileError, NetworkError, UntrustedModelError
from cnnfeat.knobs import from_record
from cnnfeat.options import (
    LIVE,
    DataOptions,
    ExtractOptions,
    FitOptions,
    ReadOptions,
)
from cnnfeat.provenance import Provenance

if TYPE_CHECKING:
    from cnnfeat.network import Network

T = TypeVar("T")

_WORDS = ("imagenet", "none")  # --weights that are no paths


def recorded_reading(
    said: Provenance, *, beside: Path, read: ReadOptions | None = None
) -> ReadOptions:
    """How the network was read; nothing special where the file is older than that record.

    Parameters
    ----------
    said : Provenance
        Of a feature file or a machine.
    beside : Path
        The file that they are from.
    read : ReadOptions, optional
        What goes before what was recorded.

    Raises
    ------
    UntrustedModelError
        If it names a file of weights that lies where the user has not pointed.
    NetworkError
        If there are no such weights any more.
    """
    recorded = dataclasses.replace(_options(ReadOptions, said, "model"), imports=())  # asked anew
    whole = recorded if read is None else read.over(recorded)
    for name in ("weights", "architecture"):
        value = getattr(whole, name)
        known = value in (None, *_WORDS) or str(value).startswith(APPLICATION)
        if known or (read and getattr(read, name)):
            continue
        where = _followed(str(value), beside, f"--{name}")
        if not Path(where).exists():
            raise _gone(name, where, beside, f"--{name}")
        whole = dataclasses.replace(whole, **{name: where})  # type: ignore[arg-type]
    return whole


def recorded_probe(said: Provenance, *, pool: str = "none") -> ExtractOptions:
    """How activations were computed, by what was left open as it came to be.

    Raises
    ------
    FeatureFileError
        If that is not known here.
    """
    done = said.preprocessing
    came_to = {
        "precision": said.precision,
        "pool": pool,
        "scale": done.get("scale"),
        "resize": done.get("resize"),
        "fit": done.get("fit"),
        "device": "auto",  # as this machine has it: features differ by rounding alone
        "engine": "auto",  # both give the same, and here there may be one alone
    }
    return _options(ExtractOptions, said, "extract", **came_to)


def recorded_fitting(said: Provenance) -> FitOptions:
    """What images were brought to, by the extraction or as they were read."""
    data, probe = recorded_data(said), recorded_probe(said)
    return FitOptions(
        resize=probe.resize or data.resize, fit=probe.fit or data.fit, invert=data.invert
    )


def recorded_pixels(said: Provenance) -> str | None:
    """The dtype that images had; None where the file is older than that record."""
    found = said.preprocessing.get("pixels")
    return None if found is None else str(found)


def _options(kind: type[T], said: Provenance, table: str, **came_to: object) -> T:
    """Make a record of what a file keeps of a table; files older than that keep nothing."""
    try:
        return from_record(kind, {**said.options.get(table, {}), **came_to})
    except ConfigError as error:
        raise FeatureFileError(
            f"made by another version of cnnfeat, with an option that can't be done again: {error}",
            hint="extract the features again, or use that version",
        ) from error


def recorded_data(said: Provenance, *, data_dir: Path | None = None) -> DataOptions:
    """How the images were opened; by name, a data set is looked for in `data_dir` first."""
    options = _options(DataOptions, said, "data", labels=said.source_labels)
    folder = None if data_dir is None else str(data_dir)
    return dataclasses.replace(options, source=said.source, dir=folder)


def network_spec(said: Provenance, *, beside: Path) -> str:
    """Find the network that a file names, as `load_network` takes it.

    Parameters
    ----------
    said : Provenance
        Of a feature file or a machine.
    beside : Path
        The file that they are from.

    Raises
    ------
    UntrustedModelError
        If the path leads to where the user has not pointed.
    NetworkError
        If it lived in a program, and lies in no file.
    """
    recorded = said.network or "model.keras"
    if recorded.startswith(LIVE):
        raise NetworkError(
            f"{beside} was made with a network that lived in a program, "
            f"{recorded.removeprefix(LIVE)!r}: there is no file to open",
            hint="in that program: cnnfeat.load_machine(..., network=...); elsewhere save the "
            "network, and extract and train again with the file",
        )
    return recorded if recorded.startswith(APPLICATION) else _followed(recorded, beside, "--model")


def recorded_network(said: Provenance, *, beside: Path) -> str:
    """Find the network that a file names, as `network_spec` does; it must be there.

    Raises
    ------
    UntrustedModelError
        If the path leads to where the user has not pointed.
    NetworkError
        If there is none any more; with where it was looked for.
    """
    spec = network_spec(said, beside=beside)
    if not network_exists(spec):
        raise _gone("network", spec, beside, "--model")
    return spec


def network_exists(spec: str) -> bool:
    """Whether there is such a network: a file, a folder, files of a checkpoint, or keras:NAME."""
    path = Path(spec)
    if spec.startswith(APPLICATION) or path.exists():
        return True
    return any(path.parent.glob(f"{glob.escape(path.name)}.*"))


def open_recorded(
    said: Provenance,
    *,
    beside: Path,
    model: object = None,
    read: ReadOptions | None = None,
    trust: bool = False,
) -> Network:
    """Open the network that features came from, read as it was read for them.

    Parameters
    ----------
    said : Provenance
        Of a feature file or a machine.
    beside : Path
        The file that they are from.
    model : str, Path, keras.Model, tf.Graph or Network, optional
        The network instead of the recorded one; one that is open is taken as it is.
    read : ReadOptions, optional
        What goes before the recorded reading.
    trust : bool
        Run operations with side effects too.

    Raises
    ------
    UntrustedModelError
        If a recorded path leads to where the user has not pointed, or the network holds code.
    NetworkError
        If it can't be read.
    """
    from cnnfeat.network import Network, open_network  # TensorFlow takes seconds

    if isinstance(model, Network):
        return model
    how = recorded_reading(said, beside=beside, read=read)
    spec = recorded_network(said, beside=beside) if model in (None, "") else model
    return open_network(spec, how, trust=trust)


def _followed(recorded: str, beside: Path, flag: str) -> str:
    """Where a recorded path leads, links followed, if it may be."""
    if "\0" in recorded:
        raise UntrustedModelError(f"{beside} names {recorded!r}, which no file can be called")
    folder, here = _real(beside.absolute().parent), _real(Path.cwd())
    path, own = _real(here / recorded), folder / Path(recorded).name
    pointed_at = [folder] if here == here.parent else [folder, here]  # "/" points at nothing
    if any(path.is_relative_to(place) for place in pointed_at):
        if path.exists() or not own.exists():
            return recorded
    elif not own.exists():
        there = _is_there(path)
        raise UntrustedModelError(
            f"{beside} names {recorded}, which lies neither beside it nor in the current folder"
            + ("" if there else ", and can't be found"),
            hint=f"if you know where {beside.name} comes from: {flag} {recorded}"
            if there
            else f"{flag} FILE says where it is now",
        )
    return str(beside.parent / own.name)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike `resolve`, also where links lead in a circle


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that the user may not read
        return False


def _gone(what: str, recorded: str, beside: Path, flag: str) -> NetworkError:
    """Make the error for a file that has moved since."""
    places = (Path.cwd() / recorded, beside.absolute().parent / Path(recorded).name)
    looked = " and ".join(dict.fromkeys(str(place) for place in places))
    return NetworkError(
        f"the {what} of {beside} can't be found: looked for {looked}",
        hint=f"{flag} FILE says where it is now",
    )
