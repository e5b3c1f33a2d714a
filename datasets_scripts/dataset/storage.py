"""The folder that a prepared dataset is written to: on this machine, or at any fsspec address."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tokenizer.errors import MissingPackageError

# Files being written begin and end so; `load_dataset` passes over hidden files.
_HIDDEN, _PARTIAL = ".", ".partial"


def is_address(text: str) -> bool:
    """Whether this is an fsspec address (``s3://bucket/folder``) rather than a path."""
    return "://" in text


class Folder:
    """A folder whose files appear as a whole or not at all.

    On a local disk they are written under a hidden name and renamed. Elsewhere they are uploaded
    when they are complete; object stores show an object only after its upload has ended.

    Args:
        address: A path, or an address that fsspec knows.

    Raises:
        ImportError: If the address needs a package that is not installed.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address).rstrip("/") or "/"
        self._fs: Any = None
        self._root = self.address
        if is_address(self.address):
            try:
                from fsspec.core import url_to_fs
            except ImportError as error:
                raise MissingPackageError(
                    f'{self.address} needs fsspec: pip install "latent-tokenizer[datasets]".'
                ) from error
            self._fs, self._root = url_to_fs(self.address)

    def __str__(self) -> str:
        return self.address

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return self._fs is None

    def path(self, name: str) -> str:
        """Path or address of a file, for messages and other libraries."""
        return f"{self.address}/{name}"

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether there is a file (or folder) of that name."""
        full = self._full(name) if name else self._root
        return Path(full).exists() if self._fs is None else bool(self._fs.exists(full))

    def names(self, folder: str = "") -> list[str]:
        """The files in a subfolder, sorted, without those still being written."""
        full = self._full(folder) if folder else self._root
        if not self.exists(folder):
            return []
        found = (
            [entry.name for entry in Path(full).iterdir() if entry.is_file()]
            if self._fs is None
            else [
                PurePosixPath(entry["name"]).name
                for entry in self._fs.ls(full, detail=True, refresh=True)
                if entry["type"] == "file"
            ]
        )
        return sorted(name for name in found if not name.startswith(_HIDDEN))

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        full = self._full(name)
        return Path(full).read_bytes() if self._fs is None else self._fs.cat_file(full)

    def read_json(self, name: str) -> Any:
        """A JSON file's content, or None if there is no such file, or it is not JSON."""
        try:
            return json.loads(self.read(name))
        except (FileNotFoundError, ValueError, RecursionError):
            # Half a file, where an upload of another kind of store broke off, counts as none.
            return None

    def open(self, name: str) -> Any:
        """Opens a file for reading; a binary stream."""
        full = self._full(name)
        return Path(full).open("rb") if self._fs is None else self._fs.open(full, "rb")

    def write(self, name: str, content: bytes | str) -> None:
        """Writes, or replaces, a small file."""
        with self.writing(name) as path:
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file."""
        self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Gives a local path to write to; it becomes the file when the block ends without error."""
        target = Path(self._full(name))
        if self._fs is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{_HIDDEN}{target.name}.{uuid.uuid4().hex}{_PARTIAL}")
        else:
            # Not NamedTemporaryFile: it would have to be closed, and removed, before the upload.
            partial = Path(tempfile.mkdtemp(prefix="latok-")) / target.name
        try:
            yield partial
            if self._fs is None:
                _flush(partial)
                partial.replace(target)
            else:
                self._fs.makedirs(self._full(name).rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(partial), self._full(name))
        finally:
            partial.unlink(missing_ok=True)
            if self._fs is not None:
                partial.parent.rmdir()

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self._fs is None:
            Path(self._full(name)).unlink(missing_ok=True)
        elif self._fs.exists(self._full(name)):
            self._fs.rm_file(self._full(name))

    def remove_folder(self, name: str) -> None:
        """Removes a subfolder that is empty; object stores have none."""
        if self._fs is None and Path(self._full(name)).is_dir():
            Path(self._full(name)).rmdir()

    def remove_partial(self, folder: str = "") -> None:
        """Removes what a killed run was writing here or in a subfolder; none may be going on."""
        if self._fs is None and Path(self._full(folder)).is_dir():
            for partial in Path(self._full(folder)).glob(f"{_HIDDEN}*{_PARTIAL}"):
                partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    # Before the rename: else a power cut may leave the name and not the content.
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
