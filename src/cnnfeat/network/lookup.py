"""From what a person types to a layer or tensor: pure Python over names.

The order, first match wins: exact layer name; tensor name with or without `:0` (traced names as
well); a pattern (`conv*`); part of a path (`conv2/relu`); the same without regard to case; a
block that nobody named (`conv2`: the second one from the images); an index (`-2`). Several matches
are an error that lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cnnfeat.errors import LayerLookupError, near_names
from cnnfeat.patterns import glob_expression, is_pattern, match_names

SHOWN = 12  # candidates listed in an error
LIST_THEM = "`cnnfeat layers` lists them"


@dataclass(frozen=True, slots=True)
class Found:
    """What a name means: a layer, a tensor that is no layer's, or a block that nobody named."""

    name: str
    is_layer: bool
    is_block: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """Everything in a network that has a name."""

    layers: Sequence[str]  # "conv2", "conv2/relu", in the network's order
    tensors: Sequence[str] = ()  # "conv2/relu/Relu:0"
    aliases: Mapping[str, str] = field(default_factory=dict)  # other spelling of a tensor -> tensor
    scopes: Mapping[str, str] = field(default_factory=dict)  # a layer's longer name -> layer
    top: Sequence[str] = ()  # the layers an index counts; (): all
    blocks: Mapping[str, str] = field(default_factory=dict)  # "conv2" -> what it consists of
    places: Mapping[str, str] = field(default_factory=dict)  # "conv2" -> which layer that would be
    listed_by: str = LIST_THEM  # a hint; "": nothing lists the names of a network without a file


def find(names: Names, query: str) -> tuple[Found, ...]:
    """Say what `query` means: one layer or tensor, or all that a pattern matches.

    Raises
    ------
    LayerLookupError
        If it means nothing, or several things without being a pattern.
    """
    exact = find_exactly(names, query)
    if exact:
        return (exact,)
    if is_pattern(query):
        return _matching(names, query)
    for candidates in (_by_path(names, query), _by_path(names, query, fold=True)):
        if len(candidates) == 1:
            return candidates
        if candidates:
            raise LayerLookupError(
                f"{query!r} could be {_several(found.name for found in candidates)}",
                hint="name one of them, more of its path, or a pattern such as '*/relu'",
            )
    if query.lower() in names.blocks:
        return (Found(query.lower(), is_layer=False, is_block=True),)
    if re.fullmatch(r"[+-]?\d+", query):
        return (_by_index(names, query),)
    raise _miss(names, query)


def parts_of(names: Names) -> frozenset[str]:
    """All that stands between slashes in a name of a layer or tensor, in small letters."""
    tensors = [text for name in names.tensors for text in (name, name.removesuffix(":0"))]
    return frozenset(part for name in (*names.layers, *tensors) for part in name.lower().split("/"))


def find_exactly(names: Names, query: str) -> Found | None:
    """Say which layer or tensor goes by this very name, if one does."""
    if query in names.layers:
        return Found(query, True)
    for spelled in (query, f"{query}:0"):
        tensor = names.aliases.get(spelled, spelled)
        if tensor in names.tensors:
            return Found(tensor, False)
    if query in names.scopes:
        return Found(names.scopes[query], True)
    return None


def _by_path(names: Names, query: str, *, fold: bool = False) -> tuple[Found, ...]:
    """Layers, or else tensors, that end in `query`; or else hold it, cut at slashes."""
    spell = str.lower if fold else str
    wanted = f"/{spell(query).strip('/')}"
    spelled = [(spell(f"/{name}"), Found(name, True)) for name in names.layers]
    tensors = [(spell(f"/{name}"), Found(name, False)) for name in names.tensors]
    attempts = (
        lambda path: path == wanted,
        lambda path: path.endswith(wanted),
        lambda path: f"{wanted}/" in path,
    )
    for matches in attempts:
        found = tuple(item for path, item in spelled if matches(path))
        if found:
            return found
        found = tuple(
            item for path, item in tensors if matches(path) or matches(path.removesuffix(":0"))
        )
        if found:
            return found
    return ()


def _matching(names: Names, pattern: str) -> tuple[Found, ...]:
    layers = match_names(names.layers, pattern)
    blocks = [name for name in names.blocks if re.fullmatch(glob_expression(pattern), name)]
    if blocks and not any(re.fullmatch(glob_expression(pattern), name) for name in layers):
        return tuple(Found(name, is_layer=False, is_block=True) for name in blocks)
    if layers:
        return tuple(Found(name, True) for name in layers)
    stems = {name.removesuffix(":0"): name for name in names.tensors}
    tensors = match_names(stems, pattern)
    if tensors:
        return tuple(Found(stems[name], False) for name in tensors)
    raise LayerLookupError(
        f"no layer matches the pattern {pattern!r}; the network has {_all_of(names)}",
        hint=names.listed_by,
    )


def _by_index(names: Names, query: str) -> Found:
    top = names.top or names.layers
    index = int(query)
    if not -len(top) <= index < len(top):
        raise LayerLookupError(
            f"there is no layer {index}: the network has {len(top)}, "
            f"counted from 0 or, from the end, from -1",
            hint=names.listed_by,
        )
    return Found(top[index], True)


def _miss(names: Names, query: str) -> LayerLookupError:
    known, hint = "", names.places.get(query.lower()) or _near(names, query)
    if not hint and names.blocks:
        blocks = [f"{name} ({path})" for name, path in names.blocks.items()]
        known = f"; the blocks of the network are {', '.join(blocks)}"
    elif not hint:
        known = f"; it has {_all_of(names)}"
    return LayerLookupError(
        f"no layer or tensor is called {query!r}{known}",
        hint="; ".join(part for part in (hint, names.listed_by) if part),
    )


def _all_of(names: Names) -> str:
    return _several(names.top or names.layers, last="and") or "none"


def _near(names: Names, query: str) -> str:
    """Offer names that are spelled alike, but none that counts to another number."""
    tails = [name.rsplit("/", 1)[-1] for name in names.layers]
    stems = [name.removesuffix(":0") for name in names.tensors]
    for choices in ((*names.blocks, *names.layers), tails, stems):
        near = near_names(query, [name for name in choices if _same_number(query, name)])
        if near:
            return near
    return ""


def _same_number(query: str, name: str) -> bool:
    """Whether a name may be a slip of a numbered one: neither `conv1` nor `Conv2D` is, of `conv2`.

    A library numbers from the second on, and what it calls `Conv_2` may stand anywhere.
    """
    wanted = re.fullmatch(r"\D+(\d+)", query)
    if not wanted or not re.search(r"conv|fc|dense", name, re.IGNORECASE):
        return True
    if re.search(r"conv[123]d(_\d+)?$", name, re.IGNORECASE):
        return False
    found = re.search(r"(\d+)$", name)
    return int(found[1] if found else 1) == int(wanted[1])


def _several(names: Iterable[str], *, last: str = "or") -> str:
    quoted = [repr(name) for name in names]
    if len(quoted) > SHOWN:
        return ", ".join(quoted[:SHOWN]) + f" … ({len(quoted)} in all)"
    return f" {last} ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
