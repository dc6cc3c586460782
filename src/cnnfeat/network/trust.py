"""Which operations a network may run: those that only compute.

Every operation that the asked tensors need is looked up here before anything runs, in the graph
and in its library of functions. Whatever is not on the list is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import tensorflow as tf

from cnnfeat.errors import UntrustedModelError

# Names of operations without side effects: no file, process, network, Python, printing or state.
_PURE = re.compile(
    "|".join(
        (
            r"_?(Fused|Mkl\w*|Eigen|Quantized|Requantiz|Dequantiz|Quantize|FakeQuant)\w*",
            r"(Non|No)?Op|Const|Identity\w*|Placeholder\w*|_?Arg|_?Retval|StopGradient",
            r"PreventGradient|Snapshot|EnsureShape|GuaranteeConst|_?ParallelConcat\w*|HostConst",
            r"Shape\w*|Size|Rank|Reshape|Squeeze|ExpandDims|Fill|Empty|Zeros\w*|Ones\w*",
            r"Concat\w*|Split\w*|Pack|Unpack|StridedSlice|Slice|Gather\w*|Scatter(Nd)?\w*",
            r"Tensor(Scatter|StridedSlice)\w*|InvertPermutation|Tile|Pad\w*|MirrorPad",
            r"Transpose|ConjugateTranspose|Reverse\w*|Roll|Where|Select\w*|OneHot|Unique\w*",
            r"Broadcast\w*|Bitcast|Cast|Range|LinSpace|Diag\w*|Matrix\w*|BatchMatrix\w*|SpaceTo\w*",
            r"DepthToSpace|BatchToSpace\w*|ExtractImagePatches|ExtractVolumePatches|Bincount",
            r"DenseBincount|Searchsorted|LowerBound|UpperBound|ListDiff|DynamicPartition",
            r"(Parallel)?DynamicStitch|Segment\w*|UnsortedSegment\w*|Cumsum|Cumprod|Cumulative\w*",
            r"Add\w*|Sub|Mul\w*|Div\w*|RealDiv|Floor\w*|Trunc\w*|Mod|Pow|Square\w*|Sqrt|Rsqrt|Abs",
            r"Neg|Sign|Inv|Reciprocal|Exp|Expm1|Log|Log1p|Sin\w*|Cos\w*|Tan\w*|Asin\w*|Acos\w*",
            r"Atan\w*|Erf\w*|Ndtri|Lgamma|Digamma|Igamma\w*|Betainc|Zeta|Polygamma|Bessel\w*",
            r"Round|Rint|Ceil|Clip\w*|Maximum|Minimum|Real|Imag|Conj|Angle|Complex\w*|Cross",
            r"Greater\w*|Less\w*|Equal|NotEqual|ApproximateEqual|Logical\w*|Is(Nan|Inf|Finite)",
            r"Bitwise\w*|Invert|LeftShift|RightShift|PopulationCount|NextAfter|Xdivy|Xlogy|Xlog1py",
            r"All|Any|Sum|Prod|Mean|Max|Min|ArgMax|ArgMin|EuclideanNorm|TopK\w*|NthElement",
            r"InTopK\w*|AccumulateNV2|HistogramFixedWidth|MatMul|BatchMatMul\w*|SparseMatMul",
            r"Einsum|XlaEinsum|XlaDot\w*|TensorDot|Cholesky|Qr|Svd|Lu|Self\w*Eig\w*",
            r"Conv[23]D\w*|Conv|DepthwiseConv2d\w*|DeformableConv\w*|Dilation2D\w*|BiasAdd\w*",
            r"(Avg|Max)Pool(3D)?(V2|WithArgmax)?|FractionalAvgPool|FractionalMaxPool|LRN|L2Loss",
            r"FusedBatchNorm\w*|BatchNormWithGlobalNormalization|LayerNorm|Relu\w*|LeakyRelu|Elu",
            r"Selu|Softplus|Softsign|Softmax|LogSoftmax|Sigmoid|\w*SoftmaxCrossEntropy\w*",
            r"Resize(Area|Bicubic|Bilinear|NearestNeighbor)|CropAndResize|ExtractGlimpse\w*",
            r"AdjustContrast\w*|AdjustHue|AdjustSaturation|RGBToHSV|HSVToRGB|DrawBoundingBoxes\w*",
            r"ImageProjectiveTransform\w*|ScaleAndTranslate|NonMaxSuppression\w*",
            r"CombinedNonMaxSuppression|GenerateBoundingBoxProposals|DecodeJpeg|DecodePng",
            r"DecodeBmp|DecodeGif|DecodeImage|DecodeAndCropJpeg|DecodeRaw|DecodeBase64",
            r"(I|R)?FFT(2D|3D)?|IRFFT\w*|RFFT\w*|Lstm\w*|LSTM\w*|GRU\w*|BlockLSTM\w*|CTC\w*",
            r"Switch|RefSwitch|Merge|RefMerge|Enter|RefEnter|Exit|RefExit|NextIteration",
            r"RefNextIteration|LoopCond|ControlTrigger|_SwitchN",
            r"(Stateless|Stateful)?(While|If|Case|PartitionedCall)|For|Map|SymbolicGradient",
            r"RemoteCallless|TensorArray\w*|TensorList\w*|EmptyTensorList",
            r"ReadVariableOp|ResourceGather\w*|VarIsInitializedOp|VariableShape|IsVariableInitialized",
            r"Random(Uniform|StandardNormal|Gamma|Poisson|Shuffle)\w*|Multinomial",
            r"Rng(ReadAnd)?Skip|Stateful(Uniform|StandardNormal|TruncatedNormal)\w*",
            r"TruncatedNormal|ParameterizedTruncatedNormal|Stateless(Random|Truncated|Multinomial)\w*",
            r"Stateless(Parameterized|SampleDistorted|Shuffle)\w*|SampleDistortedBoundingBox\w*",
            r"Sparse\w*|Deserialize(Many)?Sparse|String(Join|Length|Lower|Upper|Split|Strip)\w*",
            r"StringTo\w*|AsString|Substr|RegexFullMatch|RegexReplace|StaticRegex\w*|Parse\w*",
            r"DataFormat(DimMap|VecPermute)|UniformQuantize\w*|UniformDequantize|UniformRequantize",
            r"FakeParam|Bucketize|Eig|Inplace(Add|Sub|Update)|ToBool|EncodePng|EncodeJpeg\w*",
            r"StringFormat|ReduceJoin|Unicode\w+|Fingerprint|DecodeWebP|DecodePaddedRaw",
            r"I?FFTND|(Banded|Tridiagonal)\w*Solve|TridiagonalMatMul|ApproxTopK|DenseTo\w*Set\w*",
            r"Optional(None|FromValue|GetValue|HasValue)|Ragged\w*|Assert|CheckNumerics\w*|Unbatch|Unravel\w*|DebugGradient\w*|CompareAndBitpack",
        )
    )
)
# What a pattern above lets through by accident.
_NOT_PURE = re.compile(
    "|".join(
        (
            r"\w*(Queue|Reader|Dataset|Iterator|Accumulator|Table|TensorsMap|Stage|Unstage)\w*",
            r"SparseConditional\w*|(Resource)?SparseApply\w*|SparseReshapeFile\w*",
            r"Scatter(Nd)?(Add|Sub|Mul|Div|Max|Min|Update)",
        )
    )
)


def is_pure(operation: str) -> bool:
    """Whether an operation type only computes."""
    return bool(_PURE.fullmatch(operation)) and not _NOT_PURE.fullmatch(operation)


def impure_nodes(graph_def: tf.compat.v1.GraphDef) -> set[str]:
    """Name the nodes that do more than compute, themselves or in a function they call."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    direct = {
        name
        for name, function in functions.items()
        if any(node.op not in functions and not is_pure(node.op) for node in function.node_def)
    }
    calls = {name: set(called(function.node_def)) for name, function in functions.items()}
    impure = set(direct)
    while grown := {name for name in calls if name not in impure and calls[name] & impure}:
        impure |= grown
    return {
        node.name
        for node in graph_def.node
        if (node.op not in functions and not is_pure(node.op))
        or not impure.isdisjoint(called([node]))
    }


