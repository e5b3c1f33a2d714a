"""What a corpus is: its clips and their descriptions, in the form that preparation reads.

Each corpus is a `Corpus` named ``CORPUS`` in a module of `datasets_scripts.corpora`.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizer.errors import FileError, InputError

# What the names of splits begin with, under the names that `datasets` gives to them.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_of(word: str) -> str | None:
    """The split that a word stands for, in any case; None if it stands for none."""
    return next((name for name, words in SPLIT_WORDS.items() if word.lower() in words), None)


class EncodedAudio(ABC):
    """An audio file that is not on this disk, or is part of another file."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """The content of the file; raises OSError if it cannot be read."""

    def open(self) -> io.BufferedIOBase:
        """The content as a stream."""
        return io.BytesIO(self.read_bytes())


@dataclass(frozen=True)
class RemoteFile(EncodedAudio):
    """A file at an address that fsspec knows, such as ``s3://bucket/folder/clip.flac``."""

    address: str

    def __str__(self) -> str:
        return self.address

    def read_bytes(self) -> bytes:
        """See `EncodedAudio`."""
        import fsspec

        with fsspec.open(self.address, "rb") as stream:
            return stream.read()  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class TarMember(EncodedAudio):
    """A file inside an uncompressed tar archive, read in place; offset and size in bytes."""

    archive: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"

    def read_bytes(self) -> bytes:
        """See `EncodedAudio`; also raises OSError if the archive has become shorter."""
        with self.archive.open("rb") as stream:
            stream.seek(self.offset)
            return _whole(stream.read(self.size), self)


@dataclass(frozen=True)
class RemoteMember(EncodedAudio):
    """As `TarMember`, in an archive at an address, of which only this part is fetched."""

    address: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.address}: {self.name}"

    def read_bytes(self) -> bytes:
        """See `EncodedAudio`; also raises OSError if the archive has become shorter."""
        from fsspec.core import url_to_fs

        files, path = url_to_fs(self.address)
        return _whole(files.cat_file(path, self.offset, self.offset + self.size), self)


def _whole(content: bytes, member: TarMember | RemoteMember) -> bytes:
    if len(content) != member.size:
        raise FileError(f"{member} is cut off: {len(content)} bytes of {member.size} are there.")
    return content


@dataclass(frozen=True)
class SpooledAudio(TarMember):
    """What was `AudioBytes`, in a file that holds other clips' audio too."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class AudioBytes(EncodedAudio):
    """An encoded file in memory, from a row of a dataset or a stream; its name for messages."""

    content: bytes = field(repr=False)
    name: str

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        """See `EncodedAudio`."""
        return self.content


# Preparation streams a Path from the disk, and reads the others into memory.
ClipAudio = Path | EncodedAudio


@dataclass(frozen=True)
class CorpusClip:
    """A piece of audio of a corpus, not read yet, and what the corpus says of it.

    Attributes:
        id: Unique in its split, and the same on every machine.
        audio: Where the encoded audio is; cheap to pickle, unless it is `AudioBytes`.
        label: Class of the clip.
        caption: What it sounds like, or what is said in it.
        metadata: Anything else.
        start: Seconds into ``audio`` where the clip begins; None for its beginning.
        end: Seconds into ``audio`` where it ends; None for its end.
    """

    id: str
    audio: ClipAudio
    label: str | None = None
    caption: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    start: float | int | None = None
    end: float | int | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise InputError("A clip needs an id.")
        if self.start is not None and not 0 <= self.start < float("inf"):
            raise InputError(f"Clip {self.id!r} begins at {self.start} s; that must be 0 or more.")
        if self.end is not None and not (self.start or 0) < self.end < float("inf"):
            raise InputError(f"Clip {self.id!r} ends at {self.end} s, before it begins.")

    def read_bytes(self) -> bytes:
        """The encoded audio, all of it, whatever ``start`` and ``end`` are."""
        return self.audio.read_bytes()

    def open(self) -> io.BufferedIOBase:
        """The encoded audio, all of it, as a stream."""
        return self.audio.open("rb") if isinstance(self.audio, Path) else self.audio.open()


Clip = CorpusClip  # Its name in version 0.1.


@dataclass(frozen=True)
class Missing:
    """A clip that the corpus should have and cannot give; it is counted and listed, not dropped.

    ``id`` as `CorpusClip.id`; ``reason`` in one line.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Download:
    """A file that a corpus is distributed as: its official address, and its name on disk.

    ``splits`` need it, all if empty. ``checksum``, if one is published, is "md5:...", "sha1:..." or
    "sha256:..." in hexadecimal digits.
    """

    url: str
    name: str
    splits: tuple[str, ...] = ()
    checksum: str | None = None


