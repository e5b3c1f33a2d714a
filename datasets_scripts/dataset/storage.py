"""The folder that a prepared dataset is written to: on this machine, or at any fsspec address."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datasets_scripts.sources.tree import Tree
from tokenizer.saving import writing

# Files that are read in one call.
_AT_ONCE = 1000


class Folder(Tree):
    """A folder whose files appear as a whole or not at all.

    On a local disk they are written under a hidden name and renamed. Elsewhere they are uploaded
    when they are complete; object stores show an object only after its upload has ended.
    """

    _refresh = True

    def has(self, name: str) -> bool:
        """Whether there is such a file now."""
        full = self._full(name)
        return Path(full).is_file() if self._fs is None else bool(self._fs.isfile(full))

    def names(self, folder: str = "") -> list[str]:
        """The files in a subfolder, sorted, without those still being written."""
        return self.list(folder)[1] if self.is_folder(folder) else []

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        with self.open(name) as stream:
            return stream.read()

    def read_all(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yields small files with their names, many requests at once; those gone are left out."""
        for first in range(0, len(names), _AT_ONCE):
            part = names[first : first + _AT_ONCE]
            if self._fs is None:
                for name in part:
                    with suppress(FileNotFoundError):
                        yield name, Path(self._full(name)).read_bytes()
                continue
            contents = self._fs.cat([self._full(name) for name in part], on_error="omit")
            by_name = {place.rpartition("/")[2]: content for place, content in contents.items()}
            for name in part:
                if (content := by_name.get(name.rpartition("/")[2])) is not None:
                    yield name, content

    def read_json(self, name: str) -> Any:
        """A JSON file's content, or None if there is no such file, or it is not JSON."""
        try:
            return json.loads(self.read(name))
        except (FileNotFoundError, ValueError, RecursionError):
            # Half a file, where an upload of another kind of store broke off, counts as none.
            return None

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
        target = self._full(name)
        if self._fs is None:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            with writing(target) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory(prefix="latok-") as folder:
            partial = Path(folder) / target.rpartition("/")[2]
            yield partial
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(partial), target)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self._fs is None:
            Path(self._full(name)).unlink(missing_ok=True)
        elif self._fs.exists(self._full(name)):
            self._fs.rm_file(self._full(name))

    def remove_all(self, names: Sequence[str]) -> None:
        """Removes files that are there; object stores take many in a request."""
        if self._fs is not None and names:
            self._fs.rm([self._full(name) for name in names])
            return
        for name in names:
            self.remove(name)

    def remove_folder(self, name: str) -> None:
        """Removes a subfolder that is empty; object stores have none."""
        if self._fs is None and Path(self._full(name)).is_dir():
            Path(self._full(name)).rmdir()

    def remove_partial(self, folder: str = "") -> None:
        """Removes what a killed run was writing here or in a subfolder; none may be going on."""
        if self._fs is None and Path(self._full(folder)).is_dir():
            for partial in Path(self._full(folder)).glob(".*.partial"):
                partial.unlink(missing_ok=True)
