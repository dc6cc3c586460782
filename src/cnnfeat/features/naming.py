"""What a person calls the layers of feature files: one, a pattern's, or several side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from cnnfeat.errors import UsageError
from cnnfeat.patterns import is_pattern, match_names, split_side_by_side

_LONGEST = 4096  # characters of a name, as records have them
# By the name of a stored layer, what its layer and its tensor are called in the network, and what
# was typed for it; "" where that is one of these.
Spelled: TypeAlias = Mapping[str, tuple[str, str, str]]


class LayerHolder(Protocol):
    """What holds layers, or will: a feature file, or the plan of one."""

    @property
    def spelled(self) -> Spelled:
        """Its layers, in its order."""

    def find_layer(self, name: str, /) -> str:
        """Find the stored name of one layer, or say that there is none."""


@dataclass(frozen=True, slots=True)
class LayerPart:
    """One of the layers that are joined."""

    file: int  # whose it is: a place among the files
    layer: str  # as it is stored there


@dataclass(frozen=True, slots=True)
class JoinedLayer:
    """Layers whose columns stand side by side; often it is one."""

    name: str  # "conv2+fc1": found again by it
    parts: tuple[LayerPart, ...]


def find_joined(text: str, files: Sequence[LayerHolder]) -> JoinedLayer:
    """Say which layers a text means: "fc1", "conv2+fc1", "seed*/fc1".

    Of one file all parts are; of several, each in turn, or each has what the only part means.

    Parameters
    ----------
    text : str
        Names, as `find_stored` takes them, or patterns, with `+` between. A layer that goes by the
        whole text is found first.
    files : sequence of LayerHolder
        Where the layers are.

    Raises
    ------
    UsageError
        If there are more parts or fewer than files, or a layer stands in it twice.
    LayerLookupError
        If a file has no layer that a part could mean; near names are in the hint.
    """
    names = _split(text, files)
    asked = [(place if len(files) > 1 else 0, name) for place, name in enumerate(names)]
    if len(names) == 1:
        asked = [(place, text) for place in range(len(files))]
    elif len(files) not in (1, len(names)):
        raise UsageError(
            f"{text!r} names {len(names)} layers, and there are {len(files)} feature files: the "
            "first is of the first file, the second of the second",
            hint="name a layer of each file, or one layer that all of them have",
        )
    found = [(place, name, _of_name(name, files[place])) for place, name in asked]
    parts = tuple(LayerPart(place, layer) for place, _, layers in found for layer in layers)
    if len(set(parts)) < len(parts):
        twice = next(part.layer for part, n in Counter(parts).items() if n > 1)
        raise UsageError(
            f"{text!r} has {twice!r} twice, of one file: its columns would count twice",
            hint="name each layer once, or a feature file for each part",
        )
    name = "+".join(_shown(name, layers) for _, name, layers in found)
    return JoinedLayer(name if len(name) <= _LONGEST else f"{len(parts):,} layers", parts)


def _split(text: str, files: Sequence[LayerHolder]) -> list[str]:
    known = (
        one for file in files for stored, own in file.spelled.items() for one in (stored, *own)
    )
    return split_side_by_side(
        text,
        lambda name: any(find_stored(name, file.spelled) is not None for file in files),
        longest=max((name.count("+") for name in known), default=0),
    )


def _of_name(name: str, file: LayerHolder) -> list[str]:
    """Stored names of the layers that one part means, in the file's order."""
    if not name:
        raise UsageError(
            "a layer's name is missing beside a +", hint="conv2+fc1 joins two layers, for example"
        )
    if is_pattern(name) and find_stored(name, file.spelled) is None:
        own = {layer: stored for stored, (layer, *_) in file.spelled.items()}
        for names in (own, {stored: stored for stored in file.spelled}):
            if found := match_names(names, name):
                return [names[one] for one in found]
    return [file.find_layer(name)]


def _shown(name: str, layers: Sequence[str]) -> str:
    """A layer as it is stored; of several, the pattern that means them."""
    return layers[0] if len(layers) == 1 else name


def find_stored(name: str, layers: Spelled) -> str | None:
    """Return the stored name of a layer that `name` means, or None.

    In turn: the stored name; that in any case; the layer's or tensor's own name, `/` and `:0`
    included; what was typed for it when it was extracted.

    Parameters
    ----------
    name : str
        As a person gave it.
    layers : mapping of str to (str, str, str)
        Stored names, the names of each one's layer and tensor, and what was typed for it.
    """
    wanted = name.replace("/", ".")
    for candidates in _spellings(wanted, layers):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _spellings(wanted: str, layers: Spelled) -> Iterator[list[str]]:
    yield [stored for stored in layers if stored == wanted]
    yield [stored for stored in layers if stored.lower() == wanted.lower()]
    for without in ("", ":0"):
        yield [
            stored
            for stored, (layer, tensor, _) in layers.items()
            if wanted in (layer.replace("/", "."), tensor.removesuffix(without).replace("/", "."))
        ]
    yield [stored for stored, (_, _, asked) in layers.items() if asked.replace("/", ".") == wanted]
