"""Writing files as a whole or not at all, and the errors of damaged or unwritable ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tokenizer.errors import FileError, InputError


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns safetensors' error for a full disk, which is an Exception and no more, into an OSError.

    Args:
        path: What is written; for the message.
    """
    try:
        yield
    except SafetensorError as error:
        raise FileError(f"Cannot write {path}: {error}. Is the disk full?") from error


def damaged(file: Path, error: Exception) -> ValueError:
    """The error to raise for a safetensors file that cannot be read."""
    return InputError(f"{file} is damaged or cut off ({error}): fetch or make it again.")
