"""WebDataset: tar archives in which the files of a sample follow each other and share a name."""

from __future__ import annotations

import fnmatch
import gzip
import json
import re
import struct
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import (
    SPLIT_WORDS,
    AudioBytes,
    Corpus,
    CorpusClip,
    CorpusInfo,
    Missing,
    RemoteMember,
    TarMember,
    split_of,
)
from datasets_scripts.sources.listing import MAX_TEXT, decode_text, not_text
from datasets_scripts.sources.tables import COLUMN_OPTIONS, TextColumns, as_row, own_columns
from datasets_scripts.sources.tree import Tree, checked_name, is_address
from tokenizer.audio import is_audio
from tokenizer.errors import InputError, MissingFileError

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_TEXTS = ("json", "txt", "cls")
# Limits, which can be changed here. Compressed and sparse archives may stand for far more than they
# are: audio that has to be read into memory is refused beyond this.
MAX_AUDIO_BYTES = 2**30
# Remote archives whose headers are read at the same time.
_LISTED_AT_ONCE = 16
# Shards that the braces of a pattern may name.
MAX_SHARDS = 100_000

INFO = read_info(
    "webdataset_shards",
    options={"audio": "ending of the audio in samples that have several, such as mic1.flac"}
    | COLUMN_OPTIONS,
)


@dataclass(frozen=True)
class _Member:
    """A file in an archive; ``content`` is in memory if it is text, or cannot be read in place."""

    name: str
    offset: int
    size: int
    content: bytes | None

    @property
    def key(self) -> str:
        """What a sample's files have in common: the path up to the first dot of its last part."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def ending(self) -> str:
        """What comes after the key."""
        return self.name[len(self.key) + 1 :]

    @property
    def text_kind(self) -> str | None:
        """The one of `_TEXTS` that the file is, in any case; None for other files."""
        kind = self.ending.lower().rpartition(".")[2]
        return kind if kind in _TEXTS else None


class WebDataset(Corpus):
    """A folder of shards or a pattern of them with wildcards and braces.

    Such as ``data/train-{000..127}.tar``. In a folder, shards whose name begins with a split's
    (train, val, ...), or that are in a folder of that name, belong to it, and all others to
    "train". Nothing is unpacked, and memory does not grow with the archives.

    Plain archives are read in place, by the process that encodes the clip: to list them only their
    headers and texts are read, of remote ones by range requests, several archives at a time.
    Compressed archives, and those of servers that give no parts, are read from beginning to end,
    and their clips carry the audio in memory.
    """

    INFO = INFO

    def describe(self, root: str | Path, **_: str) -> CorpusInfo:
        """See `Corpus.describe`."""
        return replace(INFO, splits=tuple(_shards(root)[1]))

    def prepare(
        self, root: str | Path, split: str, **options: str
    ) -> Iterator[CorpusClip | Missing]:
        """See `Corpus.prepare`."""
        INFO.check_options(options)
        tree, shards = _shards(root)
        replace(INFO, splits=tuple(shards)).check_split(split)
        return _clips(tree, shards[split], options.get("audio"), own_columns(options))


def _shards(root: str | Path) -> tuple[Tree, dict[str, list[str]]]:
    """The shards of each split, sorted."""
    text = str(root)
    if any(sign in text for sign in "*?{["):
        folder, names = _expand(text)
        tree = Tree(folder)
    else:
        tree = Tree(root)
        if not tree.is_folder():
            raise MissingFileError(
                f"No such folder: {root}. Name a folder of .tar shards, or a pattern of them."
            )
        names = sorted(name for name in tree.walk() if name.endswith(_SUFFIXES))
    by_split: dict[str, list[str]] = {}
    for name in names:
        by_split.setdefault(_split(name), []).append(name)
    if not by_split:
        raise MissingFileError(f"There are no shards ({', '.join(_SUFFIXES)}) in {root}.")
    return tree, {split: by_split[split] for split in SPLIT_WORDS if split in by_split}


def _split(name: str) -> str:
    parts = [*name.lower().split("/")[:-1], re.split(r"[^a-z]", name.lower().rpartition("/")[2])[0]]
    return next(filter(None, map(split_of, parts)), "train")


def _expand(pattern: str) -> tuple[str, list[str]]:
    """The folder of a pattern, and the files in it that match, each named once."""
    # Braces name shards that must be there; wildcards name those that are.
    first = min(pattern.index(sign) for sign in "*?{[" if sign in pattern)
    folder, _, _ = pattern[:first].rpartition("/")
    if not folder:
        folder = "/" if pattern.startswith("/") else "."
    rest = pattern[len(folder) :].lstrip("/") if folder != "." else pattern.removeprefix("./")
    tree = Tree(folder)
    if not tree.is_folder():
        raise MissingFileError(f"No such folder: {folder}")
    names = [name for name in tree.walk() if name.endswith(_SUFFIXES)]
    shards = set()
    for expanded in islice(_braces(rest), MAX_SHARDS + 1):
        if len(shards) == MAX_SHARDS:
            raise InputError(f"The pattern {pattern!r} names more than {MAX_SHARDS:,} shards.")
        matching = [name for name in names if _matches(name, expanded)]
        if not matching:
            raise MissingFileError(
                f"There is no shard {expanded} in {folder}, which {pattern} names."
            )
        shards.update(matching)
    return folder, sorted(shards)


def _matches(name: str, pattern: str) -> bool:
    # As the shell has it: a wildcard stops at a slash.
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _braces(pattern: str) -> Iterator[str]:
    """Expands ``{a,b}`` and ``{000..127}``."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        if "{" in pattern or "}" in pattern:
            raise InputError(f"The pattern {pattern!r} has a brace without its other half.")
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        if first > last:
            raise InputError(f"{braces[0]} in the pattern {pattern!r} counts backwards.")
        if last - first >= MAX_SHARDS:
            raise InputError(
                f"{braces[0]} in the pattern {pattern!r} names more than {MAX_SHARDS:,} shards."
            )
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


