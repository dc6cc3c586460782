"""Train a small network on a source, and keep how it went beside it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cnnfeat import __version__
from cnnfeat.brightness import measure
from cnnfeat.card import ModelCard, Training, card_path, file_sha256, read_card, write_card
from cnnfeat.errors import Interrupted, OutputExistsError, UsageError
from cnnfeat.files import replacing
from cnnfeat.knobs import fields_of, knob_of, resume_settings, to_dict
from cnnfeat.network.architecture import build_network
from cnnfeat.network.committee import join_networks
from cnnfeat.network.descent import Samples, Scorer
from cnnfeat.network.epochs import Course, fit, restored
from cnnfeat.network.loading import load_network
from cnnfeat.network.network import Network
from cnnfeat.network.runtime import check_precision
from cnnfeat.network.standing import (
    Keeper,
    Standing,
    check_training_output,
    standing_path,
)
from cnnfeat.network.starting import HALVES
from cnnfeat.network.trainingrows import (
    divided_for_training,
    fitted_split,
    held_back,
    read_samples,
    say_what_becomes_of,
)
from cnnfeat.options import DataOptions, FitOptions, Precision, RunOptions
from cnnfeat.parts import TEST, Part
from cnnfeat.pixels import range_warning
from cnnfeat.progress import SILENT, Progress
from cnnfeat.provenance import differing_settings
from cnnfeat.records import Json, Source

logger = logging.getLogger("cnnfeat")

BYTES_PER_WEIGHT = 4
FILE_OVERHEAD_BYTES = 1_000_000  # HDF5 and JSON around the weights, generously
_COPIES = 5  # of weights in a standing: network's, learner's, Adam's two, the best


def train(
    config: RunOptions,
    source: Source,
    *,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
    foresee: Callable[[Network, Source], object] | None = None,
    progress: Progress = SILENT,
) -> ModelCard:
    """Train the network of `config` and write it with its card.

    A source without a test split is divided first. Of what it trains on, a stratified part is held
    back, unless the source has a split `validation`: the weights of the epoch that does best on it
    are kept. The test split is read once, after that. Same seed, same machine, as many threads of
    TensorFlow's: same weights.

    With several seeds a network is trained for each, one after another, and they are saved as one.

    Parameters
    ----------
    config : RunOptions
        Its tables `network`, `train` and `augment` are used; `data` is recorded.
    source : Source
        Labelled images, all of one size; if any has colour, all become RGB. Held in memory in
        their own dtype. One that is divided already stays so.
    out : Path
        The model file, ending in `.keras`; the card gets the same name with `.json`.
    overwrite : bool
        Whether files of these names may be replaced.
    resume : bool
        Whether to go on with an interrupted training, to the weights that it would have come to;
        one that has ended is left as it is.
    foresee : callable, optional
        Called with the network as it is before the training, and the divided source: what is to be
        done with them later may be refused now.
    progress : Progress
        Told each batch and epoch.

    Raises
    ------
    UsageError
        If `out` does not end in `.keras`, or exists; or the interrupted training was another.
    DataError
        If the source has no labels, fewer than two classes, classes too small to be divided,
        nothing to train on, or images of several shapes; or what was kept of an interrupted
        training is damaged.
    NetworkError
        If the network can't be built for images of this shape, or computed in this precision.
    StorageError
        If there is no room for the model; found out before training.
    Interrupted
        On Ctrl-C and SIGTERM, where something of the training is kept.
    """
    if out.suffix != ".keras":
        raise UsageError(f"a model file ends in .keras, not {out.name!r}", hint="name it with -o")
    check_precision(config.train.precision)
    source = divided_for_training(source, config.train)
    tables, described = _tables(config, source), _describe(source)
    settings = _settings(tables, described, source.division)
    if resume and out.exists() and not standing_path(out).exists():
        return _finished(out, settings)
    plan = _Plan.of(config, source)
    members = {seed: plan.build(seed) for seed in config.train.members}
    network = _joined(members)
    n_bytes = network.count_params() * BYTES_PER_WEIGHT
    check_training_output(
        out, overwrite=overwrite, resume=resume, needed_bytes=n_bytes + FILE_OVERHEAD_BYTES
    )
    if foresee is not None:
        foresee(load_network(network), source)
    keeper = Keeper(standing_path(out), {**settings, **_versions()})
    most_bytes = _COPIES * n_bytes + FILE_OVERHEAD_BYTES
    if not resume:
        keeper.forget()
    standing = keeper.take_up(most_bytes=most_bytes)
    fitted, validation = plan.read(source)
    with _resumable(keeper):
        courses = _fit_all(
            plan, members, fitted, validation, standing, keeper=keeper, progress=progress
        )
        test = read_samples(source, TEST, plan.shape)
        trained = [_member(seed, course, test) for seed, course in courses.items()]
        whole = trained[0] if len(trained) == 1 else _of_mean(network, validation, test)
        card = ModelCard(
            cnnfeat=__version__,
            tensorflow=tf.__version__,
            keras=keras.__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            config=tables,
            source=described,
            classes=source.classes,
            image_shape=plan.shape,
            history=whole["history"],
            best_epoch=whole["best_epoch"],
            validation_accuracy=whole["validation_accuracy"],
            test_accuracy=whole["test_accuracy"],
            n_train=len(fitted),
            n_validation=0 if validation is None else len(validation),
            n_test=len(test),
            elapsed_s=sum(one["elapsed_s"] for one in trained),
            model_sha256=_save(network, out),
            division=source.division,
            pixels=measure([fitted.images]),
            members=() if len(trained) == 1 else tuple(trained),
        )
        write_card(card, card_path(out))
        keeper.forget()
    return card


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is trained on what."""

    config: RunOptions
    split: str
    dtype: str
    shape: tuple[int, int, int]
    n_classes: int

    @classmethod
    def of(cls, config: RunOptions, source: Source) -> _Plan:
        split = fitted_split(source)
        info = source.splits[split]
        shape = (*info.image_shape[:2], source.channels(split))
        say_what_becomes_of(info, shape)
        return cls(config, split, info.dtype, shape, len(source.classes))

    def build(self, seed: int, precision: Precision = "float32") -> keras.Model:
        """A network of this seed, a member of a committee by its name."""
        return build_network(
            self.config.network,
            image_shape=self.shape,
            n_classes=self.n_classes,
            seed=seed,
            dtype=self.dtype,
            precision=precision,
            name="cnnfeat" if len(self.config.train.members) == 1 else f"seed{seed}",
        )

    def learner(self, seed: int) -> keras.Model | None:
        """What makes the steps, where it can't be the network that is kept."""
        options = self.config.train
        own = options.ema or options.precision != "float32"
        return self.build(seed, options.precision) if own else None

    def read(self, source: Source) -> tuple[Samples, Samples | None]:
        """Read what weights are fitted to, and what picks the epoch."""
        samples, parts = read_samples(source, self.split, self.shape), source.parts(self.split)
        fitted = samples.take(np.flatnonzero(parts == Part.FITTED))
        if warning := range_warning(fitted.images, unit=True):
            logger.warning("%s", warning)
        picks = self.config.train.validation > 0
        return fitted, held_back(source, samples, parts) if picks else None


