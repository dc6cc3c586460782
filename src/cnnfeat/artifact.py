"""Says what a file is and where it came from, by what is in it and never by its name.

Nothing is loaded: HDF5 attributes, JSON, and the small members of zip archives are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from cnnfeat.archives import Archive, is_archive
from cnnfeat.card import CARD_FORMAT, ModelCard
from cnnfeat.documents import Name, parse_document, read_document, take_up
from cnnfeat.errors import CnnfeatError, DataError, MissingInputError
from cnnfeat.features import FeatureFile, StoredLayer, is_set
from cnnfeat.features.inventory import SET_FORMAT
from cnnfeat.network.standing import describe_standing
from cnnfeat.parts import Part
from cnnfeat.records import Json, Parts
from cnnfeat.regular import open_regular
from cnnfeat.result import SVM_FORMAT, SvmResult
from cnnfeat.stages import BOOK_FORMAT, describe_book

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a file is."""

    path: str
    kind: str  # "feature file", "feature set", "network", "network card", "SVM", "SVM result" ...
    facts: Mapping[str, Json]  # where it came from and what it holds
    layers: Mapping[str, tuple[StoredLayer, ...]]  # of a feature file, by split


def describe_file(path: Path) -> Artifact:
    """Say what a file is and where it came from.

    Raises
    ------
    MissingInputError
        If there is none.
    DataError
        If it is of no kind that is known here, or damaged.
    """
    if is_set(path):
        return _features(path)
    if path.is_dir():
        raise DataError(
            f"{path} is a folder, not a regular file, and there are no shards in it",
            hint="name a file that cnnfeat has made, or the folder of a set",
        )
    try:
        with open_regular(path) as file:
            head = file.read(8)
    except FileNotFoundError as error:
        raise MissingInputError(
            f"no file {path}",
            hint="`cnnfeat train`, `cnnfeat extract` and `cnnfeat svm` make files",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: can't be read: {error.strerror}", hint="name a file that cnnfeat has made"
        ) from error
    if head == _HDF5:
        return _features(path)
    if head[:4] == _ZIP:
        return _archive(path)
    if head.lstrip()[:1] == b"{":
        return _document(path)
    if re.fullmatch(rb"[0-9a-f]{8}", head):
        return Artifact(str(path), "interrupted training", describe_standing(path), {})
    raise _unknown(path, f"it begins with {head!r}" if head else "it is empty")


def _unknown(path: Path, found: str) -> DataError:
    return DataError(
        f"{path} is no file that cnnfeat makes: {found}",
        hint="feature files, model.keras, model.json, svm.skops, svm.json, run.json and what an "
        "interrupted training leaves are known",
    )


def _features(path: Path) -> Artifact:
    with FeatureFile(path) as file:
        facts: dict[str, Json] = dict(file.attributes)
        facts["classes"] = file.classes
        facts["rows"] = {split: file.n_rows(split) for split in file.splits}
        parts = {split: file.parts(split) for split in file.splits}
        facts["parts"] = {split: _counts(found) for split, found in parts.items()}
        groups = {split: file.groups(split) for split in file.splits}
        facts["groups"] = {
            split: None if found is None else len(np.unique(found))
            for split, found in groups.items()
        }
        facts["blocks"] = {split: file.n_blocks(split) for split in file.splits}
        facts["skipped"] = {
            split: [[item.row, item.id, item.reason] for item in file.skipped(split)]
            for split in file.splits
        }
        layers = {
            split: tuple(file.layer(split, name) for name in file.layers) for split in file.splits
        }
        if path.is_dir():
            facts["shards"] = file.n_pieces
    kind = "feature set" if path.is_dir() else "feature file"
    return Artifact(str(path), kind, facts, layers)


def _counts(parts: Parts | None) -> dict[str, Json] | None:
    """Count the rows of each part; None where they are unknown."""
    if parts is None:
        return None
    return {part.name.lower(): int(np.count_nonzero(parts == part)) for part in Part}


def _archive(path: Path) -> Artifact:
    with Archive(path) as archive:
        names = archive.names
        name = "metadata.json" if "config.json" in names else "schema.json"
        if name not in names:
            raise _unknown(path, f"a zip archive of {len(names)} other files")
        text = archive.read(name)
    try:
        document = parse_document(text, finite=False)
        return (_svm if name == "schema.json" else _network)(path, document)
    except ValueError as error:
        raise DataError(f"{path}: its {name} can't be read: {error}") from error


class _KerasNote(TypedDict, total=False):
    """What Keras writes of a file into it."""

    keras_version: Name
    date_saved: Name


_SkopsNote = TypedDict(
    "_SkopsNote", {"__module__": Name, "__class__": Name, "_skops_version": Name}, total=False
)