# What `tarfile` and `gzip` raise for archives that are none, the last ones for headers that lie.
_DAMAGED = (
    tarfile.TarError, EOFError, OSError, zlib.error,
    ValueError, OverflowError, KeyError, IndexError, struct.error, RecursionError,
)  # fmt: skip


def _clips(
    tree: Tree, shards: list[str], audio: str | None, columns: TextColumns
) -> Iterator[CorpusClip | Missing]:
    if not is_address(tree.root):
        for shard in shards:
            yield from _clips_of(tree, shard, audio, columns)
        return
    listed: deque[Any] = deque()
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        for shard in shards:
            if not _is_plain(shard):
                # Its clips are large: they come one by one.
                while listed:
                    yield from listed.popleft().result()
                yield from _clips_of(tree, shard, audio, columns)
                continue
            if len(listed) == _LISTED_AT_ONCE:
                yield from listed.popleft().result()
            listed.append(pool.submit(lambda s: list(_clips_of(tree, s, audio, columns)), shard))
        while listed:
            yield from listed.popleft().result()


def _is_plain(shard: str) -> bool:
    return shard.endswith(".tar")


def _clips_of(
    tree: Tree, shard: str, audio: str | None, columns: TextColumns
) -> Iterator[CorpusClip | Missing]:
    seen = set[str]()
    try:
        for key, members in groupby(_members(tree, shard), key=lambda member: member.key):
            clip_id = f"{shard}/{key}"
            item = not_text(clip_id) or _sample(tree, shard, clip_id, list(members), audio, columns)
            if clip_id in seen:
                item = Missing(clip_id, f"{key} comes a second time, after other samples")
            seen.add(clip_id)
            yield item
    except _DAMAGED as error:
        yield Missing(shard, f"damaged after {len(seen)} whole samples: {error}")


def _members(tree: Tree, shard: str) -> Iterator[_Member]:
    with ExitStack() as opened:
        plain, remote = _is_plain(shard), is_address(tree.root)
        stream = opened.enter_context(tree.open_in_parts(shard) if plain else tree.open(shard))
        # Of servers that give no parts, fsspec does not know the size.
        in_place = plain and (not remote or _size(stream) is not None)
        if not plain:
            # Not `tarfile`'s own: where the file is cut off, that one ends without a word.
            stream = opened.enter_context(gzip.GzipFile(fileobj=stream))
        tar = opened.enter_context(tarfile.open(fileobj=stream, mode="r:" if in_place else "r|"))
        for info in tar:
            name = info.name.removeprefix("./")
            if info.isreg() and not name.rpartition("/")[2].startswith("."):
                member = _Member(name, info.offset_data, info.size, None)
                if member.text_kind or not in_place or info.issparse():
                    # A header says the size; what is too long is not read, and refused below.
                    fits = info.size <= (MAX_TEXT if member.text_kind else MAX_AUDIO_BYTES)
                    source = tar.extractfile(info) if fits else None
                    member = replace(member, content=source.read() if source else b"")
                yield member
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - else all are kept.
        _check_end(stream, tar.offset)


