"""Unpacking of archives that came from elsewhere: nothing lands outside the folder, or half."""

from __future__ import annotations

import io
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_scripts.sources.tree import checked_name
from tokenizer.errors import FileError, InputError, MissingFileError

_STAGING = ".unpacking-"

# What the standard library raises for an archive that is cut off or altered.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError,
    struct.error, UnicodeError, OverflowError, KeyError, IndexError,
    RuntimeError,  # zipfile's, for archives with passwords or of an unknown compression
)  # fmt: skip


def unpack(archive: Path, folder: Path, *, progress: bool = False) -> None:
    """Unpacks a tar (also .gz, .bz2, .xz) or zip archive, the latter in parts too (.z01, .zip).

    All goes to a hidden folder first and is moved, file by file, when it is complete. Files of the
    same names are replaced. Of an archive in parts, name the last one, which ends in ``.zip``.

    Raises:
        ValueError: If it is not an archive or damaged, or a member would land outside the folder.
        OSError: If the disk is full.
    """
    staging = folder / f"{_STAGING}{archive.name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with tqdm(desc=f"unpack {archive.name}", unit="file", disable=not progress) as bar:
            if archive.suffix == ".zip":
                _unpack_zip(archive, staging, bar)
            else:
                _unpack_tar(archive, staging, bar)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, _DAMAGED):
            raise InputError(
                f"{archive} is damaged or not an archive ({error}): delete it and fetch it again."
            ) from error
        raise
    _move_all(staging, folder)
    shutil.rmtree(staging)


def is_unpacking(folder: Path) -> bool:
    """Whether an unpacking into this folder was broken off."""
    return any(folder.glob(f"{_STAGING}*"))


def _move_all(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _move_all(path, target / path.name)
        else:
            path.replace(target / path.name)


def _unpack_tar(archive: Path, folder: Path, bar: tqdm) -> None:
    # As a stream: to seek in a compressed file is to read it again from its beginning.
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            # The filter "data" allows links inside of the folder; chains of them have led out of it
            # before (CVE-2025-4517). No corpus has any.
            if not (member.isreg() or member.isdir()):
                raise InputError(
                    f"{archive} is refused: {member.name!r} is neither file nor folder."
                )
            try:
                tar.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise InputError(f"{archive} is refused: {error}.") from None
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - else all are kept.
            bar.update()


def _unpack_zip(archive: Path, folder: Path, bar: tqdm) -> None:
    with _open_zip(archive) as members:
        total = sum(info.file_size for info in members.infolist())
        free = shutil.disk_usage(folder).free
        if total > free:
            raise FileError(f"{archive} unpacks to {total:,} bytes; {folder} has {free:,} free.")
        bar.total = len(members.infolist())
        for info in members.infolist():
            name = checked_name(info.filename, str(archive))
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{archive} is refused: {name!r} is neither file nor folder.")
            info.filename = f"{name}/" if info.is_dir() else name
            members.extract(info, folder)
            bar.update()


def zip_parts(archive: Path) -> list[Path]:
    """The parts of a split zip archive (.z01, .z02, ...) and itself, which is the last one.

    Raises FileNotFoundError if one in between is not there.
    """
    numbered = [p for p in archive.parent.glob(f"{archive.stem}.z*") if p.suffix[2:].isdigit()]
    parts = sorted(numbered, key=lambda part: int(part.suffix[2:]))
    for number, part in enumerate(parts, start=1):
        if int(part.suffix[2:]) != number:
            raise MissingFileError(f"{archive} lacks its part {archive.stem}.z{number:02d}.")
    return [*parts, archive]


@contextmanager
def _open_zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    parts = zip_parts(archive)
    if len(parts) == 1:
        with zipfile.ZipFile(archive) as members:
            yield members
        return
    joined = _Joined(parts)
    with io.BufferedReader(joined) as stream, zipfile.ZipFile(stream) as members:
        # `zipfile` takes all for one file in which places count from the beginning of the last
        # part's directory. They count from the beginning of the part that a member begins in.
        shift = joined.starts[-1]
        for info in members.infolist():
            if info.volume >= len(parts):
                at_least = info.volume + 1
                raise InputError(f"{archive} has {at_least} parts or more: not all are there.")
            info.header_offset += joined.starts[info.volume] - shift
            # Computed from the wrong places; guards against members that overlap.
            if hasattr(info, "_end_offset"):
                info._end_offset = None  # pyright: ignore[reportAttributeAccessIssue]
        yield members


class _Joined(io.RawIOBase):
    """Files one after the other as one; ``starts`` says where each of them begins."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        ends = list(accumulate(path.stat().st_size for path in paths))
        self.starts, self._size = [0, *ends[:-1]], ends[-1]
        self._position = 0

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise FileError("negative seek position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        part = bisect_right(self.starts, self._position) - 1
        self._files[part].seek(self._position - self.starts[part])
        size = self._files[part].readinto(buffer)
        self._position += size
        return size