def _joined(members: Mapping[int, keras.Model]) -> keras.Model:
    """The one network there is, or one of all."""
    if len(members) == 1:
        return next(iter(members.values()))
    return join_networks({network.name: network for network in members.values()})


def _fit_all(
    plan: _Plan,
    members: Mapping[int, keras.Model],
    samples: Samples,
    validation: Samples | None,
    standing: Standing | None,
    *,
    keeper: Keeper,
    progress: Progress,
) -> dict[int, Course]:
    """Train one network after another, but for those that an earlier run has trained."""
    courses: dict[int, Course] = {}
    done = iter(list(keeper.finished))
    for number, (seed, network) in enumerate(members.items(), 1):
        if (finished := next(done, None)) is not None:
            courses[seed] = restored(network, finished, picks=validation is not None)
            continue
        course = fit(
            network,
            samples,
            validation,
            plan.config,
            seed=seed,
            learner=plan.learner(seed),
            standing=standing,
            keep=keeper.keep,
            label="training" if len(members) == 1 else f"training {number} of {len(members)}",
            progress=progress,
        )
        courses[seed], standing = course, None
        if number < len(members):
            weights = tuple(network.get_weights())
            keeper.finish(Standing(course.history, course.elapsed_s, True, weights))
    return courses


def _member(seed: int, course: Course, test: Samples) -> Training:
    """What the card says of a network."""
    best = course.best
    return Training(
        seed=seed,
        history=course.history,
        best_epoch=None if best is None else best["epoch"],
        validation_accuracy=None if best is None else best["val_accuracy"],
        test_accuracy=course.score(test).accuracy,
        elapsed_s=course.elapsed_s,
    )


