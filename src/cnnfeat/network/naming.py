"""Names of nodes without what tracing added to them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?|Func|cond(_\d+)?_?|__inference_.*")
_NUMBERED = re.compile(r".+_\d+")
# Scopes that operations open inside a layer.
INTERNAL = {
    "batchnorm", "moments", "Tensordot", "einsum", "einsum_1", "random_uniform", "normalize",
    "separable_conv2d", "l2_normalize", "strided_slice",
}  # fmt: skip
_GENERIC = re.compile(
    r"(model|functional|sequential|import|module|graph|network)(_\d+)?(_apply\w*)?"
)


def clean_names(members: Sequence[str], weights: Iterable[str]) -> dict[str, str]:
    """Say what is left of each node's name without the prefixes and suffixes of tracing.

    Parameters
    ----------
    members : sequence of str
        Names of nodes, in order.
    weights : iterable of str
        Names of the variables, which carry the layers' own names.
    """
    clean = {name: uncalled(name) for name in members}
    traced = any(clean[name] != name for name in members)
    if traced and _suffixed(clean.values(), weights):
        clean = _without_suffixes(clean)
    elif traced:
        clean = _calls_apart(clean)
    while True:
        heads = {text.split("/")[0] for text in clean.values()}
        if len(heads) != 1 or any("/" not in text for text in clean.values()):
            return clean
        seconds = {text.split("/")[1] for text in clean.values()}
        if len(seconds) < 2 or not (traced or _GENERIC.fullmatch(next(iter(heads)))):
            return clean
        clean = {name: text.split("/", 1)[1] for name, text in clean.items()}
        traced = False


def uncalled(name: str) -> str:
    """Leave out the scopes of function calls."""
    parts = [part for part in name.split("/") if not _CALL.fullmatch(part)]
    return "/".join(parts) or name.rsplit("/", 1)[-1]


def is_call(scope: str) -> bool:
    """Whether a part of a path names a function call."""
    return bool(_CALL.fullmatch(scope))


def _suffixed(names: Iterable[str], weights: Iterable[str]) -> bool:
    """Whether the layers' scopes have got a number at their end, as Keras 3 exports them.

    Then `conv2_1` is no layer's name, but `conv2` is the name its weights have. Scopes inside a
    layer, such as `Gelu`, get none.
    """
    scopes = {part for name in names for part in name.split("/")[:-1]} - INTERNAL
    numbered = {scope for scope in scopes if _NUMBERED.fullmatch(scope)}
    own = {weight.split("/")[-2] for weight in weights if "/" in weight}
    if own & (scopes - numbered):
        return False
    stripped = {scope.rsplit("_", 1)[0] for scope in numbered}
    return len(own & stripped) > len(own & scopes)


def _without_suffixes(clean: Mapping[str, str]) -> dict[str, str]:
    """Take the numbers off; a layer called again is told apart as `embed@2`."""
    chosen: dict[str, str] = {}
    taken: dict[str, int] = {}
    result = {}
    for node, name in clean.items():
        *parts, last = name.split("/")
        old, new = "", ""
        for part in parts:
            old = f"{old}/{part}"
            if old not in chosen:
                bare = part in INTERNAL or not _NUMBERED.fullmatch(part)
                own = part if bare else part.rsplit("_", 1)[0]
                base = f"{new}/{own}"
                taken[base] = taken.get(base, 0) + 1
                chosen[old] = base if taken[base] == 1 else f"{base}@{taken[base]}"
            new = chosen[old]
        result[node] = f"{new}/{last}".removeprefix("/")
    return result


def _calls_apart(clean: Mapping[str, str]) -> dict[str, str]:
    """Tell the calls of a Keras 2 layer apart, whose nodes share a scope.

    The second call of `embed` makes `embed/Relu_1` beside `embed/Relu`: that is `embed@2/Relu_1`.
    """
    numbers = _call_numbers(clean)
    calls: dict[str, set[int]] = defaultdict(set)
    for node, number in numbers.items():
        calls[clean[node].rsplit("/", 1)[0]].add(number)
    counts: dict[str, set[int]] = defaultdict(set)
    for scope, found in calls.items():
        parts = scope.split("/")
        for depth in range(1, len(parts) + 1):
            counts["/".join(parts[:depth])].add(len(found))
    result = dict(clean)
    for node, number in numbers.items():
        parts = clean[node].split("/")
        heads = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        whole = [head for head in heads if len(counts[head]) == 1 and counts[head] != {1}]
        if number and whole:
            result[node] = f"{whole[0]}@{number + 1}{clean[node][len(whole[0]) :]}"
    return result


def _call_numbers(clean: Mapping[str, str]) -> dict[str, int]:
    """Which call of its scope each node belongs to; 0 where the scope is not wholly repeated."""
    scopes: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    leaves: dict[str, set[str]] = defaultdict(set)
    for name in clean.values():
        scope, _, leaf = name.rpartition("/")
        leaves[scope].add(leaf)
    for node, name in clean.items():
        scope, _, leaf = name.rpartition("/")
        base, number = leaf, 0
        match = re.fullmatch(r"(.+?)_(\d+)", leaf)
        if match and match.group(1) in leaves[scope]:
            base, number = match.group(1), int(match.group(2))
        scopes[scope][number][base] = node
    numbers = {}
    for scope, calls in scopes.items():
        repeated = bool(scope) and all(set(calls[0]) == set(call) for call in calls.values())
        for position, number in enumerate(sorted(calls)):
            for node in calls[number].values():
                numbers[node] = position if repeated else 0
    return numbers
