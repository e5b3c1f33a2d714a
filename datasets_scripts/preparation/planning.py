"""Which clips a run has to prepare: all of a split, less those whose shards are whole already.

And whether a split that is finished still consists of the clips that it was made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, zip_longest

from datasets_scripts.preparation.encoding import NumberedClip
from datasets_scripts.sources.corpus import CorpusClip, Missing
from datasets_scripts.sources.ids import IdHash, SeenIds
from tokenizer.errors import InputError


class Plan:
    """The clips of a split that are still to do; iterate over it once.

    ``done`` has for each shard that is whole its number of clips, and the `IdHash` of their ids.
    ``num_clips``, of the whole split, is known at the end.
    """

    def __init__(
        self,
        split: str,
        items: Iterable[CorpusClip | Missing],
        clips_per_shard: int,
        done: Mapping[int, tuple[int, str]],
    ) -> None:
        self._split, self._items = split, items
        self._clips_per_shard, self._done = clips_per_shard, done
        self.num_clips = 0

    @property
    def num_shards(self) -> int:
        """How many shards the split has; known at the end."""
        return -(-self.num_clips // self._clips_per_shard)

    def __iter__(self) -> Iterator[NumberedClip]:
        seen = SeenIds()
        ids = IdHash()
        for item in self._items:
            index, self.num_clips = self.num_clips, self.num_clips + 1
            shard, place = divmod(index, self._clips_per_shard)
            ids = ids if place else IdHash()
            ids.add(item.id)
            again = seen.add(item.id)
            if shard in self._done:
                clips, clip_ids = self._done[shard]
                if place + 1 == clips and ids.hexdigest() != clip_ids:
                    self._refuse(shard)
                continue
            if again and isinstance(item, CorpusClip):
                item = Missing(item.id, "its id occurs a second time in this split")  # noqa: PLW2901
            yield NumberedClip(index, item)
        last = self.num_clips % self._clips_per_shard
        sizes = {self.num_shards - 1: last} if last else {}
        for shard, (clips, _) in self._done.items():
            expected = sizes.get(shard, self._clips_per_shard)
            if shard >= self.num_shards or clips != expected:
                self._refuse(shard)

    def _refuse(self, shard: int) -> None:
        raise InputError(
            f"The corpus is not what it was when shard {shard} of {self._split!r} was written:"
            " clips were added, removed or renamed since. Prepare it into another --out."
        )


def check_same(
    split: str,
    items: Iterable[CorpusClip | Missing],
    clips_per_shard: int,
    then: Sequence[tuple[int, str]],
) -> None:
    """Raises ValueError if a finished split was made of other clips than the corpus yields now.

    ``then`` has for each shard of the split its number of clips, and the `IdHash` of their ids.
    """
    now = list(_shards(items, clips_per_shard))
    different = [i for i, (a, b) in enumerate(zip_longest(now, then)) if a != b]
    if different:
        before, after = (sum(clips for clips, _ in shards) for shards in (then, now))
        raise InputError(
            f"The corpus is not what it was: {split!r} had {before} clips when it was prepared and"
            f" has {after} now, others from shard {different[0]} on. Prepare it into another --out."
        )


def _shards(
    items: Iterable[CorpusClip | Missing], clips_per_shard: int
) -> Iterator[tuple[int, str]]:
    """The number of clips of each shard, and the `IdHash` of their ids."""
    for _, group in groupby(enumerate(items), key=lambda pair: pair[0] // clips_per_shard):
        ids, clips = IdHash(), 0
        for _, item in group:
            ids.add(item.id)
            clips += 1
        yield clips, ids.hexdigest()
