"""Which classes and functions a Keras configuration may name: those that only compute.

A name is looked up as Keras does, and what is found there must be one of these; a name that isn't
on a list is refused. Keras 2 has names of its own, whose homes are other modules.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from types import ModuleType

import keras
from keras.src import api_export

_LAYERS = """
Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop
Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping2D
Cropping3D CutMix Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense
Embedding Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D
GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
GlobalMaxPooling3D GroupNormalization GroupQueryAttention HashedCrossing Hashing Identity InputLayer
IntegerLookup LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxNumBoundingBoxes MaxPooling1D
MaxPooling2D MaxPooling3D Maximum Minimum MixUp MultiHeadAttention Multiply Normalization PReLU
Permute Pipeline RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration
RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip
RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization
RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom ReLU
RepeatVector Rescaling Reshape Resizing ReversibleEmbedding SeparableConv1D SeparableConv2D
SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
SpectralNormalization StackedRNNCells StringLookup Subtract TextVectorization TimeDistributed
UnitNormalization UpSampling1D UpSampling2D UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D
ZeroPadding3D
"""
MODELS = ("Functional", "Model", "Sequential")
OF_APPLICATIONS = {
    "keras.src.applications.convnext": ("LayerScale", "StochasticDepth"),
    "keras.src.applications.inception_resnet_v2": ("CustomScaleLayer",),
}
_NAMESPACES = (
    "initializers", "regularizers", "constraints", "dtype_policies", "quantizers", "random",
    "losses", "metrics", "optimizers", "optimizers.schedules",
)  # fmt: skip
_FUNCTION_HOMES = ("activations", "losses", "metrics")  # of builtins, as Keras calls them
_OPS = ("core", "einops", "image", "linalg", "math", "nn", "numpy")
_TAKE_FUNCTIONS = {
    "AssociativeScan", "Cond", "ForiLoop", "Map", "Scan", "Switch", "VectorizedMap", "WhileLoop",
    "Vectorize", "associative_scan", "cond", "custom_gradient", "fori_loop", "jvp", "map", "scan",
    "switch", "vectorize", "vectorized_map", "while_loop",
}  # fmt: skip

# Of Keras 2 alone. The first ones call functions of TensorFlow, which are looked at by themselves.
CALLERS = frozenset({
    "TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty",
    "TensorFlowOpLayer",
})  # fmt: skip
_KERAS_2 = {
    "AddLoss", "AddMetric", "BatchNormalizationV1", "BatchNormalizationV2", "CuDNNGRU",
    "CuDNNLSTM", "GRUCellV1", "GRUCellV2", "GRUV1", "GRUV2", "LSTMCellV1", "LSTMCellV2", "LSTMV1",
    "LSTMV2", "LocallyConnected1D", "LocallyConnected2D", "Policy", "PolicyV1", "RadialConstraint",
    "RandomHeight", "RandomWidth", "SyncBatchNormalization", "ThresholdedReLU",
    "Custom>CustomScaleLayer",
}  # fmt: skip
_FUNCTIONS_OF_TENSORFLOW = re.compile(
    r"""(__operators__|math|nn|image|linalg|nest|signal|debugging\.assert\w*
    |compat\.v1\.(nn|math|image|linalg))(\.\w+)*
    |compat\.v1\.(transpose|shape|squeeze|gather|reshape|concat|expand_dims|reduce_\w+|pad|split)
    |random\.(normal|uniform)
    |cast|concat|expand_dims|squeeze|reshape|transpose|shape|split|stack|unstack|strided_slice
    |slice|tile|pad|gather|gather_nd|where|zeros|zeros_like|ones|ones_like|identity|clip_by_value
    |reverse|broadcast_to|fill|rank|stop_gradient|convert_to_tensor|one_hot|sigmoid|tanh
    |ensure_shape|repeat|tensordot|einsum|sort|argsort|range|eye|roll|norm|meshgrid
    |tensor_scatter_nd_update|sequence_mask|space_to_batch|batch_to_space|saturate_cast|bitcast
    |keras\.backend\.(abs|all|any|argmax|argmin|batch_dot|batch_flatten|batch_normalization
    |bias_add|cast|cast_to_floatx|clip|concatenate|conv1d|conv2d|conv2d_transpose|conv3d|cos
    |cumprod|cumsum|depthwise_conv2d|dot|elu|equal|exp|expand_dims|flatten|gather|greater
    |greater_equal|hard_sigmoid|identity|int_shape|l2_normalize|less|less_equal|log|max|maximum
    |mean|min|minimum|ndim|not_equal|one_hot|ones_like|permute_dimensions|pool2d|pool3d|pow|prod
    |relu|repeat|repeat_elements|reshape|resize_images|resize_volumes|reverse|round
    |separable_conv2d|shape|sigmoid|sign|sin|softmax|softplus|softsign|spatial_2d_padding
    |spatial_3d_padding|sqrt|square|squeeze|stack|std|stop_gradient|sum|switch|tanh
    |temporal_padding|tile|transpose|var|zeros_like)""",
    re.VERBOSE,
)
_OF_RAGGED = re.compile(
    r"values|flat_values|row_splits|nested_row_splits|(nested_)?value_rowids|nrows|row_starts"
    r"|row_limits|(nested_)?row_lengths|bounding_shape|with_(flat_)?values|with_row_splits_dtype"
    r"|merge_dims|to_tensor|to_sparse|indices|dense_shape"
)
_MAKES_RAGGED = re.compile(
    r"from_(value_rowids|row_splits|row_lengths|row_starts|row_limits|uniform_row_length"
    r"|nested_value_rowids|nested_row_splits|tensor|sparse)"
)


def only_computes(name: str, module: str | None) -> bool:
    """Whether a class named in a configuration is known to do nothing but compute.

    Parameters
    ----------
    name : str
        Of the class.
    module : str or None
        Its home, where the configuration names one.
    """
    if name not in _names() or not _is_home(module):
        return False
    found = None if module is None else _found(name, module)
    return found is None or found in _classes()


def function_computes(name: str, module: str) -> bool:
    """Whether a function named in a configuration is known to do nothing but compute."""
    home = re.fullmatch(r"(?:(?:tf_)?keras\.(?:src\.)?(\w+)(?:\.\w+)*)|builtins", module)
    if home is None:
        return False
    if home[1] == "ops":
        return name not in _TAKE_FUNCTIONS and inspect.isfunction(getattr(keras.ops, name, None))
    homes = _FUNCTION_HOMES if home[1] is None else {home[1]} & set(_FUNCTION_HOMES)
    return any(name in getattr(keras.src, one).ALL_OBJECTS_DICT for one in homes)


def tensorflow_computes(symbol: str) -> bool:
    """Whether a function of TensorFlow, which Keras 2 wraps as a layer, only computes."""
    return bool(_FUNCTIONS_OF_TENSORFLOW.fullmatch(symbol))


def attribute_computes(name: str, of_class: str | None) -> bool:
    """Whether Keras 2 itself wraps an attribute of tensors, or a method of a class, as a layer."""
    if of_class is None:
        return bool(_OF_RAGGED.fullmatch(name))
    return of_class == "RaggedTensor" and bool(_MAKES_RAGGED.fullmatch(name))


def is_kerass(name: str, module: str | None) -> bool:
    """Whether Keras would find a class or function of this name."""
    return _is_home(module) and _found(name, module or "keras.layers") is not None


def _is_home(module: str | None) -> bool:
    return module is None or re.fullmatch(r"(tf_)?keras(\.\w+)*", module) is not None


def _found(name: str, module: str) -> object:
    """What Keras 3 takes a name for: an export of its own, or what stands in the module."""
    found: object = api_export.get_symbol_from_name(f"{module}.{name}")
    home = None if module.startswith("tf_") else sys.modules.get(module)
    return vars(home).get(name) if found is None and home is not None else found


@cache
def _classes() -> frozenset[object]:
    found: set[object] = {getattr(keras.layers, name) for name in _LAYERS.split()}
    found |= {getattr(keras.src.models, name) for name in MODELS}
    for module, names in OF_APPLICATIONS.items():
        found |= {getattr(importlib.import_module(module), name) for name in names}
    for namespace in _NAMESPACES:
        found |= set(_classes_of(attrgetter(namespace)(keras)))
    for module in _OPS:
        home = importlib.import_module(f"keras.src.ops.{module}")
        found |= {
            kind
            for kind in _classes_of(home)
            if issubclass(kind, keras.Operation) and kind.__name__ not in _TAKE_FUNCTIONS
        }
    return frozenset(found)


def _classes_of(module: ModuleType) -> Iterator[type]:
    return (kind for kind in vars(module).values() if inspect.isclass(kind))


@cache
def _names() -> frozenset[str]:
    """What these classes are called, in all versions of Keras."""
    own = {kind.__name__ for kind in _classes() if isinstance(kind, type)}
    exported = {
        name
        for namespace in _NAMESPACES
        for name, kind in vars(attrgetter(namespace)(keras)).items()
        if inspect.isclass(kind)
    }
    return frozenset(own | exported | CALLERS | _KERAS_2)
