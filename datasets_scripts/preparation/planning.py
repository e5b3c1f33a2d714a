"""Which clips a run has to prepare: all of a split, less those whose shards are whole already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

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
        items: Iterator[CorpusClip | Missing],
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

    def check_whole(self) -> None:
        """Raises ValueError unless ``done`` has all shards, of the clips that there are now."""
        if sum(1 for _ in self):
            self._refuse(len(self._done) - 1)

    def _refuse(self, shard: int) -> NoReturn:
        before = sum(clips for clips, _ in self._done.values())
        now = self.num_clips + sum(1 for _ in self._items)
        raise InputError(
            f"The corpus is not what it was: {self._split!r} had {before} clips in the shards that"
            f" are written and has {now} now, others from shard {shard} on. Prepare it into another"
            " --out."
        )
