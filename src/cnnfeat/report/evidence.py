"""What a run left behind, opened; and what of it is missing, in words."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.card import ModelCard, file_sha256, read_card
from cnnfeat.data import open_data
from cnnfeat.errors import CnnfeatError, DataError, FeatureFileError, MissingInputError, UsageError
from cnnfeat.features import FeatureFile
from cnnfeat.options import ReadOptions
from cnnfeat.origin import network_exists, network_spec, open_recorded, recorded_data
from cnnfeat.pictures import Pictures
from cnnfeat.progress import SILENT, Progress
from cnnfeat.regular import read_text
from cnnfeat.result import SvmResult, read_result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnfeat.network import Network
    from cnnfeat.records import Source

_ANEW = "run cnnfeat svm --overwrite"


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Where the outputs of the stages lie, and how the network among them is opened."""

    # As `open_network` takes it. None: the one that the features came from; where there are none
    # yet, the `model.keras` beside their place.
    model: str | None
    features: Path
    svm: Path  # svm.json
    predictions: Path  # predictions.csv
    read: ReadOptions | None = None  # goes before how the network was read for the features
    trust: bool = False  # whether it may run operations with side effects

    @classmethod
    def in_folder(cls, folder: Path, *, trust: bool = False) -> Artifacts:
        """Give all of them their default names; the network is the features' own."""
        return cls(
            None,
            folder / "features.h5",
            folder / "svm.json",
            folder / "predictions.csv",
            trust=trust,
        )

    def name_model(self, file: FeatureFile | None = None) -> str:
        """Say which network is meant, whether or not it is there.

        Raises
        ------
        UntrustedModelError
            If the features name one that lies where the user has not pointed.
        """
        if self.model is not None:
            return self.model
        if file is not None:
            return network_spec(file.provenance, beside=file.path)
        if not self.features.exists():
            return str(self.features.with_name("model.keras"))
        with FeatureFile(self.features) as features:
            return self.name_model(features)

    def find_model(self, file: FeatureFile | None = None) -> str | None:
        """Say which network would be opened; None where there is none of that name."""
        spec = self.name_model(file)
        return spec if network_exists(spec) else None

    def open_model(self, file: FeatureFile | None = None) -> Network:
        """Open the network: with features, as it was read for them."""
        if file is None and (self.model is not None or not self.features.exists()):
            from cnnfeat.network import open_network  # TensorFlow takes seconds

            return open_network(self.name_model(), self.read or ReadOptions(), trust=self.trust)
        if file is None:
            with FeatureFile(self.features) as features:
                return self.open_model(features)
        return open_recorded(
            file.provenance, beside=file.path, model=self.model, read=self.read, trust=self.trust
        )

    def read_card(self) -> ModelCard | None:
        """Read the card of the network that is meant; None where it has none.

        Raises
        ------
        NetworkError
            If it is a card, but can't be read.
        """
        model = Path(self.name_model())
        return read_card(model, sha256=file_sha256(model) if model.is_file() else None)


@dataclass(frozen=True, slots=True)
class Predictions:
    """The SVM's answers for rows of a feature file."""

    split: str
    rows: NDArray[np.int64]  # (n_samples,) rows of the split
    labels: NDArray[np.int64]  # true classes
    predicted: NDArray[np.int64]
    margins: NDArray[np.float64]

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Places of the misclassified samples, the surest mistakes first."""
        places = np.flatnonzero(self.labels != self.predicted)
        return places[np.argsort(-self.margins[places], kind="stable")]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All there is to show. What is None is explained in `missing`."""

    file: FeatureFile
    svm: SvmResult | None
    predictions: Predictions | None
    pictures: Pictures | None
    network: Network | None
    card: ModelCard | None
    missing: tuple[str, ...]

    @property
    def split(self) -> str:
        """The split that is shown: the one the SVM was tested on, or the last."""
        return self.predictions.split if self.predictions else self.file.splits[-1]

    @property
    def machine_layer(self) -> str | None:
        """The layer that the SVM is on; of several files, what of it is in this one.

        Without an SVM, the last one of the file.
        """
        last = next(reversed(self.file.layers), None)
        if self.svm is None or not self.svm.files:
            return last if self.svm is None else self.svm.best.layer
        own = [
            one.layer
            for one in self.svm.best.joined
            if one.layer in self.file.layers
            and not _differs(self.svm.files[one.file], self.file.attributes)
        ]
        return "+".join(dict.fromkeys(own)) or last


