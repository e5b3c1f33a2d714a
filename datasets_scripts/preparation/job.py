"""What a preparation consists of, checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from datasets_scripts.corpora import describe_corpus, find_corpus
from datasets_scripts.dataset.manifest import (
    MANIFEST,
    PROGRESS,
    Manifest,
    ShardRecord,
    read_manifest,
)
from datasets_scripts.dataset.shards import DATA, split_name
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.dataset.summary import Statistics
from datasets_scripts.preparation.options import Request, RowOptions
from datasets_scripts.preparation.planning import Plan, check_same
from datasets_scripts.sources.corpus import CorpusClip, CorpusInfo, Missing
from tokenizer import LatentTokenizer, device_of, load_tokenizer
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Job:
    """A preparation: what is read, what is made of it, where it goes.

    ``header`` is the manifest; the shards of unfinished splits are not in it.
    """

    info: CorpusInfo
    root: str
    splits: tuple[str, ...]
    options: RowOptions
    corpus_options: dict[str, str]
    tokenizer: LatentTokenizer
    folder: Folder
    header: Manifest

    def plan(self, split: str, done: dict[int, ShardRecord]) -> Plan:
        """The clips of a split that are still to do."""
        known = {index: (record.clips, record.clip_ids) for index, record in done.items()}
        return Plan(split, self._items(split), self.options.clips_per_shard, known)

    def check_finished(self) -> None:
        """Raises ValueError if a split that is whole has other clips in the corpus by now."""
        for split in self.splits:
            name = split_name(split)
            if name in self.header.splits:
                records = (record for record in self.header.shards if record.split == name)
                then = [(record.clips, record.clip_ids) for record in records]
                check_same(split, self._items(split), self.options.clips_per_shard, then)

    def _items(self, split: str) -> Iterator[CorpusClip | Missing]:
        corpus = find_corpus(self.info.name)
        return corpus.prepare(self.root, split, **self.corpus_options)

    def no_statistics(self) -> Statistics:
        """Sums over no rows, of the right sizes."""
        return Statistics(self.header.codebook_sizes, self.header.row_format().latent_dim or 0)


def start_job(request: Request, device: str = "cpu") -> Job:
    """Checks a request, also against what is in its folder already, and begins a manifest there.

    Raises:
        FileNotFoundError: If there is nothing of the corpus at ``root``.
        ValueError: If there is no such corpus or split, the tokenizer cannot do what is requested,
            or ``out`` was prepared with something else, or the corpus has changed since.
    """
    corpus_options = dict(request.corpus_options or {})
    info = describe_corpus(request.corpus, request.root, corpus_options)
    splits = tuple(dict.fromkeys(info.splits if request.splits is None else request.splits))
    for split in splits:
        info.check_split(split)
    tokenizer, name = _load(request.tokenizer)
    tokenizer = tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]
    options = (request.options or RowOptions()).resolved(tokenizer)
    sizes = tokenizer.codebook_sizes[: options.n_codebooks] if options.codes else ()
    header = Manifest(
        corpus=request.corpus,
        root=str(request.root),
        tokenizer=name,
        fingerprint=tokenizer.fingerprint,
        codes_fingerprint=tokenizer.codes_fingerprint if options.codes else None,
        sampling_rate=tokenizer.sampling_rate,
        hop_length=tokenizer.hop_length,
        frame_rate=tokenizer.frame_rate,
        latent_dim=tokenizer.latent_dim,
        channels_coded_jointly=tokenizer.autoencoder.num_channels,
        codebook_sizes=tuple(sizes),
        options=options.to_json() | {"corpus_options": corpus_options},
    )
    folder = Folder(request.out)
    existing = read_manifest(folder)
    if existing is not None and (differences := header.differences(existing)):
        raise InputError(
            f"{folder} was begun with other settings ({'; '.join(differences)}). Use another --out,"
            " or the same settings."
        )
    if existing is None and folder.names(DATA):
        raise InputError(f"{folder.path(DATA)} holds files of something else: use another --out.")
    header = existing or header
    job = Job(info, str(request.root), splits, options, corpus_options, tokenizer, folder, header)
    # Before anything is written: a dataset that was complete stays so if its corpus is refused.
    job.check_finished()
    if not set(map(split_name, splits)) <= set(header.splits):
        job = replace(job, header=replace(header, complete=False))
        folder.write_json(MANIFEST, job.header.to_json())
    for place in ("", DATA, PROGRESS):
        folder.remove_partial(place)
    return job


def _load(tokenizer: str | Path | LatentTokenizer | None) -> tuple[LatentTokenizer, str | None]:
    """A tokenizer, and its name in the manifest."""
    if isinstance(tokenizer, LatentTokenizer):
        return tokenizer, str(tokenizer.name_or_path) or "unnamed"
    return load_tokenizer(tokenizer), None if tokenizer is None else str(tokenizer)