def _network(path: Path, metadata: Mapping[str, object]) -> Artifact:
    note = take_up(_KerasNote, metadata, at="metadata.json")
    facts: dict[str, Json] = {"keras": note.get("keras_version"), "saved": note.get("date_saved")}
    return _with_companion(path, "network", facts, CARD_FORMAT)


def _svm(path: Path, schema: Mapping[str, object]) -> Artifact:
    note = take_up(_SkopsNote, schema, at="schema.json")
    facts: dict[str, Json] = {
        "class": f"{note.get('__module__')}.{note.get('__class__')}",
        "skops": note.get("_skops_version"),
    }
    return _with_companion(path, "SVM", facts, SVM_FORMAT)


def _with_companion(path: Path, kind: str, facts: dict[str, Json], wanted: str) -> Artifact:
    """Add what the JSON file beside it says, where there is one of the right kind."""
    beside = path.with_suffix(".json")
    try:
        document = read_document(beside)
    except (OSError, ValueError):
        document = {}
    if document.get("format") == wanted:
        facts[beside.name] = cast("dict[str, Json]", document)
    return Artifact(str(path), kind, facts, {})


def _document(path: Path) -> Artifact:
    try:
        document = read_document(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no JSON that can be read: {error}") from error
    found = document.get("format")
    if found == CARD_FORMAT:
        kind = "network card"
        ModelCard.from_json(document, path=path)
    elif found == SVM_FORMAT:
        kind = "SVM result"
        SvmResult.from_json(document, path=path)
    elif found == SET_FORMAT:
        raise DataError(
            f"{path} is the manifest of a feature set, which is its folder",
            hint=f"name {path.parent}",
        )
    elif found == BOOK_FORMAT:
        return Artifact(str(path), "record of a run", describe_book(path), {})
    else:
        raise _unknown(path, f"JSON with format {found!r:.60}")
    return Artifact(str(path), kind, cast("dict[str, Json]", document), {})


def layer_names(path: Path) -> tuple[str, ...]:
    """Name the layers of a feature file or of a Keras archive, as far as it says them itself.

    Raises
    ------
    CnnfeatError
        If it can't be read.
    """
    if is_set(path) or not is_archive(path):
        with FeatureFile(path) as file:
            return file.layers
    with Archive(path) as archive:
        text = archive.read("config.json")
    try:
        return tuple(dict.fromkeys(_names_in(parse_document(text, finite=False))))
    except ValueError as error:
        raise DataError(f"{path}: its config.json can't be read: {error}") from error


def _names_in(model: object, before: str = "") -> Iterator[str]:
    """The layers of a model's configuration; of models in it, with its name before theirs."""
    config = model.get("config") if isinstance(model, Mapping) else None
    layers = config.get("layers") if isinstance(config, Mapping) else None
    for layer in layers if isinstance(layers, list) else ():
        inner = layer.get("config") if isinstance(layer, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str):
            yield before + name
            yield from _names_in(layer, f"{before}{name}/")


def summary(artifact: Artifact) -> list[tuple[str, str]]:
    """Say the main facts in words, for people."""
    path, facts = Path(artifact.path), artifact.facts
    lines = [("file", f"{artifact.path}: {artifact.kind}")]
    if artifact.kind in ("feature file", "feature set"):
        return lines + _features_summary(facts)
    if artifact.kind == "interrupted training":
        return lines + _standing_summary(facts)
    if artifact.kind == "record of a run":
        return lines + [(name, str(said)) for name, said in facts.items()]
    show = _card_summary if artifact.kind in ("network", "network card") else _svm_summary
    if artifact.kind in ("network card", "SVM result"):
        return lines + show(facts, path)
    for name, value in facts.items():
        if isinstance(value, str):
            lines.append((name, value))
        elif isinstance(value, Mapping):  # the JSON file beside it
            try:
                lines += show(value, path.parent / name)
            except CnnfeatError as error:
                lines.append((name, str(error)))
    return lines


def _features_summary(facts: Mapping[str, Json]) -> list[tuple[str, str]]:
    accuracy = facts.get("network_test_accuracy")
    known = f", test accuracy {accuracy:.2%}" if isinstance(accuracy, float) else ""
    skipped = facts["skipped"]
    left_out = sum(map(len, skipped.values())) if isinstance(skipped, dict) else 0
    n_shards = facts.get("shards")
    lines = [
        *([] if n_shards is None else [("shards", f"{n_shards:,}")]),
        ("network", f"{facts.get('network', 'unknown')} ({facts.get('network_format')}){known}"),
        ("network SHA-256", str(facts.get("network_sha256", "unknown"))),
        ("source", f"{facts.get('source', 'unknown')} ({facts.get('source_kind')})"),
        (
            "source SHA-256",
            f"{facts.get('source_fingerprint')}, of {facts.get('source_fingerprint_method')}",
        ),
        *([("not steady", str(unsteady))] if (unsteady := facts.get("network_unsteady")) else []),
        ("preprocessing", str(facts.get("preprocessing", "unknown"))),
        ("precision", str(facts.get("precision", "unknown"))),
        *([("device", str(device))] if (device := facts.get("device")) else []),
        ("engine", str(facts.get("engine", "tensorflow"))),
        (
            "created",
            f"{facts.get('created')} by cnnfeat {facts.get('cnnfeat')}, "
            f"TensorFlow {facts.get('tensorflow')}, h5py {facts.get('h5py')}",
        ),
        ("classes", ", ".join(map(str, _items(facts.get("classes")))) or "none"),
        ("seen by the network", _parts_text(facts.get("parts"))),
    ]
    return lines + ([("left out", f"{left_out:,} samples; --json lists them")] if left_out else [])


def _parts_text(parts: Json) -> str:
    """Say of each split what the network has seen: "train: 54,000 fitted, 6,000 validation"."""
    said = []
    for split, counts in parts.items() if isinstance(parts, Mapping) else ():
        rows = counts.items() if isinstance(counts, Mapping) else ()
        words = ", ".join(f"{n:,} {part}" for part, n in rows if n)
        said.append(f"{split}: {words or 'unknown'}")
    return "; ".join(said)


def _standing_summary(facts: Mapping[str, Json]) -> list[tuple[str, str]]:
    settings = facts["settings"]
    said = settings if isinstance(settings, Mapping) else {}
    return [
        ("done", f"{facts['done']}, in {facts['elapsed_s']:.0f} s"),
        *((name, str(value)) for name, value in said.items() if value != "not given"),
        ("goes on by", "the same cnnfeat train with --resume; cnnfeat run does so by itself"),
    ]


def _card_summary(facts: Mapping[str, Json], path: Path) -> list[tuple[str, str]]:
    card = ModelCard.from_json(facts, path=path)
    source = card.source
    return [
        ("trained on", f"{card.source_name} ({source.get('kind')}), {card.n_train} images"),
        ("divided", _division_text(card)),
        ("source SHA-256", f"{source.get('fingerprint')}, of {source.get('fingerprint_method')}"),
        (
            "accuracy",
            f"validation {_validation(card)}, test {_percent(card.test_accuracy)}",
        ),
        ("epochs", _epochs_text(card)),
        ("created", f"{card.created} by cnnfeat {card.cnnfeat}, TensorFlow {card.tensorflow}"),
        ("model SHA-256", card.model_sha256),
    ]


def _validation(card: ModelCard) -> str:
    known = card.n_validation or card.validation_accuracy is not None
    return _percent(card.validation_accuracy) if known else "none"


def _epochs_text(card: ModelCard) -> str:
    """Say how many, and which one's weights were kept, of each network: "6, best 5"."""
    texts = [
        f"{len(one['history'])}, "
        + ("the last kept" if one["best_epoch"] is None else f"best {one['best_epoch']}")
        for one in card.trainings
    ]
    if len(texts) == 1:
        return texts[0]
    return "; ".join(
        f"seed {one['seed']}: {text}" for one, text in zip(card.trainings, texts, strict=True)
    )


def _division_text(card: ModelCard) -> str:
    """Say which rows the network has seen: "240 fitted to, 24 picked the epoch, 60 never seen"."""
    division = card.division or {}
    fraction, seed = division.get("test_fraction"), division.get("seed")
    rows = (
        f"{card.n_train:,} images fitted to, {card.n_validation:,} picked the epoch, "
        f"{card.n_test:,} never seen"
    )
    if fraction is None:
        return rows
    return f"{rows} (--test-fraction {fraction}, --seed {seed})"


def _svm_summary(facts: Mapping[str, Json], path: Path) -> list[tuple[str, str]]:
    result = SvmResult.from_json(facts, path=path)
    best = result.best
    return [
        ("layer", f"{best.layer} ({best.n_features} features)"),
        *([("joined of", result.joined_words)] if best.joined else []),
        ("machine", f"{result.kernel} kernel, C = {best.C}, {result.n_train} training rows"),
        (result.score_name, result.score_words),
        *([("note", result.note)] if result.note else []),
        *(
            (
                "features",
                f"{one.get('path')}, from {one.get('source')} through {one.get('network')}",
            )
            for one in result.files or (result.features,)
        ),
    ]


def _items(value: Json) -> list[Json]:
    return list(value) if isinstance(value, list | tuple) else []


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"
