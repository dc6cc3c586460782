"""`LayerFeatures`: a network's layer as a step of a scikit-learn pipeline."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from cnnfeat.data.arrays import is_one_picture
from cnnfeat.data.fitting import fit_to_target
from cnnfeat.errors import DataError, LayerLookupError, NetworkError, UsageError
from cnnfeat.features import FeatureFile, FeatureTable
from cnnfeat.options import (
    EngineName,
    Pooling,
    Precision,
    ProbeOptions,
    ReadOptions,
    Scale,
    Size,
)
from cnnfeat.origin import recorded_fitting, recorded_network, recorded_probe, recorded_reading
from cnnfeat.patterns import split_side_by_side
from cnnfeat.pixels import unusable
from cnnfeat.spelling import FeedValue

if TYPE_CHECKING:
    from cnnfeat.network import Network
    from cnnfeat.records import Fit, LayerInfo, Probe


class LayerFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns images into the activations of one layer.

    Nothing is trained: `fit` opens the network, finds the layer and remembers the images' shape.
    The network itself is no part of a pickle or a clone, its path is; it is opened again when it
    is next needed, and refused if the file has changed since.

    Of a live model `fit` copies the weights: what it is trained on afterwards changes no feature.
    Clones share the model; it can't be pickled.

    Parameters
    ----------
    model : str, Path, keras.Model, tf.Graph or Network
        A network, as `cnnfeat.load_network` takes it, or what that gave.
    layer : str
        A layer's or tensor's name; "conv2+fc1" is both, their features side by side.
    pool : {"none", "avg", "max", "flatten"}
        What is done over an activation's image axes.
    scale : {"unit", "symmetric", "raw", "imagenet", "caffe"}, optional
        How pixels are scaled; by default as the network's file says.
    batch_size : int
        Images computed at a time.
    trust : bool
        Run a model that does more than compute.
    read : ReadOptions, optional
        How the network is read: signature, input, feeds, weights, imports.
    signature, input, feed, weights, architecture, imports : optional
        The same one by one, before what `read` says; feeds are `{"keep_prob": 1.0}`.
    session : tf.compat.v1.Session, optional
        Of a graph: what holds the values of its variables.
    variables : mapping of str to array-like, optional
        Of a graph: the values themselves.
    resize : tuple of int, optional
        (height, width) that images are brought to, bilinear and antialiased.
    proportions : {"stretch", "crop", "pad"}, optional
        How proportions come to those of `resize`; by default they are stretched.
    invert : bool
        Turn light into dark, and dark into light.
    precision : {"float32", "bfloat16"}
        How the network computes.
    engine : {"auto", "tensorflow", "openvino"}
        What runs it.
    device : str
        What it runs on: "auto", "cpu" or "gpu:N".

    Attributes
    ----------
    image_shape_ : tuple of int
        (height, width, channels) of the images.
    image_dtype_ : str
        "uint8", "uint16" or "float32".
    feature_shape_ : tuple of int
        One image's activation, before it is flattened in C order; of several layers, after.
    n_features_out_ : int
    sha256_ : str
        The digest of the network's file; of a live one, of its weights and plan.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from cnnfeat import LayerFeatures, LinearSVM
    >>> machine = make_pipeline(LayerFeatures("model.keras", layer="conv2"), LinearSVM())
    """

    def __init__(
        self,
        model: object = "model.keras",
        *,
        layer: str = "conv2",
        pool: Pooling = "none",
        scale: Scale | None = None,
        batch_size: int = 512,
        trust: bool = False,
        read: ReadOptions | None = None,
        signature: str | None = None,
        input: str | None = None,
        feed: Mapping[str, FeedValue] | None = None,
        weights: str | None = None,
        architecture: str | None = None,
        imports: Sequence[str] = (),
        session: object = None,
        variables: Mapping[str, ArrayLike] | None = None,
        resize: Size | None = None,
        proportions: Fit | None = None,
        invert: bool = False,
        precision: Precision = "float32",
        engine: EngineName = "auto",
        device: str = "auto",
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
        self.scale = scale
        self.batch_size = batch_size
        self.trust = trust
        self.read = read
        self.signature = signature
        self.input = input
        self.feed = feed
        self.weights = weights
        self.architecture = architecture
        self.imports = imports
        self.session = session
        self.variables = variables
        self.resize = resize
        self.proportions = proportions
        self.invert = invert
        self.precision = precision
        self.engine = engine
        self.device = device

    @classmethod
    def from_features(
        cls,
        path: Path | str,
        *,
        layer: str | None = None,
        model: object = None,
        read: ReadOptions | None = None,
        trust: bool = False,
    ) -> LayerFeatures:
        """Make one that does to images what was done to those of a feature file.

        Parameters
        ----------
        path : Path or str
            The feature file.
        layer : str, optional
            One of the file's, or several ("conv2+fc1"); not needed where it has one.
        model : str, Path, keras.Model, tf.Graph or Network, optional
            The network, instead of the one that the file names.
        read : ReadOptions, optional
            What goes before how the network was read for the features.
        trust : bool
            Run a model that does more than compute; never taken from the file.

        Raises
        ------
        UntrustedModelError
            If the file names a network that lies neither beside it nor in the current folder, and
            `model` is not given.
        NetworkError
            If the network has moved, and `model` is not given.
        """
        with FeatureFile(Path(path)) as file:
            table = FeatureTable([file])
            found = [one for _, one in table.described(file.splits[0], table.find_layer(layer))]
            said = file.provenance
            how, fitting = recorded_probe(said, pool=found[0].pooling), recorded_fitting(said)
            is_open = hasattr(model, "read_options")  # a Network, read already
            return cls(
                recorded_network(said, beside=file.path) if model is None else model,
                layer="+".join(stored.tensor for stored in found),
                pool=how.pool,
                scale=how.scale,
                trust=trust,
                read=None if is_open else recorded_reading(said, beside=file.path, read=read),
                resize=fitting.resize,
                proportions=fitting.fit,
                invert=fitting.invert,
                precision=how.precision,
            )

    def fit(self, X: ArrayLike, y: object = None) -> LayerFeatures:  # noqa: ARG002 - the contract
        """Open the network and find the layer.

        Parameters
        ----------
        X : array-like of shape (n_samples, height, width[, channels])
            Images: uint8, uint16, or floats.
        y : object
            Ignored.

        Raises
        ------
        NetworkError
            If the network can't be used, or the images don't fit it.
        LayerLookupError
            If the layer's name means none, or several.
        """
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {self.batch_size!r}")
        images = _images(X)
        self._forget()
        network = self._open()
        height, width, channels = images.shape[1:]
        self.image_shape_ = (int(height), int(width), int(channels))
        self.image_dtype_ = images.dtype.name
        self.sha256_ = network.sha256
        outputs = self._compile(network).outputs
        self._shapes = [(output.layer, tuple(output.row_shape)) for output in outputs]
        self.n_features_out_ = sum(math.prod(shape) for _, shape in self._shapes)
        if len(outputs) == 1:
            self._shapes = [(self.layer, shape) for _, shape in self._shapes]
        self.feature_shape_ = self._shapes[0][1] if len(outputs) == 1 else (self.n_features_out_,)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.floating]:
        """Compute activations.

        Parameters
        ----------
        X : array-like of shape (n_samples, height, width[, channels])
            Images like those of `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out_)
        """
        check_is_fitted(self)
        images = _images(X)
        if images.shape[1:] != self.image_shape_ or images.dtype.name != self.image_dtype_:
            raise DataError(
                f"fitted on images of shape {self.image_shape_} and type {self.image_dtype_}; "
                f"these are of shape {images.shape[1:]} and type {images.dtype.name}"
            )
        probe = self._probe()
        target = dataclasses.replace(probe.target, invert=self.invert)
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = fit_to_target(images[start : start + self.batch_size], target)
            parts.append(
                np.concatenate(
                    [
                        rows.reshape(len(rows), -1).astype(np.float32, copy=False)
                        for rows in probe(batch)
                    ],
                    axis=1,
                )
            )
        return np.concatenate(parts)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Name the features: "conv2[0,0,3]" is row 0, column 0, channel 3."""
        check_is_fitted(self)
        names = [
            f"{layer}[{','.join(map(str, place))}]"
            for layer, shape in self._shapes
            for place in np.ndindex(shape)
        ]
        return np.array(names, dtype=object)

    def _probe(self) -> Probe:
        """The compiled function; made when it is first needed."""
        known: Probe | None = getattr(self, "_compiled", None)
        return known if known is not None else self._compile(self._open())

    def _open(self) -> Network:
        from cnnfeat.network import open_network

        network = open_network(
            self.model,
            self._reading(),
            trust=self.trust,
            session=self.session,
            variables=self.variables,
        )
        expected = getattr(self, "sha256_", network.sha256)
        if network.sha256 != expected:
            raise NetworkError(
                f"{self.model} has changed since this LayerFeatures was fitted: its SHA-256 begins "
                f"{network.sha256[:12]}, expected {expected[:12]}",
                hint="fit again",
            )
        return network

    def _reading(self) -> ReadOptions:
        feed = tuple((self.feed or {}).items())
        said = ReadOptions(
            self.signature,
            self.input,
            feed,
            self.weights,
            self.architecture,
            tuple(self.imports),
        )
        return said.over(self.read or ReadOptions())

    def _compile(self, network: Network) -> Probe:
        self._compiled: Probe = network.probe(
            self._layers(network),
            ProbeOptions(
                self.precision,
                self.pool,
                self.scale,
                self.resize,
                self.proportions,
                engine=self.engine,
                device=self.device,
            ),
            image_shape=self.image_shape_,
            image_dtype=self.image_dtype_,
            batch_size=self.batch_size,
        )
        return self._compiled

    def _layers(self, network: Network) -> list[LayerInfo]:
        """Find the layer, or those with `+` between their names."""
        known = {item.name for item in network.layers} | {item.name for item in network.tensors}
        longest = max((name.count("+") for name in known), default=0)
        layers: list[LayerInfo] = []
        for name in split_side_by_side(self.layer, partial(_is_found, network), longest=longest):
            found = network.find([name])
            if len(found) != 1:
                raise UsageError(
                    f"{name!r} means {len(found)} layers: "
                    + ", ".join(layer.name for layer in found),
                    hint="name one, or several with + between them",
                )
            layers += found
        if len(set(layers)) < len(layers):
            raise UsageError(f"{self.layer!r} has a layer twice: its columns would count twice")
        return layers

    def _forget(self) -> None:
        for name in ("_compiled", "sha256_"):
            self.__dict__.pop(name, None)

    def __sklearn_clone__(self) -> LayerFeatures:
        """Share what `model` is: a live one can't be copied."""
        copy = type(self)(**self.get_params(deep=False))
        for name in ("_sklearn_output_config", "_metadata_request"):
            if name in vars(self):
                setattr(copy, name, deepcopy(getattr(self, name)))
        return copy

    def __getstate__(self) -> dict[str, object]:
        """Leave the network out of pickles and copies.

        Raises
        ------
        UsageError
            If it is live, so that no file holds it.
        """
        if not isinstance(self.model, str | os.PathLike):
            raise UsageError(
                f"this LayerFeatures holds a live {type(self.model).__name__}, which can't be "
                "pickled or copied",
                hint="save the network (model.save('model.keras')) and give LayerFeatures the path",
            )
        state: dict[str, object] = dict(super().__getstate__())
        state.pop("_compiled", None)
        return state

    def __sklearn_tags__(self) -> Tags:
        """Say that images come in."""
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        return tags


def _is_found(network: Network, name: str) -> bool:
    try:
        return bool(network.find([name]))
    except LayerLookupError:
        return False


def _images(X: ArrayLike) -> NDArray[np.generic]:
    """Bring images to (n_samples, height, width, channels) of a type that networks take."""
    images = np.asarray(X)
    if is_one_picture(images.shape):
        raise DataError(
            f"images of shape {images.shape} are one picture, it seems",
            hint="X[np.newaxis] is one; if they are many, X[..., np.newaxis]",
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not len(images):
        raise DataError(
            "images must have shape (n_samples, height, width) or (n_samples, height, width, "
            f"channels) and at least one sample; these have {np.shape(X)}"
        )
    if images.dtype in (np.uint8, np.uint16):
        return images
    if images.dtype.kind != "f":
        raise DataError(f"images must be uint8, uint16 or floating point, not {images.dtype}")
    with np.errstate(over="ignore"):
        images = images.astype(np.float32, copy=False)
    for row, reason in unusable(images).items():
        raise DataError(f"image {row}: {reason}")
    return images
