"""Where features came from: what a feature file's root and a saved machine's metadata say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

from cnnfeat.documents import Count, Name, Share, json_text, parse_value, take_up
from cnnfeat.parts import KeptDivision
from cnnfeat.records import Json
from cnnfeat.shards import ShardRows

ON_ERROR = "on error"  # the setting that says what becomes of samples that can't be read


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where features came from; what isn't said is empty."""

    network: Name = ""  # file, as given
    network_sha256: Name = ""
    network_format: Name = ""  # "keras", "savedmodel" ...
    source: Name = ""
    source_kind: Name = ""
    source_fingerprint: Name = ""
    source_fingerprint_method: Name = ""
    # How images were fitted to the input, to be done again.
    preprocessing: Mapping[str, Name | Count | Sequence[Count] | None] = field(default_factory=dict)
    precision: Name = ""  # "float32" or "bfloat16"
    device: Name = ""  # "cpu", "gpu:0" ...
    tensorflow: Name = ""  # version
    engine: Name = ""  # what ran the network, and its version: "openvino 2026.4.1"
    network_test_accuracy: Share | None = None
    source_labels: Name = ""  # where its labels lie, if that was said apart
    network_source: Name = ""  # what the network was trained on, where that is known
    network_source_fingerprint: Name = ""
    division: Mapping[str, Json] | None = None  # how the source was divided for its training
    # By layer, operations that make features change from run to run or with their batch.
    network_unsteady: Mapping[str, tuple[Name, ...]] | None = None
    # What was asked for, by table of a run: "data", "model" (how the network was read), "extract"
    options: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    cnnfeat: Name = ""  # version
    h5py: Name = ""  # version
    created: Name = ""  # UTC, ISO 8601
    # What a resumed run must have in common with the first, in words.
    settings: Mapping[str, str] = field(default_factory=dict)
    shard: ShardRows | None = None  # None: the rows are all there are

    def to_attributes(self) -> dict[str, str | int | float]:
        """List what is said as texts and numbers: records as JSON."""
        said = {item.name: getattr(self, item.name) for item in fields(self)}
        said["shard"] = None if self.shard is None else asdict(self.shard)
        return {
            name: json_text(value) if isinstance(value, Mapping) else value
            for name, value in said.items()
            if value not in (None, "", {})
        }

    @property
    def is_whole(self) -> bool:
        """Whether nothing can have been left out."""
        return self.settings.get(ON_ERROR) == "raise"

    def of_set(self, settings: Mapping[str, str]) -> Provenance:
        """Say it of all shards together, which were made with the settings of a set."""
        options = dict(self.options)
        if ON_ERROR in settings and "extract" in options:
            options["extract"] = {**options["extract"], "on_error": settings[ON_ERROR]}
        return replace(self, shard=None, settings=settings, options=options)

    @classmethod
    def from_attributes(cls, facts: Mapping[str, object]) -> Provenance:
        """Take up what a file says; what else it says is left alone.

        Parameters
        ----------
        facts : mapping
            By name, texts and numbers; records as JSON, or as they are. None says nothing.

        Raises
        ------
        ValueError
            With the name and the value, and what is allowed.
        """
        said = {name: value for name, value in facts.items() if value is not None}
        for name in _RECORDS & said.keys():
            said[name] = _record(name, said[name])
        taken = take_up(cls, said)
        if taken.division is not None:
            take_up(KeptDivision, taken.division, at="division")
        return taken


def differing_settings(
    found: Mapping[str, str], wanted: Mapping[str, str], *, whole: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Yield the settings that differ: name, what is found, and what is wanted.

    Of what is `whole`, as no sample was left out, it doesn't matter whether one might have been.
    """
    for name in {**wanted, **found}:
        one, other = found.get(name, "not given"), wanted.get(name, "not given")
        if one != other and not (whole and name == ON_ERROR):
            yield name, one, other


_RECORDS = {"preprocessing", "division", "network_unsteady", "options", "settings", "shard"}


def _record(name: str, value: object) -> object:
    """What a text of JSON holds."""
    if not isinstance(value, str):
        return value
    try:
        return parse_value(value)
    except ValueError as error:
        raise ValueError(f"{name} holds no JSON record: {error}") from error