def check_operations(graph_def: tf.compat.v1.GraphDef, *, path: str, trusted: bool = False) -> None:
    """Look at every operation of a graph and of the functions it calls.

    Raises
    ------
    UntrustedModelError
        Naming the operations and nodes that are not on the list.
    """
    if trusted:
        return
    bad: dict[str, str] = {}
    functions = {function.signature.name for function in graph_def.library.function}
    for place, node in _all_nodes(graph_def):
        if not is_pure(node.op) and node.op not in functions:
            bad.setdefault(node.op, f"{place}{node.name}")
    if bad:
        listed = ", ".join(f"{op} (node {node!r})" for op, node in sorted(bad.items()))
        raise UntrustedModelError(
            f"{path} would do more than compute: {listed}",
            hint="--trust-model runs it nevertheless, if you trust whoever made it",
        )


def _all_nodes(
    graph_def: tf.compat.v1.GraphDef,
) -> Iterator[tuple[str, tf.compat.v1.NodeDef]]:
    """Nodes of the graph and of every function reached from it."""
    for node in graph_def.node:
        yield "", node
    functions = {function.signature.name: function for function in graph_def.library.function}
    waiting, seen = list(called(graph_def.node)), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in functions[name].node_def:
            yield f"{name}/", node
        waiting.extend(called(functions[name].node_def))


def called(nodes: Iterable[tf.compat.v1.NodeDef]) -> Iterator[str]:
    """Names of functions that nodes call."""
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            if value.HasField("func"):
                yield value.func.name
            for function in value.list.func:
                yield function.name