@contextmanager
def open_evidence(
    artifacts: Artifacts,
    *,
    data_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Iterator[Evidence]:
    """Open everything a run left behind; only the feature file must be there.

    Parameters
    ----------
    artifacts : Artifacts
        Where to look.
    data_dir : Path, optional
        Where named data sets lie.
    progress : Progress
        Told of downloads.

    Raises
    ------
    MissingInputError
        If there is no feature file.
    FeatureFileError
        If it is damaged.
    """
    missing: list[str] = []
    with ExitStack() as stack:
        file = stack.enter_context(FeatureFile(artifacts.features))
        svm, predictions = _open_svm(artifacts, file, missing)
        pictures = None
        try:
            pictures = stack.enter_context(
                open_pictures(file, data_dir=data_dir, progress=progress)
            )
        except CnnfeatError as error:
            missing.append(f"No pictures of the images: {error}.")
        network, card = _open_network(artifacts, file, missing)
        yield Evidence(file, svm, predictions, pictures, network, card, tuple(missing))


@contextmanager
def open_pictures(
    file: FeatureFile, *, data_dir: Path | None = None, progress: Progress = SILENT
) -> Iterator[Pictures]:
    """Open the source that a feature file names, and check that it is still the same.

    Raises
    ------
    CnnfeatError
        If it has moved or changed; the message says so.
    """
    with open_origin(file, data_dir=data_dir, progress=progress) as source:
        yield Pictures(file, source)


def open_origin(
    file: FeatureFile, *, data_dir: Path | None = None, progress: Progress = SILENT
) -> Source:
    """Open the source that a feature file names, whatever is in it now.

    Raises
    ------
    DataError
        If the file names none, or there is nothing of that name any more.
    """
    name = file.provenance.source
    if not name or not file.provenance.source_fingerprint:
        raise DataError(f"{file.path} does not say where its images came from")
    try:
        return open_data(recorded_data(file.provenance, data_dir=data_dir), progress=progress)
    except UsageError as error:
        raise DataError(
            f"the images of {file.path} are not where they were: there is no {name}",
            hint="put them back, or extract the features again",
        ) from error


def _open_svm(
    artifacts: Artifacts, file: FeatureFile, missing: list[str]
) -> tuple[SvmResult | None, Predictions | None]:
    try:
        svm = read_result(artifacts.svm)
    except MissingInputError:
        missing.append(f"No SVM yet: {artifacts.svm} does not exist; cnnfeat svm makes it.")
        return None, None
    except CnnfeatError as error:
        missing.append(f"No SVM: {error}.")
        return None, None
    if all(_differs(one, file.attributes) for one in svm.files or (svm.features,)):
        missing.append(
            f"No SVM: {artifacts.svm.name} was made from other features than {file.path.name}."
        )
        return None, None
    try:
        return svm, read_predictions(artifacts.predictions, file=file, result=svm)
    except CnnfeatError as error:
        missing.append(f"No single predictions: {error}.")
        return svm, None


def _differs(recorded: Mapping[str, object], attributes: Mapping[str, object]) -> bool:
    """Whether two provenances disagree in what both state."""
    return any(
        recorded.get(key) and attributes.get(key) and recorded[key] != attributes[key]
        for key in ("network_sha256", "source_fingerprint")
    )


def _open_network(
    artifacts: Artifacts, file: FeatureFile, missing: list[str]
) -> tuple[Network | None, ModelCard | None]:
    try:
        if artifacts.find_model(file) is None:
            model = artifacts.name_model(file)
            missing.append(f"No filters and no training curve: there is no model {model}.")
            return None, None
        network = artifacts.open_model(file)
    except CnnfeatError as error:
        missing.append(f"No filters and no training curve: {error}.")
        return None, None
    if other := of_another_network(file, network):
        missing.append(f"No filters and no training curve: {other}.")
        return None, None
    return network, network.card


def of_another_network(file: FeatureFile, network: Network) -> str:
    """Say that features are not this network's; nothing where they are, or do not tell."""
    if file.provenance.network_sha256 in ("", None, network.sha256):
        return ""
    return f"{network.path} is not the network that {file.path.name} was made with"


def read_predictions(path: Path, *, file: FeatureFile, result: SvmResult) -> Predictions:
    """Read the `predictions.csv` of a result and find each line's row in the feature file.

    Raises
    ------
    MissingInputError
        If there is none.
    FeatureFileError
        If it is damaged, or not of this feature file.
    """
    numbers = {name: number for number, name in enumerate(result.classes)}
    ids, labels, predicted, margins = [], [], [], []
    try:
        with io.StringIO(read_text(path), newline="") as lines:
            reader = csv.DictReader(lines)
            for record in reader:
                said = _prediction(record, numbers, f"{path}, line {reader.line_num}")
                ids.append(said.id)
                labels.append(said.label)
                predicted.append(said.predicted)
                margins.append(said.margin)
    except FileNotFoundError as error:
        raise MissingInputError(f"no predictions {path}", hint="cnnfeat svm makes them") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FeatureFileError(f"{path}: can't be read as CSV: {error}") from error
    if not ids:
        raise FeatureFileError(f"{path}: damaged: it has no predictions", hint=_ANEW)
    split, rows = _find_rows(ids, file, path, first=result.test_split or "test")
    if len(set(ids)) < len(ids):
        twice = next(name for name, n in Counter(ids).items() if n > 1)
        raise FeatureFileError(f"{path}: damaged: it has {twice!r:.60} twice", hint=_ANEW)
    return Predictions(
        split,
        rows,
        np.array(labels, np.int64),
        np.array(predicted, np.int64),
        np.array(margins, np.float64),
    )


@dataclass(frozen=True, slots=True)
class _Prediction:
    """One line of the file, its classes by their numbers."""

    id: str
    label: int
    predicted: int
    margin: float


def _prediction(
    record: Mapping[str, str | None], numbers: Mapping[str, int], at: str
) -> _Prediction:
    cells = {name: record.get(name) or "" for name in ("id", "label", "predicted", "margin")}
    for name in ("label", "predicted"):
        if cells[name] not in numbers:
            why = f"{name} {cells[name]!r:.60} is none of the machine's classes"
            raise FeatureFileError(f"{at}: damaged: {why}", hint=_ANEW)
    try:
        margin = float(cells["margin"])
    except ValueError:
        margin = math.nan
    if not math.isfinite(margin):
        why = f"the margin {cells['margin']!r:.60} is no number"
        raise FeatureFileError(f"{at}: damaged: {why}", hint=_ANEW)
    return _Prediction(cells["id"], numbers[cells["label"]], numbers[cells["predicted"]], margin)


def _find_rows(
    ids: Sequence[str], file: FeatureFile, path: Path, *, first: str
) -> tuple[str, NDArray[np.int64]]:
    """Find the split that has all of these ids, and their rows in it."""
    if " and " in first and first not in file.splits:
        raise FeatureFileError(
            f"{path} has predictions for rows of {first}, and single ones are shown of one split"
        )
    for split in sorted(file.splits, key=lambda name: name != first):
        names = file.ids(split)
        place = {name: row for row, name in enumerate(names)}
        if all(name in place for name in ids):
            if len(place) < len(names):
                raise FeatureFileError(
                    f"rows of split {split!r} of {file.path} share ids, and {path} has no other "
                    "names for them"
                )
            return split, np.array([place[name] for name in ids], np.int64)
    raise FeatureFileError(
        f"{path} has predictions for images that {file.path} does not have",
        hint="run cnnfeat svm --overwrite on this feature file",
    )
