"""The folder that a corpus lies in: on this machine, or at any address that fsspec knows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from datasets_scripts.sources.corpus import CorpusInfo, RemoteFile
from tokenizer.audio import Folders
from tokenizer.errors import InputError, MissingFileError, import_extra

# Bytes that are fetched at once where few are read: a header and texts beside it.
_SMALL_BLOCK = 2**16


def is_address(root: str | Path) -> bool:
    """Whether this is an address for fsspec rather than a path."""
    return "://" in str(root)


def checked_name(name: str, source: str) -> str:
    """A name that metadata gives to a file, with single slashes; ``source`` is for messages.

    Raises ValueError if it is empty, absolute, or leads out of its folder.
    """
    parts = name.replace("\\", "/").split("/")
    absolute = name.startswith(("/", "\\")) or PureWindowsPath(name).drive or is_address(name)
    if not name.strip() or absolute or ".." in parts or "\0" in name:
        raise InputError(
            f"{source} names the file {name!r}: expected a path inside the folder, relative to it."
        )
    return "/".join(part for part in parts if part not in ("", "."))


class Tree:
    """A folder with names relative to it, written with slashes on every machine.

    ``root`` is a path, or an address that fsspec knows. Hidden files, whose names begin with a dot,
    are not there; on this machine folders are listed as by all commands (`Folders`).
    """

    # Of listings; a tree that nobody changes may be listed from fsspec's cache.
    _refresh = False

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/") or "/"
        self._fs: Any = None
        self._base = self.root
        self._folders = Folders(self.root)
        if is_address(root):
            fsspec = import_extra("fsspec.core", str(root), "datasets")
            self._fs, self._base = fsspec.url_to_fs(self.root)
        self._listed: tuple[str, frozenset[str]] | None = None

    def __str__(self) -> str:
        return self.root

    def path(self, name: str = "") -> str:
        """Path or address of a file or folder; for messages."""
        return f"{self.root}/{name}" if name else self.root

    def _full(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def is_folder(self, name: str = "") -> bool:
        """Whether there is such a folder."""
        full = self._full(name)
        return Path(full).is_dir() if self._fs is None else bool(self._fs.isdir(full))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        if self._fs is None:
            return Path(self._full(name)).is_file()
        # One listing instead of a request for every file: they are asked for folder by folder.
        folder, _, last = name.rpartition("/")
        if self._listed is None or self._listed[0] != folder:
            names = frozenset(self.list(folder)[1]) if self.is_folder(folder) else frozenset()
            self._listed = (folder, names)
        return last in self._listed[1]

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder."""
        return self.is_folder(name) or self.has(name)

    def list(self, folder: str = "") -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in a folder, each sorted."""
        full = self._full(folder)
        if self._fs is None:
            return self._folders.list(full)
        entries = [
            (PurePosixPath(entry["name"]).name, entry["type"] == "directory")
            for entry in self._fs.ls(full, detail=True, refresh=self._refresh)
            if entry["name"].rstrip("/") != full
        ]
        entries = sorted(entry for entry in entries if not entry[0].startswith("."))
        folders = [name for name, is_folder in entries if is_folder]
        return folders, [name for name, is_folder in entries if not is_folder]

    def walk(self, folder: str = "") -> Iterator[str]:
        """The names of all files beneath a folder: its own sorted, then its folders' in turn."""
        prefix = f"{folder}/" if folder else ""
        folders, files = self.list(folder)
        yield from (prefix + name for name in files)
        for name in folders:
            yield from self.walk(prefix + name)

    def audio(self, name: str) -> Path | RemoteFile:
        """A file as `CorpusClip.audio`."""
        return Path(self._full(name)) if self._fs is None else RemoteFile(self.path(name))

    def open(self, name: str) -> Any:
        """Opens a file for reading bytes; raises FileNotFoundError if it is not there."""
        if self._fs is None:
            return Path(self._full(name)).open("rb")
        return self._fs.open(self._full(name), "rb")

    def open_in_parts(self, name: str) -> Any:
        """As `open`, for reading few bytes here and there: no more is fetched around them."""
        if self._fs is None:
            return self.open(name)
        return self._fs.open(self._full(name), "rb", block_size=_SMALL_BLOCK)

    def lines(self, name: str) -> Iterator[str]:
        """The lines of a text file in UTF-8, with their ends, as the `csv` module wants them.

        Raises FileNotFoundError if it is not there, ValueError if it is not UTF-8.
        """
        with self.open(name) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            try:
                yield from text
            except UnicodeDecodeError as error:
                raise InputError(f"{self.path(name)} is not text in UTF-8: {error}.") from None

    def text(self, name: str) -> str:
        """The content of a text file; errors as in `lines`."""
        return "".join(self.lines(name))


def find_tree(
    root: str | Path, info: CorpusInfo, marker: str | Sequence[str], folders: Sequence[str] = ()
) -> Tree:
    """The corpus in a folder: the folder itself, or one of the names that its archive unpacks to.

    It is known by a marker, a file or folder (or any of several). Raises FileNotFoundError if it is
    in none of them.
    """
    tree = Tree(root)
    markers = (marker,) if isinstance(marker, str) else tuple(marker)
    for folder in ("", *folders):
        candidate = Tree(tree.path(folder)) if folder else tree
        if any(map(candidate.exists, markers)):
            return candidate
    expected = " or ".join(markers)
    if not tree.is_folder():
        raise MissingFileError(f"No such folder: {root}, where {info.title} should be.")
    fetch = "download it first, or " if info.downloads else ""
    raise MissingFileError(
        f"{root} has no {expected}: that is not {info.title}. Please {fetch}name the folder that"
        " has it."
    )
