"""One shard of a set: an ordinary feature file with a name of its own, and its place among all."""

from __future__ import annotations

from collections.abc import Mapping

from cnnfeat.errors import FeatureFileError
from cnnfeat.features.reader import FeatureFile
from cnnfeat.shards import ShardRows

_HINT = "give every shard's command the same options, source and versions"


class ShardFile(FeatureFile):
    """A shard as one of its set, which one without rows is too: all its samples were left out.

    Attributes
    ----------
    place : ShardRows
        Which rows of the set it has.
    """

    def _load(self) -> None:
        super()._load()
        if self.provenance.shard is None:
            raise FeatureFileError(
                f"{self.path} is no shard: nothing in it says which rows of a set it has",
                hint="cnnfeat extract --shard 3/20 makes one",
            )
        self.place: ShardRows = self.provenance.shard

    def _filled(self) -> tuple[str, ...]:
        return tuple(split for split in self._groups if self.n_rows(split))

    def check_settings(self, wanted: Mapping[str, str], others: str) -> None:
        """Refuse a shard that was made with other settings than the others; name the first.

        Parameters
        ----------
        wanted : mapping of str to str
            The settings that all have in common.
        others : str
            What has them, for the message.

        Raises
        ------
        FeatureFileError
            With the setting's name and both values.
        """
        found = self.provenance.settings
        for name in {**wanted, **found}:
            one, other = found.get(name, "not given"), wanted.get(name, "not given")
            if one != other:
                raise FeatureFileError(
                    f"{self.path} was made with another {name} than {others}: {one}, not {other}",
                    hint=_HINT,
                )