def _of_mean(network: keras.Model, validation: Samples | None, test: Samples) -> Training:
    """The same of a committee, whose epochs are its members'."""
    score = Scorer(network, n_parts=HALVES)
    return Training(
        seed=0,
        history=(),
        best_epoch=None,
        validation_accuracy=None if validation is None else score(validation).accuracy,
        test_accuracy=score(test).accuracy,
        elapsed_s=0.0,
    )


@contextmanager
def _resumable(keeper: Keeper) -> Iterator[None]:
    """Say what is left of an interrupted training, and how it goes on."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        if not keeper.kept:
            raise
        number = error.signal_number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(
            f"stopped; {keeper.path} keeps {keeper.kept}",
            signal_number=number,
            hint="`cnnfeat train` goes on with it by --resume; `cnnfeat run` does so by itself",
        ) from error


def _finished(out: Path, settings: Mapping[str, str]) -> ModelCard:
    """Look whether a model that is there is what this training would make.

    Raises
    ------
    OutputExistsError
        If it isn't; with what differs.
    """
    card = read_card(out, sha256=file_sha256(out))
    if card is None:
        raise OutputExistsError(
            f"{out} exists, and nothing says how it was trained",
            hint="--overwrite replaces it; -o writes elsewhere",
        )
    found = _settings(card.config, card.source, card.division)
    for name, one, other in differing_settings(found, settings):
        raise OutputExistsError(
            f"{out} was trained with another {name}: {one}, and now it is {other}",
            hint="--overwrite replaces it; -o writes elsewhere",
        )
    logger.info("%s is complete already", out)
    return card


def _settings(
    tables: Mapping[str, Mapping[str, Json]],
    source: Mapping[str, str],
    division: Mapping[str, Json] | None,
) -> dict[str, str]:
    """What trainings of the same weights have in common."""
    data = tables.get("data", {})
    return {
        "data": source.get("name", ""),
        "data fingerprint": source.get("fingerprint", ""),
        **resume_settings({name: data.get(name) for name in _OPENED_BY}),
        **resume_settings(tables.get("network", {})),
        **resume_settings(tables.get("train", {})),
        **resume_settings(tables.get("augment", {})),
        **resume_settings({}, division=division),
    }


# One file may have labels in several columns, of which its fingerprint says nothing.
_OPENED_BY = [name for name, item in fields_of(DataOptions).items() if knob_of(item).changes_result]


def _versions() -> dict[str, str]:
    return {
        "version of cnnfeat": __version__,
        "version of TensorFlow": tf.__version__,
        "version of Keras": keras.__version__,
    }


def _describe(source: Source) -> dict[str, str]:
    fingerprint = source.fingerprint()
    return {
        "name": source.name,
        "kind": source.kind,
        "fingerprint": fingerprint.digest,
        "fingerprint_method": fingerprint.method,
    }


def _tables(config: RunOptions, source: Source) -> dict[str, dict[str, Json]]:
    """The options, and how the images were opened, what they were brought to included."""
    fitting = {name: source.options.get(name) for name in fields_of(FitOptions)}
    data = {**to_dict(config.data), **fitting, "source": config.data.source or "auto"}
    tables = ("network", "train", "augment")
    return {"data": data, **{name: to_dict(getattr(config, name)) for name in tables}}


def _save(network: keras.Model, out: Path) -> str:
    """Write the network without its optimizer, whole or not at all; return the file's digest."""
    plain = keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    with replacing(out) as temporary:
        plain.save(temporary)
        return file_sha256(temporary)