@dataclass(frozen=True)
class CorpusInfo:
    """What is known of a corpus before anything is read.

    Attributes:
        name: As on the command line.
        title: As its authors call it.
        homepage: Where it is described.
        licence: Of the audio.
        citation: BibTeX; empty if there is none.
        splits: All that exist; empty if that depends on the folder (see ``describe``).
        label_kind: What `CorpusClip.label` is; None if there is none.
        caption_kind: What `CorpusClip.caption` is; None if there is none.
        sampling_rate: Hz; None if it varies.
        downloads: What ``download`` fetches.
        options: Names of the keyword arguments that the corpus' methods take, with what they do.
        choices: The values that an option may have, for options with few of them.
    """

    name: str
    title: str
    homepage: str
    licence: str
    citation: str = ""
    splits: tuple[str, ...] = ()
    label_kind: str | None = None
    caption_kind: str | None = None
    sampling_rate: int | None = None
    downloads: tuple[Download, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def check_split(self, split: str) -> None:
        """Raises ValueError if there is no such split."""
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise InputError(f"{self.title} has no split {split!r}. Splits: {known}.")

    def check_options(self, options: Mapping[str, str]) -> None:
        """Raises ValueError if there is no such option, or it cannot have this value."""
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise InputError(f"Corpus {self.name!r} has no option {name!r}. Options: {known}.")
            if value not in self.choices.get(name, (value,)):
                expected = " or ".join(self.choices[name])
                raise InputError(f"{name}={value!r}; expected {expected}.")


class Corpus(ABC):
    """What the methods of every corpus do.

    ``root`` is a folder, or an address that fsspec knows. Options are strings, see
    `CorpusInfo.options`. `INFO` is known before anything is read.
    """

    INFO: CorpusInfo

    @abstractmethod
    def describe(self, root: str | Path, **options: str) -> CorpusInfo:
        """`INFO` with the splits that ``root`` really has; never reads audio.

        Raises:
            FileNotFoundError: If there is nothing of the corpus at ``root``.
        """

    def download(
        self,
        root: str | Path,
        splits: Sequence[str] | None = None,
        *,
        progress: bool = False,  # noqa: ARG002
        **options: str,
    ) -> Path:
        """Fetches what the splits (default: all) lack at ``root``, if it has an address.

        Returns the folder to give to ``prepare``; ``root`` is a folder of this machine.

        Raises:
            FileNotFoundError: If it is not there and has no address to fetch it from.
            ValueError: If there is no such split or option.
            RuntimeError: If an address cannot be reached, or sends something else.
        """
        info = self.describe(root, **options)
        for split in splits or ():
            info.check_split(split)
        return Path(root)

    @abstractmethod
    def prepare(
        self, root: str | Path, split: str, **options: str
    ) -> Iterator[CorpusClip | Missing]:
        """The clips of a split, one by one, in an order that is always the same.

        Raises:
            FileNotFoundError: If metadata, or the whole split, is missing.
            ValueError: If there is no such split or option, or metadata cannot be understood.
                Single clips that cannot be found raise nothing: they come as `Missing`.
        """