def _size(stream: Any) -> int | None:
    """Bytes of a file of fsspec that can be read in parts."""
    size = getattr(stream, "size", None)
    if callable(size) or size is None:  # Of files that are in memory or on this disk.
        return stream.seek(0, 2) - stream.seek(0) if stream.seekable() else None
    return size


def _check_end(stream: Any, offset: int) -> None:
    # `tarfile` is content with an end between two members, where a killed writer stopped.
    if isinstance(stream, gzip.GzipFile):
        while stream.read(2**20):  # Raises EOFError if something is missing.
            pass
        return
    stream.seek(offset)
    if len(stream.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without the mark of its end")


def _sample(
    tree: Tree,
    shard: str,
    clip_id: str,
    members: list[_Member],
    audio_ending: str | None,
    columns: TextColumns,
) -> CorpusClip | Missing:
    try:
        checked_name(members[0].name, shard)
    except ValueError:
        return Missing(clip_id, "its name leads out of the archive")
    audio = [member for member in members if is_audio(member.name)]
    if audio_ending is not None:
        audio = [member for member in audio if member.ending == audio_ending.lstrip(".")]
    endings = ", ".join(member.ending for member in members)
    if not audio:
        return Missing(clip_id, f"it has no audio, only {endings}")
    if len(audio) > 1:
        return Missing(clip_id, f"it has several pieces of audio ({endings}): use the option audio")
    chosen = audio[0]
    try:
        fields = _fields(members, PurePosixPath(chosen.ending).stem, columns)
    except ValueError as error:
        return Missing(clip_id, str(error))
    if chosen.content is not None and chosen.size > MAX_AUDIO_BYTES:
        return Missing(clip_id, f"its audio has more than {MAX_AUDIO_BYTES:,} bytes")
    if chosen.content is None:
        place = (chosen.offset, chosen.size, chosen.name)
        remote = is_address(tree.root)
        content = (
            RemoteMember(tree.path(shard), *place)
            if remote
            else TarMember(Path(tree.path(shard)), *place)
        )
    else:
        content = AudioBytes(chosen.content, f"{tree.path(shard)}: {chosen.name}")
    return not_text(clip_id, fields) or CorpusClip(clip_id, content, **fields)


def _fields(members: list[_Member], audio: str, columns: TextColumns) -> dict[str, Any]:
    """Label, caption and metadata of a sample whose audio ends in ``audio`` and a suffix."""
    texts = {kind: _text(members, kind, audio) for kind in _TEXTS}
    value: Any = {}
    if texts["json"]:
        try:
            value = json.loads(texts["json"])
        except (ValueError, RecursionError) as error:
            raise InputError(f"its .json cannot be read: {error}") from None
        if not isinstance(value, Mapping):
            raise InputError("its .json is not an object")
    fields = columns.fields(as_row(value))
    return fields | {
        "label": texts["cls"] or fields["label"],
        "caption": texts["txt"] or fields["caption"],
    }


def _text(members: list[_Member], kind: str, audio: str) -> str:
    """The text of a kind: of ``a.mic1.txt`` and ``a.txt``, the one named as the audio is."""
    candidates = {member.ending.lower(): member for member in members if member.text_kind == kind}
    if not candidates:
        return ""
    name = next((name for name in (f"{audio}.{kind}".lower(), kind) if name in candidates), None)
    if name is None and len(candidates) > 1:
        raise InputError(f"it has several files .{kind}: {', '.join(sorted(candidates))}")
    member = candidates[name or next(iter(candidates))]
    if member.size > MAX_TEXT:
        raise InputError(f"its .{member.ending} is longer than {MAX_TEXT:,} bytes")
    return decode_text(member.content or b"", f".{member.ending}")


CORPUS = WebDataset()
